"""A corpus is its content: copies are one corpus, changes are seen whatever the clock says, and reading is remembered."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.data.files import CSV, MODES, whole, write, write_acl
from ulmfit.data import fingerprint
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.fingerprint import Access

pytestmark = pytest.mark.usefixtures("alone")
EARLY, LATE = 1_000_000_000, 1_500_000_000


def age(folder: str = ".", seconds: int = EARLY) -> None:
    for path in Path(folder).rglob("*"):
        os.utime(path, (seconds, seconds))


def of(data: str, access: Access | None = None, **options) -> str:
    return open_corpus(data, access=access, **({"task": "clf"} | options)).fingerprint


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCK", 100)


@pytest.fixture
def read(monkeypatch):
    """The files whose content was hashed."""
    paths, blocks = [], fingerprint._blocks

    def watched(path, threads):
        paths.append(os.path.basename(path))
        return blocks(path, threads)

    monkeypatch.setattr(fingerprint, "_blocks", watched)
    return paths


@pytest.fixture
def old_files(monkeypatch):
    """Files that tests write count as written long ago, so that they are remembered."""
    monkeypatch.setattr(fingerprint, "_TICK", -(10**18))


# Copies and changes


@MODES
@pytest.mark.parametrize("kind", ["file", "folder", "aclImdb", "documents"])
def test_a_copy_is_the_same_corpus_whatever_its_place_and_time(kind, streaming, small_blocks):
    if kind == "file":
        write("here/a.csv", CSV)
    elif kind == "folder":
        for name in ("train", "valid"):
            write(f"here/{name}.csv", CSV)
    elif kind == "aclImdb":
        write_acl("here", per_class=5)
    else:
        for number in range(40):
            write(f"here/{number:02}.txt", f"document {number}")
    options = {"streaming": streaming, "task": "lm" if kind == "documents" else "clf"}
    name = "a.csv" if kind == "file" else "."
    first = of(f"here/{name}", **options)
    shutil.copytree("here", "else/where")
    age("else", LATE)
    assert of(f"else/where/{name}", **options) == first


def test_a_renamed_file_is_the_same_corpus_and_a_renamed_class_is_not():
    write("a.csv", CSV)
    write("b.csv", CSV)
    assert of("a.csv") == of("b.csv")
    write_acl("acl", per_class=5)
    write_acl("other", per_class=5)
    for split in ("train", "test"):
        Path(f"other/{split}/neg").rename(f"other/{split}/bad")
    assert of("acl") != of("other")


def test_what_a_large_corpus_holds_counts_and_not_its_time(monkeypatch):
    """Above a bound, earlier versions went by the time of modification alone."""
    monkeypatch.setattr(fingerprint, "_SMALL", 10)
    write("a.csv", CSV)
    age()
    first = of("a.csv")
    age(seconds=LATE)
    assert of("a.csv") == first
    write("a.csv", CSV.replace("a film", "a show"))
    age(seconds=LATE)
    assert of("a.csv") != first


def test_the_last_byte_of_a_file_of_many_blocks_counts(small_blocks):
    write("a.csv", CSV)
    first = of("a.csv")
    write("a.csv", CSV[:-3] + "!" + CSV[-2:])
    assert len(CSV) > 20 * fingerprint.BLOCK and of("a.csv") != first


@pytest.mark.parametrize("kind", ["csv", "txt", "jsonl", "documents"])
def test_a_file_rewritten_within_a_tick_of_the_clock_is_read_as_it_is_now(kind):
    """Same path, size and time: `datasets` would give the old rows."""
    for word in ("old", "new"):
        if kind == "documents":
            for number in range(40):
                write(f"docs/{number:02}.txt", f"{word} document {number}")
        else:
            lines = [f"{word} document {number}" for number in range(40)]
            rows = [json.dumps({"text": line}) for line in lines] if kind == "jsonl" else lines
            write(f"docs/a.{kind}", "\n".join([*(["text"] if kind == "csv" else []), *rows]) + "\n")
        age()
        assert all(text.startswith(word) for text in whole(open_rows("docs", streaming=False))[0])


def test_scheme_1_is_that_of_earlier_runs():
    write("a.csv", CSV)
    write_acl("acl", per_class=5)
    # Of commit 229cc54, on the same files.
    assert of("a.csv", Access(scheme=1)) == "c006086a5de018da"
    assert of("acl", Access(scheme=1)) == "c50811ca022c12c0"


# What is remembered


def test_a_second_start_reads_nothing_again(read, old_files):
    write_acl("acl", per_class=5)
    access = Access(cache_dir=Path("memory"))
    first = of("acl", access)
    assert len(read) == 25 and read.clear() is None
    assert of("acl", access) == first and not read
    write("acl/train/neg/0_7.txt", "changed")
    assert of("acl", access) != first and read == ["0_7.txt"]


def test_a_file_whose_time_was_set_back_is_read_again(read, old_files):
    """The time of change of the inode cannot be set."""
    access = Access(cache_dir=Path("memory"))
    write("a.csv", CSV)
    age()
    first = of("a.csv", access)
    write("a.csv", CSV.replace("a film", "a show"))
    age()
    assert of("a.csv", access) != first and read == ["a.csv", "a.csv"]


def test_a_file_that_was_just_written_is_not_remembered(read):
    access = Access(cache_dir=Path("memory"))
    write("a.csv", CSV)
    of("a.csv", access)
    of("a.csv", access)
    assert read == ["a.csv", "a.csv"]


@pytest.mark.parametrize("memory", ["a file", "torn", "of another shape"])
def test_a_memory_that_cannot_be_used_is_no_error(memory, read, old_files):
    write("a.csv", CSV)
    access = Access(cache_dir=Path("memory"))
    first = of("a.csv", access)
    (entry,) = Path("memory/files").iterdir()
    if memory == "a file":
        shutil.rmtree("memory")
        write("memory", "in the way")
    else:
        entry.write_text("{" if memory == "torn" else json.dumps({"a.csv": [None, 3]}))
    assert of("a.csv", access) == first and len(read) == 2


def test_reading_is_told(small_blocks):
    write("a.csv", CSV)
    beats, told = [], []
    access = Access(beat=lambda: beats.append(1), hashed=lambda done, total: told.append((done, total)))
    fingerprint.fingerprint("csv", ["a.csv"], None, access)
    assert len(beats) == len(told) == -(-len(CSV) // fingerprint.BLOCK)
    assert told[-1] == (len(CSV), len(CSV)) and told == sorted(told)
