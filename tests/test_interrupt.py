"""Ctrl-C during a training that Python code has called: in a process, a notebook and a launch."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

import ulmfit
from tests.tiers import long_tier
from tests.training import runs as short
from tests.training import world
from ulmfit.run import checkpoint
from ulmfit.training.loop import Loop

CONFIG = {"preset": "tiny", "max_steps": 60}  # the loop looks for a request every 20 steps at most


def pressing(at: dict[int, int]):
    """Within it Ctrl-C is pressed so many times during these steps."""
    step = Loop._step

    def pressed(loop, batch):
        for _ in range(at.get(loop.position.step, 0)):
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop, batch)

    return mock.patch.object(Loop, "_step", pressed)


def test_the_first_saves_a_checkpoint_and_the_call_goes_on_from_there(tmp_path, reviews, capsys):
    config = short.lm_config(tmp_path / "run", data=reviews, **CONFIG)
    before = signal.getsignal(signal.SIGINT)
    with pressing({2: 1}), pytest.raises(ulmfit.TrainingInterrupted) as caught:
        ulmfit.train_language_model(config)
    assert isinstance(caught.value, KeyboardInterrupt) and caught.value.run_dir == tmp_path / "run"
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints", warn=pytest.fail)
    assert newest.name == f"step-{caught.value.step:08d}" and 2 < caught.value.step < 60
    assert str(newest.parent) in str(caught.value) and "the same call goes on" in str(caught.value)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("preempted", "KeyboardInterrupt")
    assert "Ctrl-C again to leave at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before
    assert ulmfit.train_language_model(config).step == 60


def test_the_second_leaves_at_once_and_the_call_can_be_made_again(tmp_path, reviews):
    config = short.lm_config(tmp_path / "run", data=reviews, **CONFIG)
    with pressing({2: 2}), pytest.raises(KeyboardInterrupt) as caught:
        ulmfit.train_language_model(config)
    assert not isinstance(caught.value, ulmfit.TrainingInterrupted)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert ulmfit.train_language_model(config).state == "done"


@pytest.mark.slow
def test_before_the_first_step_there_is_nothing_to_save(tmp_path, reviews):
    config = short.lm_config(tmp_path / "run", data=reviews, **CONFIG)
    with mock.patch("ulmfit.training.setup.open_any_corpus", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt):
            ulmfit.train_language_model(config)
    assert not (tmp_path / "run").exists()
    assert ulmfit.train_language_model(config).state == "done"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["explain", "{clf}", "a film"], "torch.autograd.grad"),
        (["explain", "{clf}", "a film", "--html", "{tmp}/out"], "ulmfit.coloured.page"),
        (["top-losses", "{clf}"], "ulmfit.training.row_losses.scored_split"),
        (["report", "{clf}", "--output", "{tmp}/out"], "ulmfit.report.judged.scored_split"),
        (["export", "--model", "{clf}", "--output", "{tmp}/out"], "safetensors.torch.save_file"),
        (["export", "--model", "{clf}", "--model", "{clf}", "--output", "{tmp}/out"], "safetensors.torch.save_file"),
        (
            ["export", "--model", "{clf}", "--output", "{tmp}/out", "--to", "transformers"],
            "safetensors.torch.save_file",
        ),
        (["export", "--model", "{clf}", "--output", "{tmp}/out", "--to", "fastai"], "torch.save"),
        (["import-fastai", "{tmp}/a.pth", "{tmp}/itos.pkl", "{tmp}/out"], "ulmfit.model.fastai_import.load_fastai"),
        (["show", "--data", "{data}"], "ulmfit.training.setup.tokenised"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value.rpartition(".")[2],
)
def test_commands_that_save_nothing_end_without_a_word_and_leave_no_half(words, where, runs, reviews, tmp_path, capfd):
    from ulmfit import cli

    words = [word.format(clf=runs.clf, data=reviews, tmp=tmp_path) for word in words]

    def pressed(*_, **__):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not stopped")

    with mock.patch(where, pressed):
        assert cli.main(words) == 130
    assert "Traceback" not in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_a_training_in_another_thread_leaves_signals_alone(tmp_path, reviews):
    results, before = [], signal.getsignal(signal.SIGINT)
    config = short.lm_config(tmp_path / "run", data=reviews, **CONFIG)
    thread = threading.Thread(target=lambda: results.append(ulmfit.train_language_model(config)))
    thread.start()
    while thread.is_alive():
        assert signal.getsignal(signal.SIGINT) == before
        thread.join(0.05)
    assert results[0].state == "done"


def steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"event": "train"') if file.exists() else 0


@pytest.mark.slow
def test_the_stop_button_of_a_notebook(tmp_path, reviews):
    manager_of = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    cell = (
        "import ulmfit\n"
        "from tests.training import runs\n"
        f"config = runs.lm_config({str(tmp_path / 'run')!r}, data={str(reviews)!r}, preset='tiny', max_steps=5000)\n"
        "ulmfit.train_language_model(config)\n"
    )
    manager, client = manager_of.start_new_kernel(cwd=str(short.ROOT), env=short.environment(tmp_path / "cache"))
    try:
        # A kernel aborts what is queued for a moment after an error; this test wants its next cell run.
        asked = client.execute(cell, stop_on_error=False)
        deadline = time.monotonic() + 120
        while steps(tmp_path / "run") < 3:
            assert time.monotonic() < deadline and manager.is_alive()
            time.sleep(0.05)
        manager.interrupt_kernel()
        reply = answer(client, asked)
        assert reply["status"] == "error" and reply["ename"] == "TrainingInterrupted", reply
        assert "the same call goes on from there" in reply["evalue"]
        # The kernel lives, and the same call goes on; this time a time limit ends it.
        asked = client.execute("config.max_time = 1e-3; result = ulmfit.train_language_model(config)")
        assert answer(client, asked)["status"] == "ok"
        reply = answer(client, client.execute("assert result.step > 3 and result.state == 'preempted'"))
        assert reply["status"] == "ok", reply
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints", warn=pytest.fail) is not None


def answer(client, asked: str) -> dict:
    """The reply to a cell."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            reply = client.get_shell_msg(timeout=1)
        except queue.Empty:
            continue
        if reply["parent_header"].get("msg_id") == asked:
            return reply["content"]
    raise AssertionError("the kernel does not answer")


LAUNCHES = {
    "accelerate launch": ["-m", *world.LAUNCHERS["accelerate"], "2", "-m", "tests.interrupted", "FOLDER"],
    "notebook_launcher": ["-m", "tests.interrupted", "FOLDER", "notebook_launcher"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["notebook_launcher", pytest.param("accelerate launch", marks=long_tier("the other; test_stop.py"))]
)
def test_two_processes_stop_together(name, tmp_path):
    """Ctrl-C as a terminal sends it: to the launcher, and to those of its processes that are in its group."""
    short.write_reviews(tmp_path / "reviews.csv", 120)
    command = [sys.executable, *(str(tmp_path) if word == "FOLDER" else word for word in LAUNCHES[name])]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=short.ROOT, env=short.environment(tmp_path / "cache"), stdout=log,
                                   stderr=log, start_new_session=True)  # fmt: skip
    run, deadline = tmp_path / "run", time.monotonic() + 150
    while steps(run) < 3:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=100)
    told = (tmp_path / "log").read_text()
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted", told[-4000:]
    for rank in (0, 1):
        assert told.count(f"rank {rank}: {status['step']} steps: interrupted") == 1, told[-4000:]
    newest = checkpoint.latest(run / "checkpoints", warn=pytest.fail)
    assert newest.name == f"step-{status['step']:08d}"
