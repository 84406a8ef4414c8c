"""Logged steps: their numbers are read when the host need not wait for them, and the log is the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.training import runs
from ulmfit import train_language_model
from ulmfit.distributed.progress import Progress
from ulmfit.training import step_log
from ulmfit.training.loop import Loop


@pytest.fixture
def one_rank():
    """What StepLog asks of a runtime."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        progress=Progress(torch.device("cpu")),
        sum=lambda values: values,
        gather=lambda values: values.unsqueeze(0),
    )


def record(log, lines, loss):
    log.count(10, 0.0)
    sums = torch.tensor([loss, 1.0], dtype=torch.float64)
    log.record(
        torch.cat([sums, torch.tensor([6.0])]),
        2,
        skipped=torch.tensor(3.0),
        norm=torch.tensor(0.5),
        log=lambda numbers, more: lines.append(numbers | {"more": more}),
    )


def test_only_a_gpu_is_read_late():
    assert step_log.reads_late(torch.device("cuda", 1)) and not step_log.reads_late(torch.device("cpu"))


@pytest.mark.parametrize("late", [False, True])
def test_numbers_are_read_when_asked_for_and_in_order(late, one_rank, monkeypatch):
    reads = []
    monkeypatch.setattr(step_log, "reads_late", lambda device: late)
    read = step_log.HostCopy.read
    monkeypatch.setattr(step_log.HostCopy, "read", lambda self: reads.append(self) or read(self))
    log, lines = step_log.StepLog(one_rank), []
    log.write()
    assert not reads, "there is nothing to read yet"
    record(log, lines, 4.0)
    assert len(reads) == len(lines) == (0 if late else 1)
    record(log, lines, 6.0)
    assert [line["loss"] for line in lines] == ([2.0] if late else [2.0, 3.0])
    log.write()
    log.write()
    assert [line["loss"] for line in lines] == [2.0, 3.0]
    assert lines[0] | {"accuracy": 0.5, "skipped": 3, "grad_norm": 0.5, "more": [3.0]} == lines[0]
    assert isinstance(lines[0]["skipped"], int) and lines[0]["tokens_per_second"] > 0


def test_steps_between_two_lines_are_counted_once(one_rank, monkeypatch):
    """By a clock of our own: a step takes a second, a checkpoint between them a hundred."""
    now = [0.0]
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now[0])
    log, lines = step_log.StepLog(one_rank), []
    for _ in range(3):
        now[0] += 1
        log.count(10, 0.25)
    now[0] += 100
    log.exclude(100)
    now[0] += 1
    record(log, lines, 1.0)
    now[0] += 1
    record(log, lines, 1.0)
    assert [line["tokens_per_second"] for line in lines] == [10, 10]
    assert [line["timing"]["step"] for line in lines] == [1, 1]
    assert [line["data_wait"] for line in lines] == [0.75 / 4, 0]


@pytest.mark.slow
def test_a_run_that_is_read_late_and_interrupted_has_the_same_log(tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    options = {"recipe": "ulmfit", "log_every": 3, "eval_every": 5, "save_every": 4}

    def train(name, stops=(None,)):
        for stop in stops:
            monkeypatch.setattr(Loop, "_stop_agreed", lambda loop, stop=stop: loop.position.step == stop)
            train_language_model(runs.lm_config(tmp_path / name, **options))
        return runs.metrics(tmp_path / name)

    at_once = train("at once")
    assert [line["step"] for line in at_once if line["event"] == "train"] == [3, 6, 9, 12]
    monkeypatch.setattr(step_log, "reads_late", lambda device: True)
    assert train("late", (6, None)) == at_once  # stopped right after a step that is logged


class Event:
    """Of a GPU that has come to time `reached`, in milliseconds."""

    reached = 0.0

    def __init__(self, time):
        self.time = time

    def query(self):
        return self.time <= Event.reached

    def elapsed_time(self, other):
        assert self.query() and other.query(), "torch would raise"
        return other.time - self.time


def test_the_host_does_not_wait_for_work_that_the_gpu_has_not_done(monkeypatch):
    progress = Progress(torch.device("cuda"))
    marks = iter([0, 2, 10, 16, 20, 21])
    monkeypatch.setattr(progress, "_mark", lambda: Event(next(marks)))
    for step in range(3):
        progress.begin_step(step)
        progress.waits()
    monkeypatch.setattr(Event, "reached", 18)
    assert progress.own_work() == pytest.approx(0.004)  # of two steps; the third is running
    assert progress.own_work() == pytest.approx(0.004)  # nothing new
    monkeypatch.setattr(Event, "reached", 30)
    assert progress.own_work() == pytest.approx(0.001)
