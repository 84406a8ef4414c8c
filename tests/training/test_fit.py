"""The whole job: equal to its separate trainings, and resumable in each of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import cli
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import TrainingInterrupted, UserError
from ulmfit.fit_config import stage_configs
from ulmfit.training.loop import Loop

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path) -> Path:
    runs.write_reviews(tmp_path / "reviews.csv", 120)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished job on the reviews of `folder` without its baseline. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    runs.write_reviews(folder / "reviews.csv", 120)
    result = ulmfit.fit(job.config(folder, "fit"))
    assert result.state == "done" and result.model_dir == folder / "fit" / "model"
    return folder / "fit"


def equal(a: Path, b: Path) -> bool:
    first, second = runs.weights(a), runs.weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def state(run: Path) -> tuple[str, str]:
    status = json.loads((run / "status.json").read_text())
    return status["state"], status["stage"]


def test_its_models_are_those_of_the_separate_trainings(folder, whole):
    job.apart(folder)
    assert state(whole) == ("done", "done") and equal(whole / "lm", folder / "lm")
    assert equal(whole / "clf", folder / "clf") and equal(whole, folder / "clf")
    assert runs.metrics(whole / "clf") == runs.metrics(folder / "clf")
    assert ulmfit.TextClassifier.from_pretrained(whole).predict("a good film").label in ("neg", "pos")
    # An ordinary run directory: the separate call with the separate options finds it finished.
    assert ulmfit.train_classifier(stage_configs(job.config(whole.parent, "fit"))[1]).state == "done"


def test_two_processes_train_what_the_separate_trainings_of_two_train(folder, capsys):
    """And with probabilities as targets, what one process trains. A second classifier and n-grams are scored with it; these
    learn of both on texts without a label, and are what they are with one process."""
    rows = list(csv.DictReader((folder / "reviews.csv").read_text().splitlines()))
    with open(folder / "soft.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "neg", "pos"])
        for number, row in enumerate(rows):
            sure = 0.6 + 0.3 * number / len(rows)
            table.writerow([row["text"], *((1 - sure, sure) if row["label"] == "pos" else (sure, 1 - sure))])
    with open(folder / "reviews.csv", "a", newline="") as file:
        csv.writer(file).writerows([f"{row['text']} So it is.", ""] for row in (*rows, *rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.distributed.fit_and_apart", folder],
        cwd=runs.ROOT, env=runs.environment(folder / "cache"), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("end\n") == 2, done.stdout + done.stderr
    assert equal(folder / "fit/lm", folder / "lm") and equal(folder / "fit/clf", folder / "clf")
    one = job.soft(folder, "soft1")
    assert runs.distance(runs.weights(one), runs.weights(folder / "soft2")) < 1e-10
    assert done.stdout.count("majority class") == 2  # in the verdict and in the table of rank 0 alone
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", str(folder / "fit"), "--split", "valid"]) == 0
    alone = json.loads(capsys.readouterr().out)
    told = json.loads((folder / "fit/summary.json").read_text())["systems"]["ulmfit"]["valid"]
    assert alone["models"] == 3 and alone["loss"] == pytest.approx(told["loss"], rel=1e-5)
    ngrams = runs.content(folder / "fit/ensemble.json")["ngrams"]
    (folder / "fit/ensemble.json").unlink()
    of_two = load_file(folder / "fit/ngrams/model.safetensors")
    assert ulmfit.fit(job.config(folder, "fit", ensemble=2, ngrams=True)).state == "done"
    again = runs.content(folder / "fit/ensemble.json")["ngrams"]
    assert ngrams["taught"] == again["taught"] > 100 and ngrams["gain"] == pytest.approx(again["gain"], rel=1e-4)
    of_one = load_file(folder / "fit/ngrams/model.safetensors")
    assert of_one.keys() == of_two.keys() and runs.distance(of_one, of_two) < 1e-4


def stop_at(monkeypatch, run: Path, task: str, number: int) -> None:
    """Write the job's stop file before a step of a training, and let every step look for it."""
    step = Loop._step

    def stopping(loop: Loop, batch: object) -> object:
        loop._agreement._every = 1
        if (loop.config.task, loop.position.step) == (task, number):
            (run / "stop").touch()
        return step(loop, batch)

    monkeypatch.setattr(Loop, "_step", stopping)


@pytest.mark.parametrize("stage", ["lm", "clf"])
def test_a_stop_in_either_training_is_gone_on_from(folder, whole, stage, monkeypatch):
    run = folder / "run"
    stop_at(monkeypatch, run, stage, 2)
    stopped = ulmfit.fit(job.config(folder, "run"))
    monkeypatch.undo()
    assert stopped.state == "preempted" and state(run) == ("preempted", stage)
    assert not (run / "model").exists() and not stopped.summary
    with pytest.raises(UserError, match="call it again"):
        stopped.model()
    done = ulmfit.fit(output_dir=run)  # what is not given is as it began
    assert done.state == "done" and equal(whole, run) and equal(whole / "lm", run / "lm")
    assert not (run / "stop").exists() and runs.metrics(whole / "clf") == runs.metrics(run / "clf")


def test_a_signal_in_the_baseline_ends_it_at_once(folder, monkeypatch):
    from ulmfit.training import baseline

    def asked(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it goes on")

    monkeypatch.setattr(baseline, "_fit", asked)
    stop = StopRequest.install()
    try:
        assert ulmfit.fit(job.config(folder, "run", baseline=True), stop=stop).state == "preempted"
    finally:
        for number, handler in stop._former.items():
            signal.signal(number, handler)
    assert state(folder / "run") == ("preempted", "baseline")


def test_a_signal_to_one_rank_ends_the_baseline_on_another(folder, monkeypatch):
    from ulmfit.training import baseline

    there = folder / "there"

    def endless(*_: object) -> None:
        there.touch()
        time.sleep(600)

    def ask() -> None:
        while not there.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def action(rank: int) -> str:
        stop = StopRequest.install()
        if rank == 1:
            threading.Thread(target=ask, daemon=True).start()
        return ulmfit.fit(job.config(folder, "run", baseline=True), stop=stop).state

    monkeypatch.setattr(baseline, "_fit", endless)
    assert on_ranks(2, action, folder / "ranks") == ["preempted", "preempted"]
    assert state(folder / "run") == ("preempted", "baseline")


def test_a_failure_is_told_and_ctrl_c_is_a_stop(folder, monkeypatch):
    step = Loop._step

    def failing(error):
        def fail(loop: Loop, batch: object) -> object:
            if loop.config.task == "clf" and loop.position.step == 2:
                raise error
            return step(loop, batch)

        return fail

    monkeypatch.setattr(Loop, "_step", failing(RuntimeError("the disk is on fire")))
    with pytest.raises(RuntimeError, match="on fire"):
        ulmfit.fit(job.config(folder, "run"))
    status = json.loads((folder / "run" / "status.json").read_text())
    assert status["state"] == "failed" and "the disk is on fire" in status["error"] and status["stage"] == "clf"
    monkeypatch.setattr(Loop, "_step", step)
    with pytest.raises(TrainingInterrupted):
        ulmfit.fit(job.config(folder, "run"), stop=runs.StopAtCall(1, ctrl_c=True))
    assert state(folder / "run") == ("preempted", "clf")


def test_damage_of_its_files_costs_no_training(whole, capsys, monkeypatch):
    place = shutil.copytree(whole, whole.parent / "damaged")
    config = job.config(whole.parent, "damaged")
    monkeypatch.setattr(Loop, "_step", pytest.fail)
    for name in ("config.json", "baseline.json", "summary.json", "status.json"):
        (place / name).write_text("[" * 100_000 + "]" * 100_000)
    (place / "lm" / "metrics.jsonl").write_text('{"event": "eval", "split": "valid", "step": 6}\n')
    again = ulmfit.fit(config)
    assert again.state == "done" and json.loads((place / "summary.json").read_text()) == again.summary
    assert "not finite on the valid texts" in (place / "summary.md").read_text()
    assert "config.json is damaged; going on by the options of this command" in capsys.readouterr().out
    (place / "config.json").unlink()
    assert ulmfit.fit(config).state == "done" and equal(place, whole)
    assert "config.json is missing" in capsys.readouterr().out


def test_the_language_model_reads_the_test_texts_only_when_asked(folder, monkeypatch):
    data = folder / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        runs.write_reviews(data / f"{split}.csv", 60)
    with open(data / "test.csv", "a") as file:
        file.write("quagga quagga quagga,pos\n")
    for name, options, words in (("no", {}, False), ("yes", {"lm_on_test": True}, True)):
        config = job.config(folder, name, data=str(data), recipe="blog", max_time=1e-6, **options)
        assert ulmfit.fit(config).state == "preempted" and state(folder / name) == ("preempted", "lm")
        assert ("quagga" in ulmfit.Tokenizer.from_file(folder / name / "lm/tokenizer.json").vocab) is words


def steps(run: Path, event: str = "train") -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count(f'"event": "{event}"') if file.exists() else 0


@pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="a minute: set ULMFIT_LONG, as tests/run_long.sh does")
def test_killed_in_each_stage_it_ends_with_the_same_bits(folder):
    options = ["--data", "reviews.csv", "--preset", "tiny", "--no-samples", "--threads", "1"]
    for training, bptt in (("lm", 12), ("clf", 24)):
        for name, value in {"max-steps": 60, "batch-size": 8, "bptt": bptt, "log-every": 1, "save-every": 5}.items():
            options += [f"--{training}.{name}", str(value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(runs.ROOT / "launch/cpu_2_processes.yaml"), "-m", "ulmfit", "fit", *options]  # fmt: skip
    environment = runs.environment(folder / "cache", PYTHONPATH=str(runs.ROOT))

    def start(name: str) -> subprocess.Popen:
        with open(folder / "log", "a") as log:
            return subprocess.Popen([*command, "--output-dir", name], cwd=folder, env=environment, stdout=log,
                                    stderr=log, start_new_session=True)  # fmt: skip

    assert start("whole").wait(280) == 0, (folder / "log").read_text()
    for stage in ("baseline", "lm", "clf"):
        process = start("run")
        deadline = time.monotonic() + 200
        while not (
            (folder / "run/config.json").exists() if stage == "baseline" else steps(folder / "run" / stage) > 12
        ):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        children = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _is_of(entry, str(folder))]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        assert state(folder / "run") == ("running", stage)
    assert start("run").wait(280) == 0, (folder / "log").read_text()
    for training in ("lm", "clf"):
        assert equal(folder / "whole" / training, folder / "run" / training)
        assert runs.metrics(folder / "whole" / training) == runs.metrics(folder / "run" / training)


def _is_of(pid: str, folder: str) -> bool:
    """Whether a process works in the folder."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == folder
    except OSError:
        return False
