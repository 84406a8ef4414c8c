"""The exported graph gives what the network gives, at any length and batch, and with 8 bits nearly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ulmfit.batches.documents import pad  # noqa: E402
from ulmfit.exported import graph  # noqa: E402
from ulmfit.exported.graph import WINDOW, Weights, build  # noqa: E402
from ulmfit.exported.reader import OnnxReader, _batches  # noqa: E402

VOCABULARY = 60


def network(layers: int, max_len: int, *, seed: int = 0) -> ClassifierNet:
    """A net whose logits differ from text to text, with BatchNorm statistics as after training."""
    torch.manual_seed(seed)
    sizes = AWDLSTMConfig(vocab_size=VOCABULARY, embedding_size=12, hidden_size=20, num_layers=layers)
    net = ClassifierNet(sizes, 3, max_len=max_len, head_hidden=7).requires_grad_(False)
    net.encoder.embedding.weight.mul_(10)
    for layer in net.encoder.layers:
        layer.weight_ih.mul_(3)
        layer.weight_hh.mul_(2)
    net.head.linear2.weight.mul_(4)
    for norm in (net.head.norm1, net.head.norm2):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.2, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_(0, 0.3)
    return net


def reader_of(net: ClassifierNet, *, bits: int = 32, backwards: bool = False) -> OnnxReader:
    config = {"architecture": {"num_layers": net.config.num_layers}, "max_len": net.max_len, "backwards": backwards}
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    return OnnxReader(build(Weights.of(tensors, config), bits))


def documents(lengths, *, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, length, dtype=np.int32) for length in lengths]


def expected(net: ClassifierNet, texts: list[np.ndarray], *, backwards: bool = False) -> SimpleNamespace:
    lengths = np.array([len(text) for text in texts])
    tokens = torch.from_numpy(pad(np.concatenate(texts), lengths, pad_id=1, backwards=backwards))
    with torch.inference_mode():
        logits = net(tokens, torch.from_numpy(lengths)).logits
    return SimpleNamespace(tokens=tokens.numpy(), lengths=lengths, logits=logits.numpy(), softmax=logits.softmax(1))


EDGES = [1, 2, 71, 72, 73, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1, 700, 5000]


@pytest.mark.parametrize("layers, max_len, backwards", [(1, 30, False), (2, 1440, True), (3, WINDOW, False)])
def test_one_call_gives_the_logits_of_any_lengths(layers, max_len, backwards):
    net = network(layers, max_len)
    reader = reader_of(net, backwards=backwards)
    for lengths in ([5000], EDGES, np.random.default_rng(0).integers(1, 400, 64)):
        texts = documents(lengths)
        right = expected(net, texts, backwards=backwards)
        given = expected(net, texts).tokens  # the graph itself turns them round
        given[np.arange(given.shape[1]) >= right.lengths[:, None]] = 7  # is not read
        logits, probabilities = reader._session.run(
            ["logits", "probabilities"], {"tokens": given, "lengths": right.lengths}
        )
        np.testing.assert_allclose(logits, right.logits, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(probabilities, right.softmax, atol=1e-5)
        assert len(texts) == 1 or np.ptp(right.softmax.numpy(), axis=0).max() > 0.1  # the texts do differ


def test_every_batch_size_is_the_same(monkeypatch):
    net = network(2, 50)
    reader = reader_of(net)
    texts = documents(np.random.default_rng(2).integers(1, 200, 64))
    right = expected(net, texts).softmax.numpy()
    for cores in (1, 3):
        monkeypatch.setattr("ulmfit.exported.reader.usable_cores", lambda cores=cores: cores)
        for size in (1, 2, 3, 17, 64):
            np.testing.assert_allclose(reader.probabilities(texts[:size]), right[:size], atol=1e-5)


def test_a_window_bounds_the_memory():
    """No LSTM ever sees more steps than a window: the Loop's body cuts them off before it looks up the words."""
    net = network(1, 50)
    config = {"architecture": {"num_layers": 1}, "max_len": 50}
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    model = graph.onnx.load_from_string(build(Weights.of(tensors, config)))
    graph.onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert "LSTM" not in kinds and "Gather" in kinds and kinds.count("Loop") == 1
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = [node.op_type for node in loop.attribute[0].g.node]
    assert body.index("Slice") < body.index("LSTM") and len(kinds) + len(body) < 80


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_8_bits_are_near_and_do_not_depend_on_the_batch(layers):
    net = network(layers, 60)
    reader = reader_of(net, bits=8)
    texts = documents([130, 47, 29, 20, 16, 9, 5, 4, 2, 1])
    right = expected(net, texts).softmax.numpy()
    alone = np.concatenate([reader.probabilities([text]) for text in texts])
    assert 1e-5 < np.abs(alone - right).max() < 0.05
    for picked in ([0, 9], [9, 3, 3], list(range(10))):
        np.testing.assert_allclose(reader.probabilities([texts[i] for i in picked]), alone[picked], atol=1e-6)
    loud = documents([40], seed=5)[0]  # another text beside them, in one call of the graph
    for text, own in zip(texts, alone, strict=True):
        tokens = np.zeros((2, max(len(text), 40)), np.int64)
        tokens[0, : len(text)], tokens[1, :40] = text, loud
        together = reader._session.run(["probabilities"], {"tokens": tokens, "lengths": np.array([len(text), 40])})
        np.testing.assert_allclose(together[0][0], own, atol=1e-6)


def test_batches_hold_every_document_once_and_no_short_one_beside_a_long_one():
    lengths = np.random.default_rng(3).geometric(0.003, 500)
    for cores in (1, 2, 64):
        batches = list(_batches(lengths, cores))
        assert sorted(np.concatenate(batches)) == list(range(500))
        assert all(len(batch) <= 32 and lengths[batch].max() <= 3 * lengths[batch].min() for batch in batches)
    assert len(list(_batches(np.array([5, 5]), 2))) == 1  # two short texts are no work for two threads
