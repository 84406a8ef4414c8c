"""Parts that raise, hang or take their process with them leave the others alone. The workers here need no torch."""

import json
import os
import sys

import gpu_workers
import pytest

WORKER = f"""
import os, signal, sys, time
sys.path.insert(0, {os.path.dirname(gpu_workers.__file__)!r})
import gpu_workers

def good():
    print("what libraries print")
    os.write(1, b"and C's")
    yield {{"number": 1, "bad": float("nan")}}
    yield {{"number": 2}}

def raises():
    yield {{"number": 1}}
    raise ValueError("broken\\nkernel")

def hangs():
    yield {{"number": 1}}
    signal.pause()

def dies():
    yield {{"number": 1}}
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)

gpu_workers.work({{f.__name__: f for f in (good, raises, hangs, dies)}})
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script)]


def test_whatever_becomes_of_a_part_the_others_follow(command):
    told = []
    limits = {"raises": 60, "hangs": 1, "dies": 60, "good": 60}
    outcomes = gpu_workers.run_parts(limits, command, total=200, tell=lambda part, row: told.append((part, row)))
    assert outcomes["raises"].fault == "ValueError: broken kernel"
    assert outcomes["hangs"].fault == "cut off after 1 s"
    assert outcomes["dies"].fault == "its process ended with -11"
    assert outcomes["good"].fault == "" and outcomes["good"].rows == [{"number": 1, "bad": "nan"}, {"number": 2}]
    assert [part for part, row in told if row.get("number") == 1 and part != "hangs"] == ["raises", "dies", "good"]
    ends = {part: row for part, row in told if "seconds" in row}
    assert list(ends) == list(limits) and "fault" not in ends["good"]


def test_parts_for_which_no_time_is_left_say_so(command):
    outcomes = gpu_workers.run_parts({"hangs": 60, "good": 60}, command, total=0.5, tell=lambda *_: None)
    assert all("left out: the" in outcome.fault and not outcome.rows for outcome in outcomes.values())


def test_the_default_parts_come_to_200_seconds_at_most():
    import gpu

    assert sum(gpu.PARTS[name] for name in gpu.DEFAULT) <= gpu.TOTAL <= 200


def test_the_files_are_written_row_by_row(tmp_path):
    import gpu

    report = gpu.Report(str(tmp_path / "out"), "title")
    report.tell("correctness", {"net": "lm", "precision": "fp32", "loss": "plain", "right": True, "off": 1e-7})
    assert (
        json.loads((tmp_path / "out" / "gpu.jsonl").read_text())
        == {"part": "correctness"} | report.rows["correctness"][0]
    )
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["precision"] == "fp32"
    assert not (tmp_path / "out" / "gpu.md").exists()
    report.tell("correctness", {"seconds": 2.0, "fault": "cut off after 2 s"})
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "| lm | fp32 | plain | True | 1.0e-07 |" in text and "**cut off after 2 s**" in text
    wrong = gpu_workers.Outcome()
    wrong.rows = [{"right": False}]
    assert gpu.wrong(wrong) and not gpu.wrong(gpu_workers.Outcome())
