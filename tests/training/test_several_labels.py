"""Several labels a text: loss, thresholds and scores, a training to its end, and what is made of its model."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch.nn import functional as F

import ulmfit
from tests.training import runs
from ulmfit import cli, train_classifier
from ulmfit.data.corpus import open_corpus
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.label_loss import SeveralLabels, balanced_weights
from ulmfit.training.label_scores import FEW, best_threshold, choose_thresholds, label_metrics
from ulmfit.training.loop import Loop

WORDS = {"sea": "boat wave fish", "hill": "rock climb snow", "city": "tram street shop"}
OPTIONS = {"preset": "tiny", "encoder": "none", "batch_size": 16, "max_steps": 120, "lr": 0.01, "recipe": "none",
           "drop_mult": 0.0, "min_freq": 1, "keep_best": True}  # fmt: skip


def rows(number: int) -> list[tuple[str, list[str] | None]]:
    """Texts with two words of each of their labels. Every eighth has none, every 40th is unlabelled."""
    rng = np.random.default_rng(0)
    found = []
    for place in range(number):
        labels = [] if place % 8 == 0 else [name for name in WORDS if rng.random() < 0.45]
        words = [word for name in labels for word in rng.choice(WORDS[name].split(), 2)]
        filler = [f"w{number}" for number in rng.integers(0, 30, 4)]
        found.append((" ".join(rng.permutation([*words, *filler])), None if place % 40 == 39 else labels))
    return found


def write(path: Path, data: list[tuple[str, list[str] | None]]) -> Path:
    lines = [json.dumps({"text": text, "label": labels}) for text, labels in data]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    data = write(folder / "train.jsonl", rows(240))
    write(folder / "test.jsonl", rows(300)[240:])
    result = train_classifier(runs.clf_config(folder / "run", data=str(folder / "*.jsonl"), **OPTIONS))
    return folder, data, result


# Loss and scores


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sum_over_labels_is_trained_on_and_their_mean_logged(weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    truth = (torch.rand(9, 4, generator=generator) < 0.4).double()
    weights = None
    expected = F.binary_cross_entropy(logits.sigmoid(), truth, reduction="none")
    right = ((logits.sigmoid() > 0.5) == truth.bool()).all(1).sum()
    sums = SeveralLabels().sums(logits, torch.zeros(9), truth)
    assert torch.allclose(sums, torch.stack([expected.mean(1).sum(), right.double()]))
    if weighted:
        counts = truth.sum(0).numpy()
        weights = torch.from_numpy(balanced_weights(counts, 9, several=True))
        chosen = torch.where(truth.bool(), weights[1], weights[0])
        assert torch.allclose(chosen.mean(0), torch.ones(4, dtype=torch.float64))
        assert torch.allclose((chosen * truth).sum(0), torch.full((4,), 4.5, dtype=torch.float64))
        expected = expected * chosen
    assert torch.allclose(SeveralLabels(weights).mean(logits, torch.zeros(9), truth), expected.sum(1).mean())
    smooth = SeveralLabels(smoothing=0.2).mean(logits, torch.zeros(9), truth)
    assert torch.allclose(smooth, 4 * F.binary_cross_entropy(logits.sigmoid(), truth * 0.8 + 0.1))


def test_thresholds_have_the_highest_f1():
    rng = np.random.default_rng(0)
    for _ in range(200):
        number = int(rng.integers(1, 15))
        truth = rng.random(number) < 0.4
        probabilities = rng.integers(1, 7, number) / 8  # many equal ones
        found = best_threshold(probabilities, truth)

        def f1(threshold, truth=truth, probabilities=probabilities):
            predicted = probabilities >= threshold
            return 2 * (truth & predicted).sum() / max(1, truth.sum() + predicted.sum())

        assert f1(found) == max(f1(value / 16) for value in range(16)) if truth.any() else found == 0.5
    truth = np.zeros((100, 2), bool)
    truth[: FEW - 1, 0] = truth[:FEW, 1] = True
    probabilities = rng.random((100, 2))
    found = choose_thresholds(probabilities, truth)
    assert found[0] == best_threshold(probabilities.ravel(), truth.ravel())  # too few documents for one of its own
    assert found[1] == best_threshold(probabilities[:, 1], truth[:, 1])


def test_the_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = rng.random((int(rng.integers(1, 30)), 3)) < 0.4
        truth[0] = True  # a label that occurs nowhere is left out here, and counts as 0 there
        probabilities = rng.random(truth.shape)
        found = label_metrics(probabilities, truth.astype(np.float32), ["a", "b", "c"], [0.3, 0.5, 0.7])
        predicted = probabilities >= [0.3, 0.5, 0.7]
        for name, average in (("micro_f1", "micro"), ("f1", "macro")):
            assert found[name] == pytest.approx(metrics.f1_score(truth, predicted, average=average, zero_division=0))
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
        assert found["loss"] == pytest.approx(np.mean([metrics.log_loss(t, p, labels=[0, 1]) for t, p in
                                                       zip(truth.T, probabilities.T, strict=True)]))  # fmt: skip


# A training


def test_a_training_learns_several_labels(trained, capsys):
    folder, _, result = trained
    assert result.state == "done"
    config = json.loads((folder / "run" / "model" / "config.json").read_text())
    assert config["multi_label"] and config["label_names"] == ["city", "hill", "sea"]
    test, valid = result.metrics["test"], result.metrics["valid"]
    assert config["thresholds"] == test["thresholds"] == valid["thresholds"] != [0.5] * 3
    assert test["micro_f1"] > 0.8 and [row["support"] for row in test["by_class"]] == [
        sum(name in (labels or []) for _, labels in rows(300)[240:]) for name in config["label_names"]
    ]
    model = result.model()
    found = model.predict(["boat fish w1 w2", "rock tram climb street", "w3 w4 w5 w6", ""])
    assert [set(one.labels) for one in found] == [{"sea"}, {"city", "hill"}, set(), set()]
    both = found[1]
    assert both.indices == (0, 1) and both.label in both.labels and both.probabilities[both.index] == max(
        both.probabilities
    )  # fmt: skip
    assert (found[2].label, found[2].index, found[2].labels) == ("", -1, ()) and found[3].reason == "empty"
    assert not np.isclose(both.probabilities.sum(), 1)
    again = ulmfit.TextClassifier.from_pretrained(result.model_dir, backend="torch").predict(["boat fish w1 w2"])
    assert again[0].labels == found[0].labels


def test_explanations_errors_and_report_know_several_labels(trained, tmp_path, capsys):
    run = str(trained[0] / "run")
    found = ulmfit.TextClassifier.from_pretrained(run).explain("w1 boat w2 wave rock w3", "sea")
    assert {word.text for word in found.strongest(2)} == {"boat", "wave"}
    assert all(word.contribution > 0 for word in found.strongest(2))
    assert cli.main(["top-losses", run, "--number", "2"]) == 0
    rows = re.findall(r"^row \d+  loss ([\d.]+)  true (.*?)  predicted (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 2 and float(rows[0][0]) >= float(rows[1][0]) > 0
    assert cli.main(["report", run, "--errors", "2", "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert (
        "any of 3 labels" in page
        and "micro F1" in page
        and "Label is there (upwards) by its probability (across)" in page
    )


@pytest.mark.slow
def test_evaluate_scores_as_training_did(trained, capsys):
    folder, data, result = trained
    for arguments, split in (
        ([], "test"),
        (["--split", "valid"], "valid"),
        (["--data", str(folder / "test.jsonl")], "all"),
    ):
        cli.main(["evaluate", "--model", str(folder / "run"), *arguments])
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        expected = result.metrics["valid" if split == "valid" else "test"]
        assert scores["split"] == split
        assert {name: scores[name] for name in ("accuracy", "by_class", "thresholds")} == {
            name: expected[name] for name in ("accuracy", "by_class", "thresholds")
        }
    cli.main(["evaluate", *["--model", str(folder / "run")] * 2])
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["by_class"] == result.metrics["test"]["by_class"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_are_training_data_again(suffix, trained, tmp_path):
    folder, data, result = trained
    output = tmp_path / f"out.{suffix}"
    cli.main(["predict", "--model", str(folder / "run"), "--data", str(data), "--output", str(output)])
    texts = [text for text, _ in rows(240)]
    expected = [sorted(one.labels) for one in result.model().predict(texts)]
    options = {"label_separator": ","} if suffix == "csv" else {}
    column = "text" if suffix != "jsonl" else "input.text"
    corpus = open_corpus(str(output), task="clf", text_column=column, label_column="labels", valid="0.2", **options)
    names = [json.loads(name) for name in corpus.splits["train"].label_names]
    found = {text: names[label] for split in corpus.splits.values() for batch in split.batches()
             for text, label in zip(batch.texts, batch.labels, strict=True)}  # fmt: skip
    assert found == dict(zip(texts, expected, strict=True)) and [] in found.values()
    if suffix == "csv":
        with open(output, newline="") as file:
            table = list(csv.DictReader(file))
        assert list(table[0])[:6] == ["row", "labels", "city", "hill", "sea", "reason"]
        assert [row["labels"] for row in table] == [",".join(labels) or "," for labels in expected]
    if suffix == "parquet":
        assert str(pyarrow.parquet.read_schema(output).field("labels").type).startswith("list<")


def test_terminal_lines_have_the_labels_and_their_probabilities(trained, capsys):
    folder, *_ = trained
    cli.main(["predict", "--model", str(folder / "run"), "rock tram climb street", "w3 w4 w5 w6"])
    both, none = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert both[0] == "city,hill" and len(both[1].split(",")) == 2 and none == [",", ""]


def test_an_exported_model_has_the_same_labels_and_so_have_the_examples(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    folder, *_ = trained
    cli.main(["export", "--model", str(folder / "run"), "--output", str(tmp_path / "onnx"), "--to", "onnx"])
    texts = [text for text, _ in rows(40)]
    models = [ulmfit.TextClassifier.from_pretrained(path, backend=backend)
              for path, backend in ((tmp_path / "onnx", "auto"), (folder / "run", "torch"))]  # fmt: skip
    for ours, theirs in zip(*(model.predict(texts) for model in models), strict=True):
        assert ours.labels == theirs.labels
        assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
    found = models[0].predict(texts)
    assert {len(one.labels) for one in found} >= {0, 1, 2}
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["predict_onnx.py", str(tmp_path / "onnx"), *texts])
    runpy.run_path(str(runs.ROOT / "examples" / "predict_onnx.py"))
    lines = [line.split("\t")[::2] for line in capsys.readouterr().out.splitlines()]
    assert [set(line) - {""} for line in lines] == [set(one.labels) for one in found]
    config = json.loads((tmp_path / "onnx" / "config.json").read_text())
    for wrong in ([0.5, 0.5], [0.5, 0.5, float("nan")], [0.5, 0.5, 1.5], ["a", 0.5, 0.5]):
        shutil.copytree(tmp_path / "onnx", tmp_path / "edited", dirs_exist_ok=True)
        (tmp_path / "edited" / "config.json").write_text(json.dumps(config | {"thresholds": wrong}))
        with pytest.raises(UserError, match="thresholds in .* are not a number from 0 to 1 for each"):
            ulmfit.TextClassifier.from_pretrained(tmp_path / "edited")
    monkeypatch.setenv("MODEL", str(tmp_path / "onnx"))
    if importlib.util.find_spec("fastapi"):
        answer = runpy.run_path(str(runs.ROOT / "examples" / "serve.py"))["answer"]
        assert [answer(one.probabilities.tolist())["labels"] for one in found] == [list(one.labels) for one in found]


@pytest.mark.slow
def test_the_cut_of_the_batch_and_a_stop_change_nothing(trained, tmp_path, monkeypatch):
    _, data, _ = trained
    monkeypatch.setattr(Loop, "_stop_agreed", lambda self: self.stop.requested())
    more = OPTIONS | {"precision": "fp64", "max_steps": 6, "eval_every": 3, "class_weights": "balanced"}

    def train(name, stop=None, **options):
        return train_classifier(runs.clf_config(tmp_path / name, data=str(data), **more | options), stop)

    whole = train("whole")
    cut = train("cut", micro_batches=3)
    assert runs.distance(runs.weights(whole.run_dir), runs.weights(cut.run_dir)) < 1e-10
    train("stopped", runs.StopAtCall(3))
    stopped = train("stopped")
    a, b = runs.weights(whole.run_dir), runs.weights(stopped.run_dir)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(whole.run_dir) == runs.metrics(stopped.run_dir)
    assert whole.metrics["valid"]["thresholds"] == stopped.metrics["valid"]["thresholds"]


@pytest.mark.parametrize("step", [4, 7])
def test_a_kill_changes_nothing(trained, tmp_path, monkeypatch, step):
    """In fp32, between two checkpoints, before and after the best evaluation; the interrupted run writes none of its own."""
    _, data, _ = trained
    options = OPTIONS | {"data": str(data), "max_steps": 8, "eval_every": 3, "save_every": 2, "drop_mult": 0.5,
                         "label_smoothing": 0.1}  # fmt: skip
    whole = train_classifier(runs.clf_config(tmp_path / "whole", **options))
    steps = ClassifierTask.step

    def killed(self, engine, batch, number):
        if number == step:
            raise RuntimeError("the machine fails")
        return steps(self, engine, batch, number)

    monkeypatch.setattr(ClassifierTask, "step", killed)
    with pytest.raises(RuntimeError, match="the machine fails"):
        train_classifier(runs.clf_config(tmp_path / "killed", **options))
    monkeypatch.setattr(ClassifierTask, "step", steps)
    found = train_classifier(runs.clf_config(tmp_path / "killed", **options))
    a, b = runs.weights(whole.run_dir), runs.weights(found.run_dir)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(whole.run_dir) == runs.metrics(found.run_dir)
    assert whole.metrics == found.metrics
    config = [
        json.loads((run / "model" / "config.json").read_text())
        for run in (whole.model_dir.parent, found.model_dir.parent)
    ]
    assert config[0] == config[1] and config[0]["thresholds"] == whole.metrics["valid"]["thresholds"]


def test_models_of_one_and_of_several_labels_do_not_mix(trained, tmp_path, reviews):
    folder, data, _ = trained
    with pytest.raises(UserError, match="--metric micro_f1 is for several labels a row"):
        train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), preset="tiny", metric="micro_f1"))
    with pytest.raises(UserError, match="--calibrate is for one label a text"):
        train_classifier(runs.clf_config(tmp_path / "a", data=str(data), calibrate=True, **OPTIONS))
    with pytest.raises(UserError, match="label-separator: None -> ,"):
        train_classifier(runs.clf_config(folder / "run", data=str(folder / "*.jsonl"), label_separator=",", **OPTIONS))


@pytest.mark.slow
def test_the_whole_job_compares_with_a_regression_for_each_label(trained, tmp_path):
    pytest.importorskip("sklearn")
    folder, data, _ = trained
    (tmp_path / "train.jsonl").write_bytes(data.read_bytes())
    write(tmp_path / "test.jsonl", rows(300)[240:])
    tiny = {"max_steps": 4, "batch_size": 16, "threads": 1}
    config = FitConfig(data=str(tmp_path / "*.jsonl"), output_dir=str(tmp_path / "fit"), init="none", preset="tiny",
                       samples=False, lm=tiny, clf=tiny)  # fmt: skip
    summary = ulmfit.fit(config).summary
    systems = summary["systems"]
    rival = systems["TF-IDF + logistic regression"]
    assert rival["test"]["micro_f1"] > 0.9 > systems["majority class"]["test"]["micro_f1"]
    assert summary["beats_baseline"] is False and "(micro F1 on 59 test rows)" in summary["verdict"]
    assert "test micro F1" in (tmp_path / "fit" / "summary.md").read_text()
