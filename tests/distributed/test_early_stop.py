"""Requests to stop before the first step: at once, on all ranks, and what was built stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.test_several import two_processes
from tests.training import runs
from ulmfit import train_language_model
from ulmfit.distributed.early_stop import EarlyStop
from ulmfit.distributed.stop import MAX_TIME, SIGNALS, StopRequest
from ulmfit.errors import StoppedEarly
from ulmfit.training.lm_task import LanguageModelTask

BOUND = 2.0  # seconds; a busy machine gets more


@pytest.fixture
def stop():
    for number in SIGNALS:  # nohup starts pytest with SIGHUP ignored, a shell its background jobs with SIGINT
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    return StopRequest.install()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_long_work_and_only_that(number, stop):
    with pytest.raises(StoppedEarly, match=number.name), stop.interruptible():
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert stop.requested() and not stop.is_interruptible
    with stop.interruptible():  # what is done to end in order is not ended again
        assert stop.raised


def test_a_request_from_before_is_heard_at_the_beginning(stop):
    os.kill(os.getpid(), signal.SIGTERM)  # while torch is being imported, say
    with pytest.raises(StoppedEarly), stop.interruptible():
        pytest.fail("long work has begun")


def test_a_time_limit_that_passes_in_long_work_is_told_as_one(stop, tmp_path):
    """Of a whole job: that of the training before, while the next one reads its corpus."""
    early = EarlyStop(stop, rank=0, world_size=1, store=None, tell=lambda: None)
    try:
        with pytest.raises(StoppedEarly, match=MAX_TIME), stop.interruptible():
            stop.watch(tmp_path, 0.0, time.monotonic())
            time.sleep(60)
    finally:
        early.close()
    assert stop.reason == MAX_TIME


def test_calls_from_python_are_left_alone():
    with StopRequest.on_interrupt() as request, request.interruptible():
        assert not request.handles_signals and not request.is_interruptible


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_saves_a_checkpoint_unless_it_was_ignored_at_the_start(ignored, reviews, tmp_path, monkeypatch):
    """nohup starts a program with the signal ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    stop = StopRequest.install()
    step = LanguageModelTask.step

    def hang_up(self, engine, batch, number):
        if number == 1:
            signal.raise_signal(signal.SIGHUP)  # the terminal is closed
        return step(self, engine, batch, number)

    monkeypatch.setattr(LanguageModelTask, "step", hang_up)
    config = runs.lm_config(tmp_path / "run", data=str(reviews), preset="tiny", max_steps=40)
    result = train_language_model(config, stop)
    assert (result.state, stop.reason) == (("done", None) if ignored else ("preempted", "SIGHUP"))
    assert ignored or (tmp_path / "run" / "checkpoints" / f"step-{result.step:08d}").is_dir()


# Trains on texts that never end, or in code that runs no Python; the file `there` tells that it has come to that.
PROGRAM = """
import hashlib, os, sys, time
from pathlib import Path
from ulmfit import cli
from ulmfit.data.splits import Split

from ulmfit.tokenizer.tokenizer import Tokenizer

how, folder = sys.argv[1], Path(sys.argv[2])
batches = Split.batches

def endless(self, *args, **kwargs):
    for number, batch in enumerate(batches(self, 10, *args[1:], **kwargs)):
        yield batch
        if number == 6 and list(folder.glob("cache/*.partial")):
            (folder / "there").touch()
            time.sleep(600)

def native(texts, **options):
    (folder / "there").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # runs no Python for minutes, without the lock

if how == "native":
    Tokenizer.train = native
else:
    Split.batches = endless
raise SystemExit(cli.main(["train-lm", *sys.argv[3:]]))
"""


def wait_for(file: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["endless", "native"])
def test_two_ranks_stop_when_one_is_asked(how, reviews, tmp_path):
    """Rank 1 waits in a collective for rank 0, which tokenises or is in native code; a signal to rank 1 ends both."""
    (tmp_path / "program.py").write_text(PROGRAM)
    config = runs.lm_config(tmp_path / "run", data=str(reviews), preset="tiny", max_steps=1)
    command = [sys.executable, str(tmp_path / "program.py"), how, str(tmp_path), *runs.arguments(config)]
    processes = two_processes(command, [], [], cache=tmp_path / "cache")
    wait_for(tmp_path / "there", processes)
    processes[1].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    told = [process.communicate(timeout=60) for process in processes]
    assert time.monotonic() - begun < 15 * BOUND  # busy machines
    assert [process.returncode for process in processes] == [0, 0], told
    assert not (tmp_path / "run").exists()
    if how == "endless":
        assert list(tmp_path.glob("cache/*.partial/progress.json"))
