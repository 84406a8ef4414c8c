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
#: Read at the start of every process: what a GPU machine without a package index does not have.
BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("datasets", "tyro", "dill", "multiprocess", "typeguard", "docstring_parser"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    return {"PYTHONPATH": f"{tmp_path / 'bare'}{os.pathsep}{ROOT}"}


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


def test_killed_in_the_middle_it_ends_in_a_table_and_a_model(packed, bare, tmp_path):
    pieces, env = packed
    there = env | bare
    (tmp_path / "probe.json").write_text('{"precision": "fp32", "loss": "fused", "tokens_per_second": 300}')
    options = ["--packed", pieces / "reproduction", pieces / "probe", "--probe", tmp_path / "probe.json"]
    options += ["--output", tmp_path / "out", "--work", tmp_path / "work", "--sizes", "tiny", "--threads", 1]
    options += ["--clock", 2, "--seconds", 3000]  # its epochs end it long before, on a busy machine too
    first = run("gpu_reproduce.py", *options, env=there, start_new_session=True)
    wait_for(tmp_path / "work" / "results.jsonl", '"event": "began", "stage": "imdb"', first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = run("gpu_reproduce.py", *options, env=there)
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


def test_the_probe_on_a_cpu(bare, tmp_path):
    env = environment(tmp_path / "cache", OUT=str(tmp_path / "out"), **bare)
    done = run("gpu.py", "--device", "cpu", "--tiny", "--scale", 20, env=env)
    printed, _ = done.communicate()
    assert done.returncode == 0, printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
    checked = [row for row in rows if "right" in row]
    assert all(row["right"] for row in checked) and len(checked) >= 8
    assert {row["part"] for row in rows if row.get("skipped") == "no CUDA"} >= {"correctness", "step", "peer"}
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["precision"] == "fp32"
