"""The encoder of 8 bits: near the plain one, and a document gives the same whatever it is batched with."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.int8 import LEVELS, ZERO, Int8Product, quantize_encoder

LENGTHS = [47, 29, 20, 19, 16, 15, 14, 13, 11, 10, 9, 6, 5, 4, 2, 1]


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.inference_mode():
        yield


@pytest.fixture(params=(1, 2, 3), ids="{} layers".format)
def net(request):
    torch.manual_seed(0)
    # Widths of whole vectors: torch computes what is left over with another exp, at another place for each batch.
    sizes = AWDLSTMConfig(vocab_size=50, embedding_size=32, hidden_size=64, num_layers=request.param)
    net = ClassifierNet(sizes, 3, bptt=5, max_len=14, head_hidden=7)
    net.encoder.embedding.weight.mul_(10)
    for layer in net.encoder.layers:
        layer.weight_hh.mul_(2)
    return net


def batch(picked):
    g = torch.Generator().manual_seed(2)
    documents = [torch.randint(2, 50, (n,), generator=g) for n in LENGTHS]
    documents = [documents[i] for i in picked]
    tokens = torch.ones(len(documents), max(map(len, documents)), dtype=torch.long)
    for row, document in zip(tokens, documents, strict=True):
        row[: len(document)] = document
    return tokens, [len(document) for document in documents]


EVERYTHING = batch(range(len(LENGTHS)))


def test_outputs_are_near_the_plain_ones(net):
    expected = net.encode(*EVERYTHING).pooled
    difference = quantize_encoder(copy.deepcopy(net)).encode(*EVERYTHING).pooled - expected
    assert 1e-4 < difference.abs().max() < 0.04 < expected.abs().max()
    assert difference.square().mean() < (0.03 * expected.std()) ** 2


def test_a_document_does_not_depend_on_its_batch(net):
    quantize_encoder(net)
    together = net.encode(*EVERYTHING).pooled
    for picked in ([3], [15], [0, 15], [15, 0], [3, 9, 4, 4, 12], [11, 10, 14]):
        found = net.encode(*batch(picked)).pooled
        # Some processors have another kernel for few rows, which differs in the last bit. A scale taken from the batch
        # would move outputs by a step of an activation, 1e-2.
        torch.testing.assert_close(found, together[picked], rtol=0, atol=1e-6)


def test_windows_do_not_count(net):
    quantize_encoder(net)
    expected = net.encode(*EVERYTHING).pooled
    for net.bptt in (1, 13, 100):
        torch.testing.assert_close(net.encode(*EVERYTHING).pooled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows, inner, outer", ((1, 64, 40), (3, 17, 9), (128, 700, 64)))
def test_products_are_exact(rows, inner, outer):
    """The largest bytes and weights too, which overflow where pairs of products are added in 16 bits."""
    weight = torch.randint(-127, 128, (outer, inner)).float()
    weight[:, 0], weight[0] = 127, 127  # each row's scale is 1
    x = torch.randint(ZERO - LEVELS, ZERO + LEVELS + 1, (rows, inner)).to(torch.uint8)
    x[0] = ZERO + LEVELS
    total = torch.randint(-9, 10, (rows, outer)).float()
    expected = ((x.long() - ZERO) @ weight.long().T).float() / LEVELS + total
    Int8Product(weight).add_to(total, x)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0.01)


def test_a_unit_without_weights_adds_nothing():
    total = torch.zeros(2, 16)
    Int8Product(torch.zeros(16, 32)).add_to(total, torch.full((2, 32), ZERO + LEVELS, dtype=torch.uint8))
    assert not total.any()


@pytest.mark.parametrize("place, words", (({"dtype": torch.float64}, "float64"), ({"device": "meta"}, "on meta")))
def test_what_cannot_be_quantised(net, place, words):
    with pytest.raises(UserError, match=words):
        quantize_encoder(net.to(**place))


def test_a_torch_without_onednn(net, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="oneDNN"):
        quantize_encoder(net)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_and_a_pickle_give_the_same_bits(net, duplicate):
    quantize_encoder(net)
    expected = net.encode(*EVERYTHING).pooled
    again = duplicate(duplicate(net))
    assert torch.equal(again.encode(*EVERYTHING).pooled, expected)
    assert torch.equal(net.encode(*EVERYTHING).pooled, expected)
