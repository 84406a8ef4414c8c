"""The whole job on two ranks, stopped by each signal in each of its stages: the same command ends with the same bits.

The ranks are forked from this process, which has imported everything, so that a start takes seconds. It must not have
trained before. What launchers do with a signal is in test_stop.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.test_stop import free_port, status_of
from tests.training import runs
from ulmfit import cli
from ulmfit.training import baseline, fit  # noqa: F401  for the ranks, which then have no imports to do

pytestmark = [
    pytest.mark.timeout(7200),
    pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="minutes: set ULMFIT_LONG, as tests/run_long.sh does"),
]
STEPS = {"lm": 120, "clf": 80}
TAKEN = "Ctrl-C again to leave at once"
PATIENCE = 600.0  # seconds for what has to happen by itself
FORKS = multiprocessing.get_context("fork")


def rank_of_job(rank: int, port: int, words: list[str], log: str, environment: dict[str, str]) -> None:
    """Be one rank of a job, in a process of its own."""
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored by what a shell or nohup starts in the background
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # pytest's own write to where it captures, whatever the descriptors are.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.exit(cli.main(words))


class Job:
    """A job in a folder, and its ranks."""

    def __init__(self, run: Path) -> None:
        self.run, self.log = run, run.with_suffix(".log")
        data = run.parent / "data"
        if not data.exists():
            data.mkdir()
            for name, rows in (("train", 160), ("valid", 40), ("test", 400)):
                runs.write_reviews(data / f"{name}.csv", rows)
        self.words = ["fit", "--data", str(data), "--preset", "tiny", "--no-samples", "--threads", "1",
                      "--output-dir", str(run)]  # fmt: skip
        for training, bptt in (("lm", 12), ("clf", 24)):
            values = {"max-steps": STEPS[training], "batch-size": 8, "bptt": bptt, "log-every": 1, "save-every": 25}
            for name, value in values.items():
                self.words += [f"--{training}.{name}", str(value)]
        self.ranks: list[multiprocessing.process.BaseProcess] = []
        self.before: dict[Path, int | None] = {}

    def start(self) -> None:
        files = (self.run / "status.json", self.run / "clf" / "status.json")
        self.before = {file: _time_of(file) for file in files}  # of what the last start has left
        port = free_port()
        environment = runs.environment(self.run.parent / "cache")
        self.ranks = [
            FORKS.Process(target=rank_of_job, args=(rank, port, self.words, str(self.log), environment))
            for rank in (0, 1)
        ]
        for rank in self.ranks:
            rank.start()

    def end(self) -> list[int | None]:
        """Wait for the ranks; gives their exit codes."""
        for rank in self.ranks:
            rank.join(PATIENCE)
        return [rank.exitcode for rank in self.ranks]

    def send(self, numbers: list[tuple[int, signal.Signals]]) -> None:
        """Send signals to ranks, which are suspended meanwhile: a short run must not end before."""
        pids = [int(str(rank.pid)) for rank in self.ranks]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        while not all("T" in status_of(pid)["State"].split() for pid in pids):
            time.sleep(0.01)
        for rank, number in numbers:
            os.kill(pids[rank], number)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def told(self) -> str:
        return self.log.read_text()[-6000:] if self.log.exists() else ""

    def status(self) -> dict:
        file = self.run / "status.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def count(self, training: str, event: str = "train") -> int:
        file = self.run / training / "metrics.jsonl"
        return file.read_text().count(f'"event": "{event}"') if file.exists() else 0

    def wait(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert all(rank.is_alive() for rank in self.ranks) and time.monotonic() < deadline, self.told()
            time.sleep(0.01)

    def reach(self, stage: str) -> None:
        """Wait until this start of the job is in a stage."""
        steps = {training: self.count(training) for training in STEPS}

        def reached() -> bool:
            told = self.run / "clf" / "status.json" if stage == "final" else self.run / "status.json"
            if _time_of(told) == self.before.get(told) or json.loads(told.read_text())["state"] != "running":
                return False  # what the last start has left
            if stage == "final":  # the trainings are at their ends: what follows is an evaluation
                return self.count("clf") == STEPS["clf"]
            if stage in ("baseline", "between"):
                return self.status()["stage"] == {"baseline": "baseline", "between": "clf"}[stage]
            return self.count(stage) > steps[stage] + 3

        self.wait(reached)

    def check_equal(self, other: Job) -> None:
        """Both are done, with the same bits and the same log."""
        assert self.status()["state"] == other.status()["state"] == "done"
        for training in ("lm", "clf", "."):
            a, b = runs.weights(self.run / training), runs.weights(other.run / training)
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for training in STEPS:
            assert runs.metrics(self.run / training) == runs.metrics(other.run / training)


def _time_of(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Job:
    """A job that nothing stops."""
    job = Job(tmp_path_factory.mktemp("whole") / "run")
    job.start()
    assert job.end() == [0, 0], job.told()
    return job


TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
STOPS = {
    "SIGTERM to one rank": [(1, TERM)],
    "SIGTERM to rank 0": [(0, TERM)],
    "SIGTERM to all": [(0, TERM), (1, TERM)],
    "Ctrl-C": [(0, INT), (1, INT)],
    "a closed terminal": [(0, HUP), (1, HUP)],
}


def test_stopped_by_each_signal_in_each_stage_it_ends_with_the_same_bits(whole, tmp_path):
    job = Job(tmp_path / "run")
    for stage in ("baseline", "lm", "between", "clf"):
        begun = len(job.log.read_text()) if job.log.exists() else 0
        for name, signals in STOPS.items():
            job.start()
            job.reach(stage)
            job.send(signals)
            assert job.end() == [0, 0], f"{name} in {stage}: {job.told()}"
            assert job.status()["state"] == "preempted", f"{name} in {stage}: {job.status()} {job.told()}"
        told = job.log.read_text()
        assert not any(word in told[begun:] for word in ("error: ", "failed: ", "Traceback")), job.told()
        # Ctrl-C twice leaves at once: the first one has been taken when it is told.
        job.start()
        job.reach(stage)
        job.send(STOPS["Ctrl-C"])
        job.wait(lambda told=told: job.log.read_text().count(TAKEN) > told.count(TAKEN))
        for rank in job.ranks:
            if rank.is_alive():
                os.kill(int(str(rank.pid)), INT)
        assert set(job.end()) <= {0, 1, 130}, job.told()  # 1: the other rank has left before its second one arrived
    job.start()
    assert job.end() == [0, 0], job.told()
    job.check_equal(whole)


def test_killed_and_asked_to_stop_at_its_end_it_ends_with_the_same_bits(whole, tmp_path):
    job = Job(tmp_path / "run")
    job.start()
    job.reach("final")
    for rank in job.ranks:
        os.kill(int(str(rank.pid)), signal.SIGKILL)
    assert job.end() == [-signal.SIGKILL] * 2 and job.status()["state"] == "running"
    job.start()
    job.reach("final")
    job.send(STOPS["SIGTERM to one rank"])  # no step is left: it does the rest, or leaves it to the next start
    assert job.end() == [0, 0], job.told()
    assert job.status()["state"] in ("done", "preempted")
    job.start()
    assert job.end() == [0, 0], job.told()
    job.check_equal(whole)
