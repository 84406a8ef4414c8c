"""What a checkpoint precedes, and what "done" promises: evaluations that fail, models that are gone, the order of syncs."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.run import checkpoint
from ulmfit.run.tracking import Tracker
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.lm_task import LanguageModelTask
from ulmfit.training.loop import Loop, TrainingFailed

HOMES = {"lm": LanguageModelTask, "clf": ClassifierTask}
OPTIONS = {"preset": "tiny", "max_steps": 8, "eval_every": 3, "save_every": 2, "keep_best": True}


class Crash(Exception):
    pass


@pytest.fixture
def train(reviews, tmp_path):
    """Trains a task into a directory of that name."""

    def train(task: str, name: str, **options):
        make = {"lm": (runs.lm_config, train_language_model), "clf": (runs.clf_config, train_classifier)}[task]
        more = {"encoder": "none"} if task == "clf" else {}
        return make[1](make[0](tmp_path / name, data=str(reviews), **(OPTIONS | more | options)))

    return train


@pytest.fixture
def evaluations(monkeypatch):
    """Lets the n-th evaluation of a task raise an error: evaluations(task, n, error)."""

    def install(task: str, number: int, error: Exception) -> list[int]:
        home, calls = HOMES[task], []
        evaluate = home.evaluate

        def counted(self, store=None):
            calls.append(len(calls))
            if len(calls) == number:
                raise error
            return evaluate(self, store)

        monkeypatch.setattr(home, "evaluate", counted)
        return calls

    return install


def same(a: Path, b: Path) -> bool:
    x, y = runs.weights(a), runs.weights(b)
    return all(torch.equal(x[name], y[name]) for name in x) and runs.metrics(a) == runs.metrics(b)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "number"), [("lm", 3), ("clf", 1)])
def test_a_crash_in_an_evaluation_loses_no_step(task, number, train, evaluations, tmp_path, monkeypatch):
    """The evaluations come after steps 3, 6 and 8; the best is for once the worst, so that it is not the last one."""
    monkeypatch.setattr(HOMES[task], "quality", lambda self, metrics: [metrics["loss"]])
    train(task, "straight")
    calls = evaluations(task, number, Crash("in the evaluation"))
    with pytest.raises(Crash):
        train(task, "crashed")
    step = (3, 6, 8)[number - 1]
    assert checkpoint.latest(tmp_path / "crashed" / "checkpoints").name == f"step-{step:08d}"
    assert json.loads((tmp_path / "crashed" / "status.json").read_text())["step"] == step
    assert train(task, "crashed").state == "done"
    assert len(calls) == 4  # that of the crash once more
    assert same(tmp_path / "straight", tmp_path / "crashed")
    steps = [line["step"] for line in runs.events(tmp_path / "crashed", "eval") if line["split"] == "valid"]
    assert steps == [3, 6, 8]


@pytest.mark.slow
def test_a_crash_after_the_evaluation_was_logged_logs_it_once(train, tmp_path, monkeypatch):
    """The best weights of an evaluation that is not in the checkpoint are found again."""
    train("lm", "straight")
    step = LanguageModelTask.step

    def crash(self, engine, batch, number):
        if number == 3:
            raise Crash("in the step after the evaluation")
        return step(self, engine, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelTask, "step", crash)
        with pytest.raises(Crash):
            train("lm", "crashed")
    assert [line["step"] for line in runs.events(tmp_path / "crashed", "eval")] == [3]
    state = checkpoint.load(checkpoint.latest(tmp_path / "crashed" / "checkpoints"))
    assert state["evaluation_due"] and state["best"] is None
    assert train("lm", "crashed").state == "done"
    assert same(tmp_path / "straight", tmp_path / "crashed")


def test_out_of_memory_in_an_evaluation_names_a_remedy(train, evaluations, tmp_path):
    evaluations("lm", 1, MemoryError("no room"))
    with pytest.raises(TrainingFailed, match="in the evaluation after step 3 on rank 0; start .* more processes"):
        train("lm", "run")
    assert train("lm", "run").state == "done"


def test_no_checkpoint_but_the_last_is_written_where_none_is_wanted(train, tmp_path):
    train("lm", "run", save_every=0)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000008"]


@pytest.mark.slow
def test_a_finished_run_without_its_model_makes_it_again(train, tmp_path, capsys):
    train("lm", "run")
    model = tmp_path / "run" / "model"
    before, metrics = (model / "model.safetensors").read_bytes(), runs.metrics(tmp_path / "run")
    harms = {
        "does not exist": lambda: shutil.rmtree(model),
        "cannot be read": lambda: (model / "model.safetensors").write_bytes(before[:-100]),
        "is no tokenizer.json": lambda: (model / "tokenizer.json").write_text("[" * 100_000),
    }
    for reason, harm in harms.items():
        harm()
        assert train("lm", "run").state == "done"
        told = capsys.readouterr().out
        assert reason in told and "it is made again" in told
        assert (model / "model.safetensors").read_bytes() == before and runs.metrics(tmp_path / "run") == metrics
    # With logs that somebody edited it is still finished.
    (tmp_path / "run" / "status.json").write_text('{"state": "done", "step": 8, "best_step": "three"}')
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + '\n{"event": "eval"}\n7\n')
    result = train("lm", "run")
    assert "it is made again" not in capsys.readouterr().out
    assert result.best_step is None and result.metrics["valid"]["step"] == 8


def test_done_is_written_when_all_else_is_on_the_disk(train, tmp_path, monkeypatch):
    """A power cut keeps what was synced. The order of syncs and renames is seen at the calls of the system."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def replaced(source, target):
        text = Path(source).read_text() if str(target).endswith("status.json") else ""
        replace(source, target)
        calls.append(("done" if '"done"' in text else "rename", str(target)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    train("lm", "run")
    run = tmp_path / "run"
    (done,) = [place for place, (kind, _) in enumerate(calls) if kind == "done"]
    before = calls[:done]
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        place = before.index(("rename", str(run / "model" / name)))
        assert before[place - 1][0] == "sync" and f".{name}.tmp" in before[place - 1][1]
        assert before[place + 1] == ("sync", str(run / "model"))
        assert ("sync", str(run)) in before[:place], "the entry of the folder model/"
    last_checkpoint = before.index(("rename", str(run / "checkpoints" / "step-00000008")))
    assert ("sync", str(run / "checkpoints")) in before[last_checkpoint:]
    assert ("sync", str(run / "metrics.jsonl")) in before[last_checkpoint:]


@pytest.mark.parametrize("task", HOMES)
def test_a_diverged_training_fails_in_a_sentence(task, train, tmp_path, monkeypatch):
    """It wrote a model that nothing could load and called itself done; or died when it wrote a sample."""
    advance = Tracker.advance

    def poison(self, step):
        advance(self, step)
        if step == 8:
            with torch.no_grad():
                nets[0].encoder.embedding.weight[3] = math.inf

    nets: list = []
    begin = Loop.__init__
    monkeypatch.setattr(
        Loop, "__init__", lambda self, task, *rest, **more: (nets.append(task.net), begin(self, task, *rest, **more))[1]
    )
    monkeypatch.setattr(Tracker, "advance", poison)
    with pytest.raises(TrainingFailed, match="encoder.embedding.weight has become NaN or infinite.*lower --lr"):
        train(task, "run", samples=True, keep_best=False)
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_an_evaluation_that_is_not_finite_is_never_the_best(train, tmp_path, monkeypatch):
    evaluate = LanguageModelTask.evaluate

    def nan_later(self, store=None):
        calls.append(1)
        return evaluate(self, store) | ({"loss": math.nan} if len(calls) > 1 else {})

    calls: list[int] = []
    monkeypatch.setattr(LanguageModelTask, "evaluate", nan_later)
    assert train("lm", "run").best_step == 3
