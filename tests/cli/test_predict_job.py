"""predict as a job: gone on with after a kill, byte for byte; nothing of other origin is taken up or overwritten."""

from __future__ import annotations

import csv
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ulmfit
from tests.cli.inputs import fail, rows_of, write_table
from tests.distributed.ranks import on_ranks
from tests.s3_stand_in import s3_stand_in
from ulmfit import cli
from ulmfit.cli.speed import Speed
from ulmfit.resumable import resuming

pytestmark = pytest.mark.slow

SUFFIXES = ["csv", "tsv", "jsonl", "parquet", "txt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_partial_is_gone_on_with_byte_for_byte(predict, killed, suffix):
    write_table()
    whole, part = f"whole.{suffix}", f"part.{suffix}"
    predict("--data", "a.csv", "--output", whole)
    killed(3, fail)
    predict("--data", "a.csv", "--output", part, code=1)
    assert sorted(os.listdir()) == sorted(["a.csv", whole, f"{part}.partial", f"{part}.partial.json"])
    with open(f"{part}.partial", "ab") as file:
        file.write(b'20,"half a r')  # torn by the kill
    killed(100, fail)
    predict("--data", "a.csv", "--output", part)
    assert "going on after 21 rows" in predict.told.err
    assert Path(part).read_bytes() == Path(whole).read_bytes()
    assert sorted(os.listdir()) == sorted(["a.csv", whole, part])


@pytest.mark.parametrize("data", ["a.txt", "a.jsonl", "a.parquet", "parts", "docs", "a.csv.gz"])
def test_every_kind_of_input_is_gone_on_with(predict, killed, data):
    texts = [f"film {number}" for number in range(40)]
    if data == "a.txt":
        Path(data).write_text("\n".join(texts))
    elif data == "a.jsonl":
        Path(data).write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts))
    elif data == "a.parquet":
        pq.write_table(pa.table({"text": texts}), data, row_group_size=9)
    elif data == "a.csv.gz":
        Path(data).write_bytes(gzip.compress(("id,text\n" + "\n".join(rows_of(40))).encode()))
    elif data == "parts":
        Path(data).mkdir()
        write_table("parts/1.csv", 18)
        write_table("parts/2.csv", 22)
    else:
        for number, text in enumerate(texts):
            path = Path(f"docs/{'train' if number < 21 else 'test'}/{number % 2}/{number:02}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    predict("--data", data, "--output", "whole.csv")
    for chunks in (1, 2):
        killed(chunks, fail)
        predict("--data", data, "--output", "part.csv", code=1)
    killed(100, fail)
    predict("--data", data, "--output", "part.csv")
    assert Path("part.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize("what", ["data", "model", "columns", "format", "edited", "json"])
def test_what_is_of_other_origin_is_told_and_left(predict, killed, tmp_path, what):
    write_table(head="id,text")
    killed(2, fail)
    predict("--data", "a.csv", "--output", "o.csv", code=1)
    killed(100, fail)
    before = Path("o.csv.partial").read_bytes()
    more = []
    if what == "data":
        write_table(number=41)
    elif what == "model":
        shutil.copytree(Path(predict.models[0]) / "model", "other")
        config = json.loads(Path("other/config.json").read_text())
        names = config["label_names"]
        Path("other/config.json").write_text(json.dumps(config | {"label_names": names[::-1]}))
        predict.models[0] = "other"
    elif what == "columns":
        more = ["--text-column", "id,text"]
    elif what == "format":
        more = ["--output-format", "jsonl"]
    elif what == "edited":
        Path("o.csv.partial").write_bytes(before.replace(b"film", b"gilm"))
        before = Path("o.csv.partial").read_bytes()
    else:
        Path("o.csv.partial.json").unlink()
    predict("--data", "a.csv", "--output", "o.csv", *more, code=2)
    assert "o.csv.partial" in predict.told.err and "remove it to begin again" in predict.told.err
    assert Path("o.csv.partial").read_bytes() == before and not Path("o.csv").exists()
    Path("o.csv.partial").unlink()
    predict("--data", "a.csv", "--output", "o.csv", *more)
    assert Path("o.csv").exists() and not list(tmp_path.glob("o.csv.*"))


# Signals


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_done(predict, killed, number, code):
    write_table()
    before = signal.getsignal(number)
    predict("--data", "a.csv", "--output", "whole.csv")
    killed(2, lambda: os.kill(os.getpid(), number))
    predict("--data", "a.csv", "--output", "o.csv", code=code)
    assert f"stopped by {number.name}: 14 rows are in o.csv.partial" in predict.told.err
    assert not Path("o.csv").exists() and signal.getsignal(number) == before
    killed(100, fail)
    predict("--data", "a.csv", "--output", "o.csv")
    assert Path("o.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_of_two_processes_keeps_what_is_done(predict, killed, number, tmp_path):
    write_table()
    predict("--data", "a.csv", "--output", "whole.csv")
    killed(2, lambda: os.environ["RANK"] == "1" and os.kill(os.getpid(), number))
    words = ["predict", "--model", *predict.models, "--data", "a.csv", "--output", "o.csv"]
    dies = number == signal.SIGKILL
    codes = on_ranks(2, lambda rank: cli.main(words), tmp_path / "ranks", killed=[1] if dies else [])
    assert codes == ([1] if dies else [0, 0])
    assert sorted(tmp_path.glob("o.csv*")) == [tmp_path / "o.csv.partial", tmp_path / "o.csv.partial.json"]
    killed(100, fail)
    predict("--data", "a.csv", "--output", "o.csv")
    assert "going on after 28 rows" in predict.told.err
    assert Path("o.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_stop_before_the_first_row_leaves_nothing(predict, killed):
    write_table()
    killed(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    predict("--data", "a.csv", "--output", "o.csv")
    assert "nothing was predicted yet" in predict.told.err and os.listdir() == ["a.csv"]


IN_CHUNKS = """
import sys, time
sys.path.insert(0, {root!r})
from ulmfit import cli, resumable
from ulmfit.cli import predict
from ulmfit.inference import TextClassifier
predict.CHUNK, resumable.SAVE_EVERY = 50, 0
probabilities, left = TextClassifier.probabilities, [{chunks}]
def until(self, texts):
    left[0] -= 1
    while left[0] < 0:
        time.sleep(1)
    return probabilities(self, texts)
TextClassifier.probabilities = until
sys.exit(cli.main(sys.argv[1:]))
"""


def command_in_chunks(*words, chunks=10**9):
    """`ulmfit predict` that saves its place after every 50 rows, and waits for its end after so many chunks."""
    code = IN_CHUNKS.format(root=str(Path(ulmfit.__file__).parents[1]), chunks=chunks)
    return [sys.executable, "-c", code, "predict", *map(str, words)]


def kill_after_rows(process, told, rows):
    """Kill a process that has saved the place after so many rows."""
    while not (told() and json.loads(told()[0].read_text())["rows"] == rows):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_process_is_gone_on_with(served, tmp_path):
    rows = "".join(f'{{"text": "film {number}"}}\n' for number in range(2000))
    (tmp_path / "a.jsonl").write_text(rows)
    words = ["--model", served, "--data", "a.jsonl", "--output"]
    process = subprocess.Popen(command_in_chunks(*words, "o.csv", chunks=7), cwd=tmp_path)
    kill_after_rows(process, lambda: list(tmp_path.glob("o.csv.partial.json")), 350)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "o.csv.partial", "o.csv.partial.json"]
    again = subprocess.run(command_in_chunks(*words, "o.csv"), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "going on after 350 rows" in again.stderr, again.stderr
    assert subprocess.run(command_in_chunks(*words, "whole.csv"), cwd=tmp_path).returncode == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_killed_process_is_gone_on_with_from_and_to_s3(served, tmp_path, monkeypatch):
    """In the second of three objects. The result appears once, when it is whole."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    partial = tmp_path / "cache" / "predictions"
    (tmp_path / "in").mkdir()
    with s3_stand_in(monkeypatch) as store:
        for shard in range(3):
            content = "".join(f'{{"text": "film {number}"}}\n' for number in range(shard, 600, 3))
            (tmp_path / "in" / f"{shard}.jsonl").write_text(content)
            store.objects[f"bucket/in/{shard}.jsonl"] = content.encode()
        words = ["--model", served, "--data", "s3://bucket/in/*.jsonl", "--output", "s3://bucket/o.csv"]
        process = subprocess.Popen(command_in_chunks(*words, chunks=5), cwd=tmp_path)
        kill_after_rows(process, lambda: list(partial.glob("*.partial.json")), 250)
        assert "bucket/o.csv" not in store.objects
        again = subprocess.run(command_in_chunks(*words), cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 0 and "going on after 250 rows" in again.stderr, again.stderr
        words[3:6:2] = ["in/*.jsonl", "whole.csv"]
        subprocess.run(command_in_chunks(*words), cwd=tmp_path, check=True)
        found = store.objects["bucket/o.csv"].decode()
    whole = (tmp_path / "whole.csv").read_bytes().decode()
    assert len(found.splitlines()) == 601 and found.replace("s3://bucket/", "") == whole
    assert not list(partial.iterdir())


# The file


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "o.csv"
    with resuming(path, {}) as file:
        file.tail.write(b"predictions")
        path.write_text("precious")
        file.publish()
    assert path.read_text() == "precious" and file.placed == tmp_path / "o.csv.1"
    assert file.placed.read_text() == "predictions"
    assert sorted(os.listdir(tmp_path)) == ["o.csv", "o.csv.1"]


def test_a_mistake_in_the_input_leaves_nothing(predict):
    Path("a.csv.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"no gzip" * 20)
    predict("--data", "a.csv.gz", "--output", "o.csv", code=2)
    assert os.listdir() == ["a.csv.gz"]


def test_a_full_disk_keeps_what_is_done(predict, monkeypatch):
    write_table()
    predict("--data", "a.csv", "--output", "whole.csv")
    written, write = [], os.write

    def full(descriptor, data):
        if len(bytes(data)) > 100 and os.readlink(f"/proc/self/fd/{descriptor}").endswith("o.csv.partial"):
            written.append(descriptor)
            if len(written) == 4:
                write(descriptor, bytes(data)[:40])
                raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    predict("--data", "a.csv", "--output", "o.csv", code=2)
    assert "No space left on device" in predict.told.err
    predict("--data", "a.csv", "--output", "o.csv")
    assert "going on after 21 rows" in predict.told.err
    assert Path("o.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_two_processes_do_not_write_one_file(predict):
    with open("o.csv.partial", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        predict("good", "--output", "o.csv", code=2)
    assert "another process is writing o.csv" in predict.told.err
    predict("good", "--output", "o.csv")
    assert os.listdir() == ["o.csv"]


# Models of other kinds


def test_bundles_and_exports_are_gone_on_with(predict, killed, runs, served):
    write_table()
    assert cli.main(["export", "--model", str(runs.clf), "--model", str(runs.clf), "--output", "bundle"]) == 0
    for model, folder in (("served", str(served)), ("bundle", "bundle")):
        predict.models[:] = [folder]
        killed(100, fail)
        predict("--data", "a.csv", "--output", f"{model}-whole.csv")
        killed(3, fail)
        predict("--data", "a.csv", "--output", f"{model}.csv", code=1)
        killed(100, fail)
        predict("--data", "a.csv", "--output", f"{model}.csv")
        assert Path(f"{model}.csv").read_bytes() == Path(f"{model}-whole.csv").read_bytes()


def test_a_bundle_of_other_shares_is_another_model(predict, killed, runs):
    write_table()
    assert cli.main(["export", "--model", str(runs.clf), "--model", str(runs.clf), "--output", "bundle"]) == 0
    predict.models[:] = ["bundle"]
    killed(3, fail)
    predict("--data", "a.csv", "--output", "p.csv", code=1)
    killed(100, fail)
    index = json.loads(Path("bundle/bundle.json").read_text())
    for changed in ({"shares": [0.75, 0.25], "format_version": 3}, {"temperature": 2.0, "format_version": 2}):
        Path("bundle/bundle.json").write_text(json.dumps(index | changed))
        predict("--data", "a.csv", "--output", "p.csv", code=2)
        assert "p.csv.partial" in predict.told.err and "model" in predict.told.err
    Path("bundle/bundle.json").write_text(json.dumps(index))
    predict("--data", "a.csv", "--output", "p.csv")


def test_the_rows_of_a_job_in_its_own_folder_are_no_input(predict, killed):
    Path("d").mkdir()
    write_table("d/a.csv")
    killed(3, fail)
    predict("--data", "d", "--output", "d/out.csv", code=1)
    killed(100, fail)
    predict("--data", "d", "--output", "d/out.csv")
    assert "going on after" in predict.told.err and len(list(csv.reader(open("d/out.csv")))) == 41


# Progress


def test_the_line_of_progress():
    now = [0.0]
    speed = Speed(1000, 100, clock=lambda: now[0])
    now[0] = 10.0
    speed._done = 300
    assert speed.line() == "300 of 1,000 rows, 20 a second, 0:35 left"
    speed._total = None
    assert speed.line() == "300 rows, 20 a second"


def test_a_line_every_ten_seconds(capsys):
    now = [0.0]
    speed = Speed(None, clock=lambda: now[0])
    for now[0] in range(25):
        speed.now(int(now[0]) * 10)
    assert capsys.readouterr().err.splitlines() == ["100 rows, 10 a second", "200 rows, 10 a second"]
