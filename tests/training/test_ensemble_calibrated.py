"""A job of several classifiers with --calibrate: their mean has a temperature of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.distributed.ranks import on_ranks
from tests.training import runs
from tests.training.runs import content
from ulmfit import cli
from ulmfit.fit_config import FitConfig
from ulmfit.training.loop import Loop

TEXTS = ["a good film", "the plot was dull and the film too long", "not bad at all"]


def config(folder: Path, name: str, **options) -> FitConfig:
    clf = job.CLF | {"max_steps": 60, "lr": 2e-2, "drop_mult": 0.0, "log_every": 20}  # long enough to be sure of itself
    return job.config(folder, name, data=str(folder / "data"), valid=0.3, ensemble=2, clf=clf, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ and a finished job, `calibrated`. Not to be changed."""
    place = tmp_path_factory.mktemp("calibrated")
    runs.write_splits(place / "data", train=120, test=40)
    assert ulmfit.fit(config(place, "calibrated", calibrate=True)).state == "done"
    return place


def softened(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.slow
def test_all_that_reads_the_model_uses_the_temperature(folder, tmp_path, capsys):
    run = folder / "calibrated"
    temperature = content(run / "model/bundle.json")["temperature"]
    assert content(run / "ensemble.json")["metrics"]["valid"]["temperature"] == temperature != 1
    model = ulmfit.TextClassifier.from_pretrained(run, backend="torch")
    members = [ulmfit.TextClassifier.from_pretrained(run / name, backend="torch") for name in ("clf", "clf-2")]
    assert all(member.config["temperature"] != 1 for member in members)
    mean = np.mean([member.probabilities(TEXTS) for member in members], axis=0)
    expected = softened(mean, temperature)
    assert np.allclose(model.probabilities(TEXTS), expected, atol=1e-6)
    assert not np.allclose(mean, expected, atol=1e-3) and (mean.argmax(1) == expected.argmax(1)).all()
    model.save_pretrained(tmp_path / "saved")
    assert f"logits are divided by {temperature:.3f}" in (tmp_path / "saved/README.md").read_text()
    assert cli.main(["export", "--model", str(run), "--output", str(tmp_path / "exported")]) == 0
    for name in ("saved", "exported"):
        again = ulmfit.TextClassifier.from_pretrained(tmp_path / name, backend="torch")
        assert np.array_equal(again.probabilities(TEXTS), model.probabilities(TEXTS))
    # Together with others it is another mean, of the members alone.
    both = ulmfit.TextClassifier.from_pretrained([run, run / "clf"], backend="torch")
    assert both.temperature is None and len(both.members) == 3
    capsys.readouterr()
    told = content(run / "ensemble.json")["metrics"]
    for split in ("valid", "test"):
        assert cli.main(["evaluate", "--model", str(run), "--split", split]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {name: found[name] for name in ("loss", "accuracy", "ece", "ece_before")} == pytest.approx(
            {name: told[split][name] for name in ("loss", "accuracy", "ece", "ece_before")}, abs=1e-6
        )
    assert content(run / "summary.json")["systems"]["ulmfit"]["test"]["loss"] == told["test"]["loss"]
    assert cli.main(["top-losses", str(run), "--number", "3"]) == 0


@pytest.mark.slow
def test_the_graph_of_the_mean_has_it_too(folder, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = folder / "calibrated"
    # A model is exported on the CPU, also where there is a GPU. (There is none here: the call would fail.)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cli.main(["export", "--model", str(run), "--to", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    monkeypatch.undo()
    expected = ulmfit.TextClassifier.from_pretrained(run, backend="torch").probabilities(TEXTS)
    exported = ulmfit.TextClassifier.from_pretrained(tmp_path / "onnx")
    np.testing.assert_allclose(exported.probabilities(TEXTS), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(None, {"tokens": np.array([[2, 5, 9]]), "lengths": np.array([3])})
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), probabilities, atol=1e-6)
    exported.save_pretrained(tmp_path / "card")
    assert "0 parameters" not in (tmp_path / "card/README.md").read_text()


@pytest.mark.slow
def test_it_is_found_once_and_again_where_it_is_lost(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(folder / "calibrated", run)
    monkeypatch.setattr(Loop, "_step", pytest.fail)
    for lost in ("ensemble.json", "model/bundle.json"):
        (run / lost).unlink()
        assert ulmfit.fit(output_dir=run).state == "done"
        for name in ("ensemble.json", "model/bundle.json"):
            assert content(run / name) == content(folder / "calibrated" / name)
    # Neither with nor without it is what the classifiers were trained for silently another.
    assert cli.main(["fit", "--output-dir", str(run), "--no-calibrate"]) == 2


@pytest.mark.slow
def test_two_processes_find_the_same(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "calibrated", run)
    (run / "ensemble.json").unlink()
    (tmp_path / "ranks").mkdir()
    assert on_ranks(2, lambda rank: ulmfit.fit(output_dir=run).state, tmp_path / "ranks") == ["done", "done"]
    found, expected = content(run / "ensemble.json"), content(folder / "calibrated/ensemble.json")
    found, expected = found["metrics"]["valid"], expected["metrics"]["valid"]
    assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-5)
    assert found["ece"] == pytest.approx(expected["ece"], abs=1e-5)


def test_several_labels_are_refused_before_anything_is_trained(tmp_path, capsys):
    table = "text,good,bad\n" + "".join(f"film {n},{n % 2},{n % 3 % 2}\n" for n in range(60))
    (tmp_path / "a.csv").write_text(table)
    words = ["--data", str(tmp_path / "a.csv"), "--label-column", "good,bad", "--calibrate", "--output-dir"]
    assert cli.main(["fit", *words, str(tmp_path / "run")]) == 2
    assert "--calibrate is for one label a text" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("temperature", [0, -1.0, "warm", float("inf"), float("nan"), []])
def test_a_damaged_temperature_is_refused(temperature, tmp_path):
    told = {"format_version": 2, "label_names": ["a", "b"], "members": ["1"], "temperature": temperature}
    (tmp_path / "bundle.json").write_text(json.dumps(told))
    with pytest.raises(ulmfit.UserError, match="does not tell the members of a bundle"):
        ulmfit.TextClassifier.from_pretrained(tmp_path)
