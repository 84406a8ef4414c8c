"""The two commands of a rented GPU as a whole, on a CPU: minutes, so by ULMFIT_LONG."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pandas
import pytest

from tests.training.runs import ROOT, environment
from ulmfit.data import sample
from ulmfit.inference import TextClassifier

pytestmark = [
    pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="minutes: set ULMFIT_LONG, as tests/run_long.sh does"),
    pytest.mark.timeout(1800),
]
STAGES = ("wikipedia", "imdb", "classifier")


def run(script, *options, **more):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("packed")
    env = environment(folder / "cache", PYTHONPATH=str(ROOT))
    rows = [
        {"text": row["text"], "label": sample.LABELS[row["label"]]} for row in islice(sample.generate("train"), 260)
    ]
    (folder / "imdb").mkdir()
    for name, part in {"train": rows[:100], "test": rows[100:140], "unsup": rows[140:200]}.items():
        pandas.DataFrame(part if name != "unsup" else [{"text": row["text"]} for row in part]).to_parquet(
            folder / "imdb" / f"{name}.parquet"
        )
    pandas.DataFrame({"text": [row["text"] for row in rows[200:]]}).to_parquet(folder / "wikipedia.parquet")
    options = [
        "make",
        "--wikipedia",
        folder / "wikipedia.parquet",
        "--imdb",
        folder / "imdb",
        "--output",
        folder / "packed",
    ]
    made = run("gpu_pack.py", *options, "--tokens", 2000, "--vocab-size", 500, "--room", 0.02, env=env)
    assert made.wait() == 0, made.stdout.read()
    return folder / "packed", env


def wait_for(path: Path, words: str, process: subprocess.Popen) -> None:
    while not (path.exists() and words in path.read_text()):
        assert process.poll() is None, "it ended too early"
        time.sleep(0.2)


def test_killed_in_the_middle_it_ends_in_a_table_and_a_model(packed, tmp_path):
    pieces, env = packed
    (tmp_path / "probe.json").write_text('{"precision": "fp32", "loss": "fused", "tokens_per_second": 3000}')
    options = [
        "--packed",
        pieces / "reproduction",
        pieces / "probe",
        "--probe",
        tmp_path / "probe.json",
        "--sizes",
        "tiny",
    ]
    options += [
        "--output",
        tmp_path / "out",
        "--work",
        tmp_path / "work",
        "--threads",
        1,
        "--clock",
        2,
        "--seconds",
        3000,
    ]  # on a busy machine too
    first = run("gpu_reproduce.py", *options, env=env, start_new_session=True)
    wait_for(tmp_path / "work" / "results.jsonl", '"event": "began", "stage": "imdb"', first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = run("gpu_reproduce.py", *options, env=env)
    printed, _ = second.communicate()
    assert second.returncode == 0, printed
    assert "| classifier | imdb |" in printed and "test reviews**" in printed and "wikipedia" in printed
    events = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events if event["event"] == "start"] == [[], ["wikipedia"]]
    assert [event["stage"] for event in events if event["event"] == "weights"] == list(STAGES)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(files) <= 8 and "test_logits.npz" in files and "model.tar.00" in files
    joined = run("gpu_pack.py", "join", tmp_path / "out" / "model.tar.json", "--output", tmp_path / "model", env=env)
    assert joined.wait() == 0
    assert TextClassifier.from_pretrained(tmp_path / "model").predict("a fine film").label in ("neg", "pos")


def test_the_probe_on_a_cpu(tmp_path):
    env = environment(tmp_path / "cache", PYTHONPATH=str(ROOT), OUT=str(tmp_path / "out"))
    done = run("gpu.py", "--device", "cpu", "--tiny", "--scale", 20, env=env)
    printed, _ = done.communicate()
    assert done.returncode == 0, printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
    checked = [row for row in rows if "right" in row]
    assert all(row["right"] for row in checked) and len(checked) >= 8
    assert {row["part"] for row in rows if row.get("skipped") == "no CUDA"} >= {"correctness", "step", "peer"}
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["precision"] == "fp32"
