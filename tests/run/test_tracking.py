"""The record of a run: complete, valid, the same after an interruption, and written by rank 0 alone."""

from __future__ import annotations

import io
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ulmfit.run import time_left, tracking
from ulmfit.run.metrics_file import cut_metrics
from ulmfit.run.tracking import Tracker, memory_mib
from ulmfit.run_scores import CALIBRATION

TRAIN_KEYS = [
    "event",
    "step",
    "stage",
    "epoch",
    "tokens",
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "data_wait",
    "memory",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tracker(directory: Path, **options) -> Tracker:
    return Tracker(
        directory,
        **({"is_main": True, "total_steps": 100, "log_every": 10, "task": "lm", "console": io.StringIO()} | options),
    )


def log_step(log: Tracker, step: int, **fields) -> None:
    log.log_train(
        step,
        **(
            {
                "stage": 0,
                "epoch": 0.5,
                "tokens": step * 50,
                "loss": 1 / step,
                "lr": 1e-3,
                "grad_norm": 0.25,
                "tokens_per_second": 1234.5,
                "data_wait": 0.01,
                "memory": 99.0,
            }
            | fields
        ),
    )


def lines(directory: Path) -> list[dict]:
    def no_such_number(name):
        raise AssertionError(f"{name} is not JSON")

    text = (directory / tracking.METRICS).read_text()
    return [json.loads(line, parse_constant=no_such_number) for line in text.splitlines()]


def board(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory / tracking.TENSORBOARD), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    """In the order of writing: of two files of one second, TensorBoard may read the later one first."""
    events = sorted(board(directory).Scalars(tag), key=lambda event: event.wall_time)
    return [(event.step, round(event.value, 5)) for event in events]


def text_of(directory: Path, tag: str) -> str:
    return board(directory).Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_a_training_line_has_the_agreed_keys(tmp_path):
    log = tracker(tmp_path)
    log_step(log, 10, momentum=0.8, lrs={"embedding": 1e-4, "head": 1e-3}, skipped=2)
    log.close()
    (line,) = lines(tmp_path)
    assert list(line) == [*TRAIN_KEYS, "skipped"]
    assert line["event"] == "train" and line["step"] == 10 and line["loss"] == 0.1 and line["skipped"] == 2
    expected = {
        "language model/loss/train": 0.1,
        "language model/perplexity/train": math.exp(0.1),
        "optimizer/learning rate": 1e-3,
        "optimizer/momentum": 0.8,
        "optimizer/gradient norm": 0.25,
        "optimizer/skipped steps in a row": 2,
        "pace/tokens a second": 1234.5,
        "pace/share of time waiting for data": 0.01,
        "pace/memory in MiB": 99,
        "rates by layer/1 embedding": 1e-4,
        "rates by layer/2 head": 1e-3,
    }
    assert set(board(tmp_path).Tags()["scalars"]) == expected.keys()
    for name, value in expected.items():
        assert curve(tmp_path, name) == [(10, pytest.approx(value, abs=1e-5))]
    assert not [entry for entry in (tmp_path / tracking.TENSORBOARD).iterdir() if entry.is_dir()]


def test_a_sampled_loss_is_called_so_and_has_no_perplexity(tmp_path):
    console = io.StringIO()
    log = tracker(tmp_path, sampled=True, console=console)
    log_step(log, 10, loss=0.5, accuracy=0.25)
    log.log_eval(10, "valid", loss=3.0, perplexity=20.1)
    log.close()
    train, valid = lines(tmp_path)
    assert train["loss"] == 0.5 and train["sampled"] is True and "sampled" not in valid
    tags = board(tmp_path).Tags()["scalars"]
    assert {f"language model/{name}" for name in ("sampled loss/train", "sampled accuracy/train", "loss/valid", "perplexity/valid")} <= set(tags)  # fmt: skip
    assert not {f"language model/{name}/train" for name in ("loss", "accuracy", "perplexity")} & set(tags)
    first, second = console.getvalue().splitlines()
    assert "sampled loss 0.5000  lr" in first and "perplexity" not in first and "perplexity 20.1" in second


def test_a_classifier_has_no_perplexity(tmp_path):
    log = tracker(tmp_path, task="clf")
    log_step(log, 10)
    log.close()
    tags = board(tmp_path).Tags()["scalars"]
    assert "classifier/loss/train" in tags and not [tag for tag in tags if "perplexity" in tag]


def test_numbers_that_json_lacks_become_null(tmp_path):
    log = tracker(tmp_path)
    log_step(log, 10, loss=math.nan, grad_norm=torch.tensor(math.inf))
    log_step(log, 20, loss=1e9)  # its perplexity is no float
    log.log_eval(20, "valid", loss=np.float32(0.5), accuracy=torch.tensor(0.75), per_class=[math.nan, 1.0])
    log.close()
    first, _, last = lines(tmp_path)
    assert first["loss"] is None and first["grad_norm"] is None
    assert last["loss"] == 0.5 and last["accuracy"] == 0.75 and last["per_class"] == [None, 1.0]


def test_an_evaluation_reaches_all_three(tmp_path):
    console = io.StringIO()
    log = tracker(tmp_path, console=console)
    log.log_eval(
        50, "valid", loss=0.5, accuracy=0.873, tokens=12345, confusion=[[3, 1], [0, 4]], labels=["neg|x", "pos"]
    )
    log.close()
    (line,) = lines(tmp_path)
    assert line == {
        "event": "eval",
        "split": "valid",
        "step": 50,
        "loss": 0.5,
        "accuracy": 0.873,
        "tokens": 12345,
        "confusion": [[3, 1], [0, 4]],
        "labels": ["neg|x", "pos"],
    }
    assert curve(tmp_path, "language model/accuracy/valid") == [(50, 0.873)]
    assert "valid after step 50:  loss 0.5000  accuracy 0.8730  tokens 12,345" in console.getvalue()


def run(directory: Path, *, start: int, end: int, checkpoint: int | None = None) -> None:
    """A run that logs at every 10 steps, evaluates at every 20 and starts a stage at 40."""
    log = tracker(directory, start_step=start, total_steps=80)
    if start == 40:
        log.log_eval(40, "valid", loss=1 / 40, seconds=os.urandom(1)[0])  # logged again: not written twice
    if start <= 40:
        for at in (0, 40):
            if at >= start and at < end:
                log.log_event("stage", step=at, index=at // 40)
            for step in range(max(at, start) + 10, min(at + 40, end) + 10, 10):
                log_step(log, step, tokens_per_second=os.urandom(1)[0])
                if step % 20 == 0:
                    log.log_eval(step, "valid", loss=1 / step, seconds=os.urandom(1)[0])
                if step == checkpoint:
                    log.flush()
    log.close()


def without_timings(directory: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in ("tokens_per_second", "seconds")}
        for line in lines(directory)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "killed"), [(40, 60), (40, 41), (40, 40), (0, 60)])
def test_an_interrupted_run_leaves_the_same_record(tmp_path, checkpoint, killed):
    run(tmp_path / "whole", start=0, end=80)
    run(tmp_path / "cut", start=0, end=killed)
    path = tmp_path / "cut" / tracking.METRICS
    with open(path, "a") as file:
        file.write('{"event": "train", "step": 70, "lo')  # torn by the kill
    time.sleep(1.1)  # TensorBoard orders the files of one process by whole seconds; a real restart takes longer
    run(tmp_path / "cut", start=checkpoint, end=80)
    assert without_timings(tmp_path / "cut") == without_timings(tmp_path / "whole")
    for tag in ("language model/loss/train", "language model/loss/valid", "language model/perplexity/train"):
        assert curve(tmp_path / "cut", tag) == curve(tmp_path / "whole", tag)
    assert [step for step, _ in curve(tmp_path / "cut", "language model/loss/train")] == list(range(10, 90, 10))
    assert not list((tmp_path / "cut").glob(".*"))


def test_a_temperature_is_logged_once_though_another_number_of_processes_finds_other_last_bits(tmp_path):
    for found in (0.2753784770091454, 0.27537847133440585):
        log = tracker(tmp_path, start_step=40, total_steps=40)
        log.log_event(CALIBRATION, step=40, split="valid", temperature=found)
        log.close()
    assert [line["temperature"] for line in lines(tmp_path)] == [0.2753784770091454]


def test_a_torn_last_line_is_dropped_even_if_it_is_json(tmp_path):
    path = tmp_path / tracking.METRICS
    path.write_text('{"event": "a", "step": 1}\n[]\n\xff\n{"event": "b", "step": 2}', encoding="latin-1")
    assert cut_metrics(path, 5) == set()
    assert path.read_text() == '{"event": "a", "step": 1}\n'


def test_a_run_that_begins_anew_begins_with_an_empty_record(tmp_path):
    path = tmp_path / tracking.METRICS
    path.write_text('{"event": "stage", "step": 0}\n{"event": "b", "step": 2}\n')
    assert cut_metrics(path, 0) == set() and path.read_text() == ""
    assert cut_metrics(tmp_path / "none", 0) == set()


def test_torn_tensorboard_files_do_not_hide_the_rest(tmp_path):
    log = tracker(tmp_path)
    log_step(log, 10)
    log.flush()
    (events,) = (tmp_path / tracking.TENSORBOARD).iterdir()
    with open(events, "ab") as file:
        file.write(b"\x18\x00\x00\x00torn")
    # A resumed process's file has a later name.
    again = tracker(tmp_path, start_step=10)
    log_step(again, 20)
    again.close()
    assert [step for step, _ in curve(tmp_path, "language model/loss/train")] == [10, 20]


def test_what_was_flushed_is_there_without_a_close(tmp_path):
    log = tracker(tmp_path)
    log_step(log, 10)
    log_step(log, 20)
    log.flush()
    assert curve(tmp_path, "language model/loss/train") == [(10, 0.1), (20, 0.05)]
    assert len(lines(tmp_path)) == 2
    log.close()


def test_other_ranks_do_nothing(tmp_path, capfd):
    log = Tracker(tmp_path / "run", is_main=False, total_steps=10, log_every=1)
    log_step(log, 1)
    log.log_eval(1, "valid", loss=1.0)
    log.log_text(1, "t", "x")
    log.log_event("stage", step=1)
    log.log_hparams({"a": 1}, {"b": 2.0, "c": "r\udcff.csv"})
    log.log_table("t", ["a"], [["b"]])
    log.log_result(1, {"valid": {"loss": 1.0}})
    log.print("x")
    log.advance(1)
    log.flush()
    log.close()
    assert not (tmp_path / "run").exists() and capfd.readouterr() == ("", "")


def test_which_steps_are_logged(tmp_path):
    log = Tracker(tmp_path, is_main=False, total_steps=25, log_every=10)
    assert [step for step in range(1, 26) if log.due(step)] == [10, 20, 25]


def test_lines_only_where_there_is_no_terminal(tmp_path, capsys):
    log = tracker(tmp_path, console=None)
    log.advance(9)
    log_step(log, 10, loss=2.0)
    log.close()
    out, err = capsys.readouterr()
    assert out.startswith(
        "step  10/100  epoch 0.50  stage 0  loss 2.0000  perplexity 7.4  lr 1.00e-03  1,234 tokens/s  left "
    )
    assert out.count("\n") == 1 and "\r" not in out and err == ""


def test_a_terminal_gets_a_bar_that_starts_where_the_run_goes_on(tmp_path):
    terminal = Terminal()
    log = tracker(tmp_path, console=terminal, start_step=40)
    assert "40/100" in terminal.getvalue()
    log._bar.mininterval = 0
    log.advance(60)
    assert "60/100" in terminal.getvalue()
    log_step(log, 60)
    assert "\rstep  60/100  epoch 0.50" in terminal.getvalue()  # the bar was cleared before the line
    log.close()


def test_the_time_left_counts_from_the_resumed_step(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    console = io.StringIO()
    log = tracker(tmp_path, console=console, start_step=40)
    now[0] += 100
    log_step(log, 60)
    now[0] += 36000
    log_step(log, 70)
    log.close()
    first, second = console.getvalue().splitlines()
    assert first.endswith("left 3:20") and second.endswith("left 10:01:40")


def test_the_time_left_knows_that_stages_differ_in_speed(tmp_path, monkeypatch):
    """A stage of the head alone is faster: it told a quarter of the time left of the whole."""
    now = [0.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    left = time_left.TimeLeft([(10, 1.0), (30, 4.0)])
    assert math.isnan(left.seconds(0))
    for step in range(1, 41):
        now[0] += 2 if step <= 10 else 5  # four times the work, but not four times as long
        left.passed(step)
        if step == 5:
            assert left.seconds(step) == pytest.approx(5 * 2 + 30 * 8)
        if step == 10:
            assert left.seconds(step) == pytest.approx(30 * 8)  # no step of the next stage is done
        if step > 10:
            assert left.seconds(step) == pytest.approx((40 - step) * 5)
    resumed = time_left.TimeLeft([(10, 1.0), (30, 4.0)], start_step=20)
    now[0] += 30
    assert resumed.seconds(30) == pytest.approx(30)


@pytest.mark.parametrize("bar", [False, True])
def test_a_console_that_went_away_does_not_stop_training(tmp_path, bar):
    class Hung(Terminal if bar else io.StringIO):
        gone = False

        def write(self, text):
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    console = Hung()
    log = tracker(tmp_path, console=console)
    log._bar.mininterval = 0
    console.gone = True
    log.advance(9)
    for step in (10, 20):
        log_step(log, step)
        log.advance(step)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]


def test_memory_is_in_mib():
    before = memory_mib()
    assert 10 < before < 1_000_000
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert memory_mib() >= before and block.sum() == 64 * 2**20
