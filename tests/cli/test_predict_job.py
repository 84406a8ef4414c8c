"""predict as a job: gone on with after a kill, byte for byte; nothing of other origin is taken up or overwritten."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ulmfit
from tests import tiers
from tests.distributed.ranks import on_ranks
from tests.s3_stand_in import s3_stand_in
from ulmfit import cli
from ulmfit.cli.speed import Speed
from ulmfit.inference import TextClassifier
from ulmfit.resumable import resuming

pytestmark = pytest.mark.slow

SUFFIXES = ["csv", "tsv", "jsonl", "parquet", "txt"]


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys, runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ulmfit.cli.predict.CHUNK", 7)
    monkeypatch.setattr("ulmfit.cli.prediction_rows.BATCH", 5)
    monkeypatch.setattr("ulmfit.resumable.SAVE_EVERY", 0)
    models = [str(runs.clf)]

    def run(*words, code=0):
        assert (
            cli.main(["predict", *(word for model in models for word in ("--model", model)), *map(str, words)]) == code
        )
        run.told = capsys.readouterr()
        return run.told.out.splitlines()

    run.models = models
    return run


@pytest.fixture
def killed(monkeypatch):
    """Kill the process, as far as a test can, when so many chunks are predicted: `killed(chunks, error)`."""
    probabilities = TextClassifier.probabilities

    def arm(chunks, event):
        left = [chunks]

        def probabilities_until(self, texts):
            left[0] -= 1
            if left[0] < 0:
                event()
            return probabilities(self, texts)

        monkeypatch.setattr(TextClassifier, "probabilities", probabilities_until)

    yield arm


def rows_of(number):
    return [
        f'{place},"film, {"good" * (place % 4)}\nof {place}"' if place % 6 else f'{place},""' for place in range(number)
    ]


def write_table(path="a.csv", number=40, head="id,text"):
    Path(path).write_text("\n".join([head, *rows_of(number)]) + "\n")


def fail():
    raise RuntimeError("the machine fails")


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


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory):
    """An exported model, whose processes start without torch."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("served") / "model"
    assert cli.main(["export", "--model", str(runs.clf), "--to", "onnx", "--output", str(folder)]) == 0
    return folder


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


# Standard input and output


@pytest.fixture
def stdin(monkeypatch):
    def give(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return give


LONG = 60  # rows, more than the first bytes that are looked at


def test_standard_input_has_the_rows_of_a_file(predict, stdin, monkeypatch):
    monkeypatch.setattr("ulmfit.cli.predict.CHUNK", 100)
    monkeypatch.setattr("ulmfit.data.locations.HEAD", 2**9)
    rows = [{"id": number, "text": f"film {number} " + "x" * (number % 50)} for number in range(LONG)]
    contents = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "id,text\n" + "".join(f'{row["id"]},"{row["text"]}\n"\n' for row in rows),
        "tsv": "id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows),
        "txt": "".join(row["text"] + "\n" for row in rows),
    }
    for suffix, content in contents.items():
        Path(f"a.{suffix}").write_text(content)
        expected = predict("--data", f"a.{suffix}", "--output", "-", "--output-format", "csv")
        stdin(content.encode())
        assert predict("--data", "-", "--output-format", "csv") == expected, suffix
        assert ("--format names another" in predict.told.err) == (suffix != "txt")
        assert len(content) > 2**10
    stdin(contents["csv"].encode())
    assert len(predict("--data", "-", "--format", "text")) == 2 * LONG + 1


def test_mistakes_about_standard_input(predict, stdin):
    for content, words, said in (
        (b"", [], "standard input is empty"),
        (b"a,b\n1,2\n", ["--format", "csv", "--text-column", "text"], "has no column"),
        (b"\x1f\x8b\x08\0\0\0", [], "compressed by gzip"),
        (b"good\n", ["--output-format", "parquet"], "cannot be written to standard output"),
    ):
        stdin(content)
        predict("--data", "-", *words, code=2)
        assert said in predict.told.err, said
    Path("a.txt").write_text("good")
    predict("--data", "a.txt", "--format", "csv", code=2)
    assert "--format is for standard input" in predict.told.err


def test_standard_input_is_gone_on_with_if_it_is_the_same(predict, stdin, killed):
    write_table()
    content = Path("a.csv").read_bytes()
    stdin(content)
    predict("--data", "-", "--output", "whole.csv")
    stdin(content)
    killed(2, fail)
    predict("--data", "-", "--output", "o.csv", code=1)
    killed(100, fail)
    for other in (content.replace(b"of 3", b"of three"), b"\n".join(content.split(b"\n")[:9])):
        stdin(other)
        predict("--data", "-", "--output", "o.csv", code=2)
        assert "standard input does not begin with the rows of o.csv.partial" in predict.told.err
    stdin(content)
    predict("--data", "-", "--output", "o.csv")
    assert Path("o.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_reader_that_leaves_ends_it_quietly(served, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"film {number}\n" for number in range(6000)))
    words = [sys.executable, "-m", "ulmfit", "predict", "--model", str(served), "--data", "-"]
    command = f"{subprocess.list2cmdline(words)} < a.txt | head -n 2; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(Path(ulmfit.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[2:] == ["0"] and done.stderr == ""


# Object stores


@pytest.fixture
def store():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/", recursive=True)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.txt", "a.jsonl"])
def test_an_object_has_the_rows_of_a_file(predict, store, killed, name):
    texts = [f"film {number}" for number in range(30)]
    contents = {
        "a.csv": ("id,text\n" + "\n".join(rows_of(30))).encode(),
        "a.txt": "\n".join(texts).encode(),
        "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
    }
    contents["a.csv.gz"] = gzip.compress(contents["a.csv"])
    pq.write_table(pa.table({"text": texts}), "a.parquet", row_group_size=9)
    contents["a.parquet"] = Path("a.parquet").read_bytes()
    Path(name).write_bytes(contents[name])
    store.pipe_file(f"/bucket/{name}", contents[name])
    predict("--data", name, "--output", "whole.csv")
    for data in [f"memory://bucket/{name}", f"file://{Path(name).resolve()}"][
        : 2 if tiers.LONG or name == "a.csv" else 1
    ]:
        killed(2, fail)
        predict("--data", data, "--output", "part.csv", code=1)
        killed(100, fail)
        predict("--data", data, "--output", "part.csv")
        assert Path("part.csv").read_bytes() == Path("whole.csv").read_bytes()
        Path("part.csv").unlink()


def test_globs_and_folders_of_objects(predict, store):
    for number, rows in ((1, 3), (2, 2)):
        store.pipe_file(f"/bucket/in/part-{number}.csv", ("id,text\n" + "a,good\n" * rows).encode())
    store.pipe_file("/bucket/in/_SUCCESS", b"")
    for data in ("memory://bucket/in", "memory://bucket/in/part-*.csv"):
        lines = [line.split("\t") for line in predict("--data", data)]
        assert [line[0] for line in lines] == ["0", "1", "2", "0", "1"]
        assert lines[0][1].endswith("part-1.csv") and lines[4][1].endswith("part-2.csv")
    for data, said in (("memory://bucket/no.csv", "nothing at"), ("nosuch://b/a.csv", "cannot be opened"),
                       ("memory://bucket/in/_SUCCESS", "is none of")):  # fmt: skip
        predict("--data", data, code=2)
        assert said in predict.told.err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_object_is_written_whole_and_never_overwritten(predict, store, killed, monkeypatch, tmp_path, suffix):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    write_table()
    predict("--data", "a.csv", "--output", f"whole.{suffix}")
    url = f"memory://bucket/o.{suffix}"
    killed(2, fail)
    predict("--data", "a.csv", "--output", url, code=1)
    assert not store.exists(f"/bucket/o.{suffix}")
    killed(100, fail)
    predict("--data", "a.csv", "--output", url)
    assert "going on after 14 rows" in predict.told.err
    assert store.cat_file(f"/bucket/o.{suffix}") == Path(f"whole.{suffix}").read_bytes()
    assert not os.listdir(tmp_path / "cache" / "predictions")
    predict("--data", "a.csv", "--output", url, code=2)
    assert f"{url} exists" in predict.told.err


def test_an_object_that_appears_meanwhile_is_not_overwritten(predict, store, killed, monkeypatch, tmp_path):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    write_table()
    killed(0, lambda: store.pipe_file("/bucket/o.csv", b"precious"))
    predict("--data", "a.csv", "--output", "memory://bucket/o.csv", code=2)
    assert "the predictions are in memory://bucket/o.csv.1" in predict.told.err
    assert store.cat_file("/bucket/o.csv") == b"precious" and store.size("/bucket/o.csv.1") > 1000


def test_an_object_that_changes_is_other_data(predict, store, killed):
    store.pipe_file("/bucket/a.csv", ("id,text\n" + "a,good\n" * 30).encode())
    killed(2, fail)
    predict("--data", "memory://bucket/a.csv", "--output", "o.csv", code=1)
    store.pipe_file("/bucket/a.csv", ("id,text\n" + "a,gold\n" * 30).encode())
    predict("--data", "memory://bucket/a.csv", "--output", "o.csv", code=2)
    assert "another input" in predict.told.err


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
