"""The linear classifier of n-grams: its features, its logits, and what it is stored as."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from ulmfit.errors import UserError
from ulmfit.model.ngrams import NGramConfig, NGramNet
from ulmfit.model.pretrained import load_model, save_model
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.ngram_training import count

TEXTS = ["a good film, a very good one", "the plot was dull", "the film was good and the music was dull", "good"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=200, min_freq=1)


@pytest.fixture(scope="module")
def net(tokenizer) -> NGramNet:
    """With random weights of three classes, on the n-grams of all texts but the last."""
    documents = tokenizer.encode(TEXTS[:3])
    counted = count(np.concatenate(documents), np.array([len(one) for one in documents]), len(tokenizer), 3)
    net = NGramNet(NGramConfig(len(tokenizer), len(counted.keys)), 3)
    net.keys, net.idf = torch.from_numpy(counted.keys), torch.from_numpy(counted.idf).float()
    torch.manual_seed(0)
    net.weight.data, net.bias.data = torch.randn_like(net.weight), torch.randn(3)
    return net.eval()


def padded(documents: list[np.ndarray], more: int = 0) -> tuple[torch.Tensor, list[int]]:
    lengths = [len(one) for one in documents]
    tokens = torch.full((len(documents), max(lengths) + more), 1)
    for row, one in zip(tokens, documents, strict=True):
        row[: len(one)] = torch.from_numpy(one.astype(np.int64))
    return tokens, lengths


def test_features_are_those_of_scikit_learn(net, tokenizer):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    documents = tokenizer.encode(TEXTS)
    spelled = [" ".join(f"t{i}" for i in one) for one in documents]
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+").fit(spelled[:3])
    names = [f"t{key // (len(tokenizer) + 1)}" + (f" t{key % (len(tokenizer) + 1) - 1}" if key % (len(tokenizer) + 1) else "")
             for key in net.keys.tolist()]  # fmt: skip
    assert sorted(names) == sorted(vectors.vocabulary_)
    row, place, value = net.features(*padded(documents))
    found = np.zeros((len(TEXTS), len(names)))
    found[row.numpy(), [vectors.vocabulary_[names[index]] for index in place.tolist()]] = value.numpy()
    np.testing.assert_allclose(found, vectors.transform(spelled).toarray(), atol=1e-6)


def test_a_document_does_not_depend_on_padding_or_on_others(net, tokenizer):
    documents = tokenizer.encode(TEXTS)
    whole = net(*padded(documents, more=3)).logits
    for row, one in zip(whole, documents, strict=True):
        assert torch.equal(net(*padded([one])).logits[0], row)
    unknown = np.array([0, 0], dtype=np.int64)  # in no training text
    assert torch.equal(net(*padded([unknown])).logits[0], net.bias)
    assert torch.equal(net(*padded([documents[3], unknown])).logits[0], whole[3])


def test_contributions_add_up_to_the_log_odds(net, tokenizer):
    two = copy.deepcopy(net)
    two.num_classes, two.weight.data, two.bias.data = 2, net.weight.data[:2], net.bias.data[:2]
    for text in TEXTS:
        ids = torch.from_numpy(tokenizer.encode([text])[0].astype(np.int64))
        for temperature in (1.0, 2.5):
            logits = (two(ids[None], [len(ids)]).logits[0] - two.bias) / temperature
            for index in (0, 1):
                found = two.contributions(ids, index, temperature)
                assert found.sum().item() == pytest.approx((logits[index] - logits[1 - index]).item(), abs=1e-5)
    # Of three classes they are those of the gradient.
    before = net.weight.data.clone()
    row, place, value = net.features(ids[None], [len(ids)])
    net.weight.requires_grad_()
    logits = net(ids[None], [len(ids)]).logits[0]
    odds = logits[1] - torch.stack([logits[0], logits[2]]).logsumexp(0)
    (slope,) = torch.autograd.grad(odds, net.weight)
    # d odds / d w[c, f] = x[f] slope[c], and the contribution of f is x[f] sum_c slope[c] w[c, f].
    assert net.contributions(ids, 1).sum().item() == pytest.approx((slope * before).sum().item(), abs=1e-5)


@pytest.mark.parametrize(("bits", "near"), [(32, 0.0), (8, 0.05)])
def test_it_is_stored_and_read(net, tokenizer, bits, near, tmp_path):
    save_model(tmp_path / "model", net, tokenizer, {"label_names": ["a", "b", "c"]}, bits=bits)
    again, words, config = load_model(tmp_path / "model")
    assert isinstance(again, NGramNet) and words.vocab == tokenizer.vocab
    assert (config["task"], config["kind"], config["format_version"]) == ("classifier", "ngrams", 4)
    assert torch.equal(again.keys, net.keys)
    tokens = padded(tokenizer.encode(TEXTS))
    assert (again(*tokens).logits - net(*tokens).logits).abs().max() <= near


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda tensors: tensors["keys"].copy_(tensors["keys"].flip(0)), "keys are not ascending"),
        (lambda tensors: tensors["keys"][-1:].fill_(2**60), "keys are not ascending"),
        (lambda tensors: tensors["weight"].fill_(float("nan")), "NaN or infinite"),
        (lambda tensors: tensors.pop("idf"), "lacks idf"),
    ],
)
def test_a_damaged_file_is_refused(net, tokenizer, damage, sentence, tmp_path):
    import safetensors.torch

    folder = tmp_path / "model"
    save_model(folder, net, tokenizer, {"label_names": ["a", "b", "c"]})
    tensors = {
        name: tensor.clone() for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    damage(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_model(folder)


def test_a_language_model_of_ngrams_is_refused(net, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_model(folder, net, tokenizer, {"label_names": ["a", "b", "c"]})
    config = json.loads((folder / "config.json").read_text()) | {"task": "language_model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="n-grams as a language model"):
        load_model(folder)


def test_a_number_of_features_that_the_file_has_not_is_refused(net, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_model(folder, net, tokenizer, {"label_names": ["a", "b", "c"]})
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["features"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has shape"):
        load_model(folder)
