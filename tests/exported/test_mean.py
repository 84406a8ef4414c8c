"""Several classifiers as one ONNX graph: what the bundle of them gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ulmfit
from ulmfit.cli import main
from ulmfit.model.pretrained import load_model, save_model

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TEXTS = ["bad", "A good film. " * 200, "It was not bad at all<br />but long", "a\n\nb", "THE END " * 30]


def members(source: Path, folder: Path, **config) -> list[str]:
    """Options that name three classifiers: one backwards, one calibrated and with its classes the other way round."""
    net, tokenizer, stored = load_model(source)
    names = stored["label_names"]
    given = []
    for number, own in enumerate(({}, {"backwards": True}, {"temperature": 1.7, "label_names": names[::-1]})):
        torch.manual_seed(number)
        with torch.no_grad():
            for weight in (net.encoder.embedding.weight, *net.head.parameters()):  # an LSTM's own would make it chaotic
                weight += torch.randn_like(weight) * 0.1
        if "multi_label" in config:
            own = (
                config | {"thresholds": [0.2 + 0.1 * number, 0.6]} | {k: v for k, v in own.items() if k == "backwards"}
            )
        save_model(folder / str(number), net, tokenizer, stored | own)
        given += ["--model", str(folder / str(number))]
    return given


@pytest.mark.parametrize("config", [{}, {"multi_label": True}], ids=["one label", "several"])
def test_the_graph_gives_the_mean(config, runs, tmp_path, capsys):
    given = members(runs.clf, tmp_path, **config)
    whole = ulmfit.TextClassifier.from_pretrained(given[1::2], backend="torch")
    expected = whole.probabilities(TEXTS)
    each = [ulmfit.TextClassifier.from_pretrained(path, backend="torch").probabilities(TEXTS) for path in given[1::2]]
    assert min(np.abs(each[0] - each[1]).max(), np.abs(each[0] - each[2]).max()) > 5e-3
    for name, options, near in (("32", [], 1e-5), ("8", ["--int8"], 0.05)):
        output = tmp_path / f"mean-{name}"
        assert main(["export", *given, "--to", "onnx", *options, "--output", str(output)]) == 0
        assert "the mean of 3 classifiers" in capsys.readouterr().out
        model = ulmfit.TextClassifier.from_pretrained(output)
        assert model.net is None and model.label_names == whole.label_names
        np.testing.assert_allclose(model.probabilities(TEXTS), expected, atol=near)
        for text, row in zip(TEXTS, expected, strict=True):  # one alone, as in a batch
            np.testing.assert_allclose(model.predict(text).probabilities, row, atol=near)
        if config:
            np.testing.assert_allclose(model.thresholds, whole.thresholds, atol=1e-6)
    assert sorted(file.name for file in output.iterdir()) == ["config.json", "model.onnx", "tokenizer.json"]


@pytest.mark.parametrize("config", [{}, {"multi_label": True}], ids=["one label", "several"])
def test_logits_are_those_of_the_mean(config, runs, tmp_path):
    assert (
        main(["export", *members(runs.clf, tmp_path, **config), "--to", "onnx", "--output", str(tmp_path / "out")]) == 0
    )
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    tokens = np.array([[2, 5, 9, 4], [2, 7, 0, 0]])
    logits, probabilities = session.run(None, {"tokens": tokens, "lengths": np.array([4, 2])})
    found = torch.from_numpy(logits).sigmoid() if config else torch.from_numpy(logits).softmax(1)
    np.testing.assert_allclose(found.numpy(), probabilities, atol=1e-6)
    assert np.isfinite(logits).all()


def test_other_vocabularies_are_refused(runs, tmp_path, capsys):
    given = members(runs.clf, tmp_path)
    net, tokenizer, config = load_model(runs.clf)
    other = json.loads(tokenizer.to_str())
    vocabulary = other["model"]["vocab"]
    word = max(vocabulary, key=vocabulary.get)
    vocabulary["nobody-says-this"] = vocabulary.pop(word)
    save_model(tmp_path / "other", net, ulmfit.Tokenizer.from_str(json.dumps(other)), config)
    assert (
        main(["export", *given, "--model", str(tmp_path / "other"), "--to", "onnx", "--output", str(tmp_path / "out")])
        == 2
    )
    assert "an ONNX graph takes one; export each" in capsys.readouterr().err and not (tmp_path / "out").exists()
