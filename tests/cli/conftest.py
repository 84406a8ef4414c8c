"""Predictions by the command, in a folder of their own."""

from __future__ import annotations

import pytest

from ulmfit import cli
from ulmfit.inference import TextClassifier


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys, runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ulmfit.cli.predict.CHUNK", 7)
    monkeypatch.setattr("ulmfit.cli.prediction_rows.BATCH", 5)
    monkeypatch.setattr("ulmfit.resumable.SAVE_EVERY", 0)
    models = [str(runs.clf)]

    def run(*words, code=0):
        assert (
            cli.main(["predict", *(word for model in models for word in ("--model", model)), *map(str, words)]) == code
        )
        run.told = capsys.readouterr()
        return run.told.out.splitlines()

    run.models = models
    return run


@pytest.fixture
def killed(monkeypatch):
    """Kill the process, as far as a test can, when so many chunks are predicted: `killed(chunks, error)`."""
    probabilities = TextClassifier.probabilities

    def arm(chunks, event):
        left = [chunks]

        def probabilities_until(self, texts):
            left[0] -= 1
            if left[0] < 0:
                event()
            return probabilities(self, texts)

        monkeypatch.setattr(TextClassifier, "probabilities", probabilities_until)

    yield arm


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory):
    """An exported model, whose processes start without torch."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("served") / "model"
    assert cli.main(["export", "--model", str(runs.clf), "--to", "onnx", "--output", str(folder)]) == 0
    return folder
