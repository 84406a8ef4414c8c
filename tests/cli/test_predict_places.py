"""predict from standard input and from and to object stores: the rows of a file, gone on with after a kill."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ulmfit
from tests import tiers
from tests.cli.inputs import fail, rows_of, write_table

pytestmark = pytest.mark.slow

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


def test_what_standard_input_may_be_is_told(predict, stdin):
    """A table without a column that the model reads is lines of texts; an array of JSON objects is none."""
    stdin(b"id,review\n1,a great film\n2,bad\n")
    assert len(predict("--data", "-")) == 3 and "read as a text a line; --format names another" in predict.told.err
    stdin(json.dumps([{"text": "a great film"}, {"text": "bad"}], indent=2).encode())
    assert len(predict("--data", "-")) == 2 and "read as jsonl" in predict.told.err
    stdin(b"I liked it, really, because of the light in it and of all the people\n")
    assert len(predict("--data", "-")) == 1 and not predict.told.err


def test_mistakes_about_standard_input(predict, stdin):
    for content, words, said in (
        (b"\x1f\x8b\x08\0\0\0", [], "unpack it before, as in `zcat FILE | ulmfit ...`"),
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
