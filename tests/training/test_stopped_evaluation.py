"""A request to stop leaves an evaluation unfinished; the same command begins with it and ends as if never stopped."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import TrainingInterrupted, cli, train_classifier, train_language_model
from ulmfit.distributed import left_scoring
from ulmfit.distributed.progress import Progress
from ulmfit.distributed.stop import LAUNCHER_MARKS, StopRequest
from ulmfit.private_api import group_store
from ulmfit.run.tracking import Tracker

FIRST, LAST, TEST = "the first evaluation", "that of the last step", "the test split"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for first, name in ((0, "train"), (200, "valid"), (400, "test")):
        runs.write_reviews(path / f"{name}.csv", 80, first=first)
    return path


@pytest.fixture
def scored(monkeypatch):
    """Counts the batches of all evaluations, and asks the program to stop at the one of this number."""

    class Scored:
        number, stop_at, sends = 0, None, signal.SIGTERM

    now = Progress.now

    def counting(self, doing):
        now(self, doing)
        if doing == "evaluating":
            Scored.number += 1
            if Scored.number == Scored.stop_at:
                signal.raise_signal(Scored.sends)

    monkeypatch.setattr(Progress, "now", counting)
    return Scored


def words(task, run, data, **options):
    shared = {"data": str(data), "preset": "tiny", "max_steps": 4, "eval_every": 2} | options
    if task == "lm":
        return ["train-lm", *runs.arguments(runs.lm_config(run, **shared))]
    return ["train-clf", *runs.arguments(runs.clf_config(run, encoder="none", **shared))]


def status(run):
    return json.loads((run / "status.json").read_text())


@pytest.mark.parametrize("where", [FIRST, LAST, TEST])
@pytest.mark.parametrize("task", ["lm", "clf"])
def test_the_end_is_that_of_a_run_never_stopped(task, where, data, scored, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert cli.main(words(task, straight, data)) == 0 and status(straight)["state"] == "done"
    each, rest = divmod(scored.number, 3)  # two evaluations and the test split, of as many documents
    assert each >= 2 and rest <= 2
    before = {FIRST: 0, LAST: each, TEST: 2 * each}[where]

    scored.number, scored.stop_at = 0, before + 2
    assert cli.main(words(task, stopped, data)) == 0
    assert scored.number == before + 2, "the evaluation goes on"
    assert status(stopped) == {"state": "preempted", "step": 2 if where == FIRST else 4, "reason": "SIGTERM"}
    assert len(runs.events(stopped, "eval")) == [FIRST, LAST, TEST].index(where)

    scored.number, scored.stop_at = 0, None
    assert cli.main(words(task, stopped, data)) == 0 and status(stopped)["state"] == "done"
    left = 3 - [FIRST, LAST, TEST].index(where)
    assert left * each <= scored.number <= left * each + rest, "what was scored is scored again"
    assert runs.metrics(stopped) == runs.metrics(straight)
    a, b = runs.weights(straight), runs.weights(stopped)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_stopped_with_the_best_weights_in_place_its_checkpoint_holds_the_last(data, scored, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = {"keep_best": True, "lr": 0.02, "schedule": "constant", "max_steps": 8}
    assert cli.main(words("clf", straight, data, **options)) == 0 and status(straight)["best_step"] == 4
    scored.number, scored.stop_at = 0, scored.number - 1
    assert cli.main(words("clf", stopped, data, **options)) == 0
    assert status(stopped) == {"state": "preempted", "step": 8, "reason": "SIGTERM"}
    last = [load_file(run / "checkpoints" / "step-00000008" / "tensors.safetensors") for run in (straight, stopped)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0] if not name.startswith("best"))
    assert cli.main(words("clf", stopped, data, **options)) == 0
    assert status(stopped) == status(straight) and runs.metrics(stopped) == runs.metrics(straight)
    a, b = runs.weights(straight), runs.weights(stopped)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_ctrl_c_in_a_call_from_python_ends_the_scoring_of_the_test_split(data, scored, monkeypatch, tmp_path):
    def train(name):
        shared = {"data": str(data), "preset": "tiny", "encoder": "none", "max_steps": 4}
        return train_classifier(runs.clf_config(tmp_path / name, **shared)).state

    assert train("straight") == "done"
    scored.number, scored.stop_at, scored.sends = 0, scored.number - 1, signal.SIGINT
    with pytest.raises(TrainingInterrupted):
        train("stopped")
    assert status(tmp_path / "stopped") == {"state": "preempted", "step": 4, "reason": "KeyboardInterrupt"}
    # When all is scored it stops nothing of this training, but what comes after it.
    log = Tracker.log_result
    monkeypatch.setattr(Tracker, "log_result", lambda *given: (signal.raise_signal(signal.SIGINT), log(*given)))
    with pytest.raises(TrainingInterrupted):
        train("stopped")
    assert status(tmp_path / "stopped")["state"] == "done" and train("stopped") == "done"
    assert runs.metrics(tmp_path / "stopped") == runs.metrics(tmp_path / "straight")
    a, b = runs.weights(tmp_path / "straight"), runs.weights(tmp_path / "stopped")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_time_limit_waits_for_the_end_of_an_evaluation(data, scored, tmp_path):
    """Else a run whose evaluations take longer than the limit would begin with the same one for ever."""
    run = tmp_path / "run"
    assert cli.main(words("lm", run, data, max_time=1e-6)) == 0
    first = status(run)
    assert first["state"] == "preempted" and first["reason"] == "--max-time"
    while status(run)["state"] != "done":
        step = status(run)["step"]
        assert cli.main(words("lm", run, data, max_time=1e-6)) == 0
        assert status(run)["step"] > step or status(run)["state"] == "done"
    assert [line["split"] for line in runs.events(run, "eval")] == ["valid", "valid", "test"]


@pytest.mark.parametrize("asked", ["SIGTERM", "stop file", "the launcher's death"])
def test_other_requests_are_more_urgent_than_the_time_limit(asked, monkeypatch, tmp_path):
    monkeypatch.setenv(LAUNCHER_MARKS[0], "1")
    request = StopRequest.install()
    try:
        request.watch(tmp_path, 0.0, time.monotonic())
        assert request.requested() and not request.ends_evaluations() and request.reason == "--max-time"
        if asked == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        elif asked == "stop file":
            (tmp_path / "stop").touch()
        else:
            monkeypatch.setattr(os, "getppid", lambda: 1)
        assert request.ends_evaluations() and request.reason == asked
    finally:
        request.restore()


def test_ranks_leave_it_together_though_one_alone_is_asked(data, tmp_path):
    def train(rank: int) -> list:
        batches: list[int] = []

        def asked(self):
            batches.append(len(batches))
            if rank == 0 and len(batches) == 1:  # it is slow, or has a larger part
                while not group_store().check([f"ulmfit/left scoring/{left_scoring.LeftScoring.number}"]):
                    time.sleep(0.01)
            return rank == 1 and len(batches) == 2

        shared = {"data": str(data), "preset": "tiny", "max_steps": 4, "eval_every": 2}
        straight = train_language_model(runs.lm_config(tmp_path / "straight", **shared))
        StopRequest.ends_evaluations, left_scoring.PERIOD = asked, 0.0
        stopped = train_language_model(runs.lm_config(tmp_path / "stopped", **shared))
        read = len(batches)
        done = train_language_model(runs.lm_config(tmp_path / "stopped", **shared))
        return [read, *((result.state, result.step) for result in (straight, stopped, done))]

    ends = [("done", 4), ("preempted", 2), ("done", 4)]
    assert on_ranks(2, train, tmp_path) == [[1, *ends], [2, *ends]], "a rank reads on for scores that nobody gets"
    assert runs.metrics(tmp_path / "stopped") == runs.metrics(tmp_path / "straight")
