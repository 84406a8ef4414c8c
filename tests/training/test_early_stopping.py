"""Scores by class, --metric and --stop-after: what an evaluation tells, which one is best, and when a run ends early."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig
from ulmfit.errors import UserError
from ulmfit.excerpts import values_shown
from ulmfit.training.class_scores import MOST_ROWS, class_scores, class_table
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.loop import Loop

OPTIONS = {"preset": "tiny", "encoder": "none", "max_steps": 12, "eval_every": 2}


def scores_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[dict]:
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, predicted), 1)
    names = [str(index) for index in range(classes)]
    return class_scores(confusion.diagonal(), confusion.sum(1), confusion.sum(0), names)


def test_the_scores_by_class_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(100):
        classes = int(rng.integers(2, 7))
        truth, predicted = rng.integers(0, classes, (2, int(rng.integers(1, 20))))
        expected = metrics.precision_recall_fscore_support(
            truth, predicted, labels=range(classes), zero_division=np.nan
        )
        for place, name in enumerate(("precision", "recall", "f1", "support")):
            found = [np.nan if row[name] is None else row[name] for row in scores_of(truth, predicted, classes)]
            assert found == pytest.approx(expected[place].tolist(), nan_ok=True)


def test_the_table_shows_the_lowest_f1_of_many_classes_and_no_name_under_no_samples():
    few = {"test": {"by_class": scores_of(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)}}
    lines = class_table(few)
    assert lines[0].split() == ["class", "(test)", "precision", "recall", "f1", "documents"]
    assert lines[1].split() == ["0", "1.000", "0.500", "0.667", "2"]
    assert lines[3].split() == ["2", "-", "-", "-", "0"]
    many = {"valid": {"by_class": scores_of(np.arange(40), np.maximum(np.arange(40), 3), 40)}}
    lines = class_table(many)
    assert len(lines) == MOST_ROWS + 2 and [line.split()[0] for line in lines[1:5]] == ["0", "1", "2", "3"]
    assert "12 of 40 classes" in lines[-1]
    with values_shown(False):
        assert class_table(few)[1].startswith("no. 0 ")
    assert class_table({"valid": {"loss": 1.0}}) == class_table({}) == []


@pytest.mark.slow
def test_a_training_tells_its_classes(reviews, tmp_path, capsys):
    result = train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), **OPTIONS))
    line = [line for line in runs.events(tmp_path / "a", "eval") if line["split"] == "valid"][-1]
    by_class = line["by_class"]
    assert [row["label"] for row in by_class] == ["neg", "pos"]
    assert [row["support"] for row in by_class] == list(map(sum, line["confusion"]))
    assert line["recall"] == pytest.approx(np.mean([row["recall"] for row in by_class]))
    assert result.metrics["valid"]["by_class"]
    assert "class (valid)" in capsys.readouterr().out


@pytest.mark.parametrize("metric", [None, "accuracy", "f1", "recall", "loss"])
def test_the_best_evaluation_is_that_of_the_metric(metric):
    """Each metric is best at another evaluation; of two equal ones the lower loss is better."""
    names = ["accuracy", "f1", "recall", "loss"]
    task = ClassifierTask.__new__(ClassifierTask)
    task._config, task._sets = ClassifierConfig(metric=metric), None
    found = [dict.fromkeys(names[:3], 0.5) | {"loss": 0.7} | {name: 0.1 if name == "loss" else 0.9} for name in names]
    assert max(found, key=task.quality) is found[names.index(metric or "accuracy")]
    assert task.quality(found[0] | {"loss": 0.6}) > task.quality(found[0])


@pytest.fixture
def worsening(monkeypatch):
    """Evaluations: the third of a run is the best one."""
    quality = {4: 0.5, 6: 0.9}

    def staged(self, metrics):
        return [quality.get(self.at, 0.1)]

    monkeypatch.setattr(ClassifierTask, "quality", staged)
    step = ClassifierTask.step

    def stepped(self, engine, batch, number):
        self.at = number + 1
        return step(self, engine, batch, number)

    monkeypatch.setattr(ClassifierTask, "step", stepped)
    monkeypatch.setattr(ClassifierTask, "at", 0, raising=False)


@pytest.mark.slow
def test_a_run_stops_when_nothing_gets_better_and_keeps_the_best(reviews, tmp_path, worsening, capsys):
    options = OPTIONS | {"stop_after": 2, "recipe": "none", "lr": 1e-3}
    config = runs.clf_config(tmp_path / "a", data=str(reviews), **options)
    result = train_classifier(config)
    assert (result.state, result.step, result.best_step) == ("done", 10, 6)
    assert (
        "stopped after step 10 of 12: no better evaluation than that of step 6 in the last 2" in capsys.readouterr().out
    )
    again = train_classifier(config)
    assert (again.state, again.step, again.best_step) == ("done", 10, 6)
    assert "holds this run, finished" in capsys.readouterr().out
    before = runs.weights(tmp_path / "a")
    (tmp_path / "a" / "model" / "model.safetensors").unlink()
    again = train_classifier(config)
    assert (again.step, again.best_step) == (10, 6)
    after = runs.weights(tmp_path / "a")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_an_interrupted_run_stops_where_the_other_did(reviews, tmp_path, worsening, monkeypatch):
    options = OPTIONS | {"stop_after": 2, "save_every": 1}
    train_classifier(runs.clf_config(tmp_path / "straight", data=str(reviews), **options))
    monkeypatch.setattr(ClassifierTask, "at", 0)
    monkeypatch.setattr(Loop, "_stop_agreed", lambda self: self.stop.requested())
    state = "preempted"
    stops = 0
    while state == "preempted":
        config = runs.clf_config(tmp_path / "cut", data=str(reviews), **options)
        state = train_classifier(config, runs.StopAtCall(1 if stops else 8)).state
        stops += 1
    assert stops > 2
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["step"] == 10
    a, b = runs.weights(tmp_path / "straight"), runs.weights(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(tmp_path / "straight") == runs.metrics(tmp_path / "cut")


@pytest.mark.slow
def test_earlier_stages_do_not_stop_a_run(reviews, tmp_path, monkeypatch):
    lm = train_language_model(runs.lm_config(tmp_path / "lm", data=str(reviews), preset="tiny", max_steps=2))
    monkeypatch.setattr(ClassifierTask, "quality", lambda self, metrics: [0.0])
    options = {"encoder": str(lm.run_dir), "max_steps": 16, "eval_every": 1, "stop_after": 2, "recipe": "blog"}
    result = train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), **options))
    stages = [line["step"] for line in runs.events(tmp_path / "a", "stage")]
    assert len(stages) == 4 and result.step == stages[-1] + 2 and result.best_step == 1


def test_what_decides_nothing_is_refused(reviews, tmp_path):
    with pytest.raises(UserError, match="--metric f1 decides nothing here; give --keep-best or --stop-after too"):
        options = OPTIONS | {"metric": "f1", "keep_best": False}
        train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), **options))
    with pytest.raises(UserError, match="--stop-after is -1; give 0 or at least 1"):
        train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), **OPTIONS | {"stop_after": -1}))
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_metric_belongs_to_the_run(reviews, tmp_path):
    def train(**options):
        return train_classifier(runs.clf_config(tmp_path / "a", data=str(reviews), **OPTIONS | options))

    train(max_steps=1)
    assert train(max_steps=1, metric="accuracy").state == "done"
    with pytest.raises(UserError, match="metric: None -> f1"):
        train(max_steps=1, metric="f1")
