"""Reading from a place: what follows it and nothing else."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import Hub
from tests.data.shards import NUM_FILES, NUM_ROWS, TEXTS, open_whole, rest, write
from ulmfit.data import corpus as corpora
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

KINDS = [".txt", ".jsonl", ".csv", ".tsv", ".parquet", "documents", ".jsonl.gz", ".txt.xz", ".jsonl.bz2", ".txt.zst",
         ".csv.gz"]  # fmt: skip


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_place_is_read_and_nothing_else(kind, streaming):
    paths = write(kind)
    split = corpora.open_rows("c" if kind == "documents" else "c/*", streaming=streaming)
    texts, rows, skipped, num_rows = rest(split)
    assert texts == TEXTS and num_rows == len(TEXTS) + skipped["no text"]
    assert skipped == ({"no text": 3} if "json" in kind else {})
    batches = list(split.batches(7))
    assert len(batches) >= len(TEXTS) / 7
    done = 0
    for batch in batches:
        done += len(batch.texts)
        after = json.loads(json.dumps(batch.after))
        assert len(json.dumps(after)) < 800
        # Another size of batches, for a place is none of theirs; counts are those of the whole pass all the same.
        assert rest(split, after, 5) == (texts[done:], rows[done:], skipped, num_rows)
    if streaming:  # files before the place are not opened
        middle = next(batch.after for batch in batches if batch.rows[-1] >= len(rows) * 2 // 3)
        for path in paths[: len(paths) // 2]:
            Path(path).unlink()
        expected = [row for row in rows if row >= middle["row"]]
        assert rest(split, middle)[1] == expected and len(expected) > 7


def test_the_validation_fraction_and_several_parts_go_on_from_a_place():
    write(".jsonl")
    Path("c/unsup.jsonl").write_text("".join(f'{{"text": "other {number}"}}\n' for number in range(40)))
    for number in range(NUM_FILES):
        Path(f"c/{number}.jsonl").rename(f"c/train-{number}.jsonl")
    splits = corpora.open_corpus("c", task="lm", valid=0.3, streaming=True).splits
    for split in splits.values():
        whole = rest(split)
        assert any("other" in text for text in whole[0])
        done = 0
        for batch in list(split.batches(7)):
            done += len(batch.texts)
            assert rest(split, batch.after) == (whole[0][done:], whole[1][done:], *whole[2:])


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_a_stream_of_the_hub_goes_on_from_a_place(kind, monkeypatch):
    """The hub is stood in for by files that `datasets` streams."""
    files = [os.path.abspath(path) for path in write(kind)]
    datasets = pytest.importorskip("datasets")
    stream = datasets.load_dataset(kind[1:], data_files={"train": files}, streaming=True)
    Hub(monkeypatch, lambda revision, streaming: stream)
    split = corpora.open_rows("owner/name", streaming=True)
    whole, done = rest(split), 0
    assert whole[0] == TEXTS
    for batch in list(split.batches(7)):
        done += len(batch.texts)
        after = json.loads(json.dumps(batch.after))
        assert rest(split, after, 5) == (whole[0][done:], whole[1][done:], *whole[2:])


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_passes_side_by_side_keep_their_places(kind):
    write(kind)
    (source,) = open_whole(kind).parts
    whole = [text for columns in source.read(["text"]) for text in columns["text"]]
    counts, places, passes = [0, 0], [None, None], [source.read_from(None, ["text"], 2) for _ in range(2)]
    for turn in range(36):
        which = turn % 3 % 2  # the first goes twice as fast
        columns, places[which] = next(passes[which], ({"text": []}, places[which]))
        counts[which] += len(columns["text"])
    assert len(whole) > counts[0] > NUM_ROWS + 5 and counts[0] > counts[1] > 10
    for count, place in zip(counts, places, strict=True):
        rest = [text for columns, _ in source.read_from(place, ["text"], 6) for text in columns["text"]]
        assert rest == whole[count:]


def test_streams_read_lines_as_the_cached_reader_does():
    content = b"\xef\xbb\xbffirst\rsecond\r\nthird \x0b\x0c\xc2\x85 \xe2\x80\xa8 still\n\xef\xbb\xbfkept\n" + (
        b"bad \xff\xfe\n\xe2\x82\n" + b"long " * 50 + b"\n\n\r\n  \n" + b"more\n" * 40 + b"no end"
    )
    Path("a.txt").write_bytes(content)
    read = [list(corpora.open_rows("a.txt", streaming=mode).batches()) for mode in (True, False)]
    texts, others = ([text for batch in batches for text in batch.texts] for batches in read)
    assert texts == others and texts[:2] == ["first", "second"] and len(texts) == 46


def test_the_embedded_sample_goes_on_from_a_place():
    split = corpora.open_corpus(None, task="lm").splits["valid"]
    whole, done = rest(split, batch_size=150), 0
    for batch in list(split.batches(150)):
        done += len(batch.texts)
        assert rest(split, batch.after, 70) == (whole[0][done:], whole[1][done:], *whole[2:])


# Many shards


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_thousands_of_shards_are_open_one_at_a_time(kind):
    write(kind)
    Path("many").mkdir()
    for number in range(2000):
        os.link(f"c/{number % NUM_FILES}{kind}", f"many/{number:04}{kind}")
    split = corpora.open_rows("many", streaming=True)
    descriptors = Path("/proc/self/fd")
    before, most, count = len(list(descriptors.iterdir())), 0, 0
    for batch in itertools.islice(split.batches(), 600):
        count += len(batch.texts)
        most = max(most, len(list(descriptors.iterdir())))
    assert most <= before + 10 and count > 600  # readers on other threads may close theirs later
    last = {"part": 0, "place": [1999, None], "row": 0, "num_rows": 0, "skipped": {}}
    assert rest(split, last)[0] == TEXTS[NUM_ROWS : 2 * NUM_ROWS]  # 1999 % 3 == 1


# Signs of life, for the watchdog


@pytest.mark.parametrize(
    ("name", "num_rows", "beats_to_the_end"),
    [("a.txt.gz", 2000, 200), ("a.jsonl.xz", 2000, 200), ("a.txt.bz2", 2000, 200), ("a.parquet", 1000, 150),
     ("a.csv.gz", 2000, 200)],
)  # fmt: skip
def test_what_is_skipped_to_get_to_a_place_gives_signs_of_life(name, num_rows, beats_to_the_end):
    """In one large file that may take longer than the watchdog waits."""
    texts = [f"text {number}" for number in range(num_rows)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), name)
    else:
        rows = [json.dumps({"text": text}) for text in texts] if "jsonl" in name else ["text", *texts]
        opened = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(Path(name).suffix, open)
        with opened(name, "wt") as file:
            file.write("\n".join(rows) + "\n")
    beats = []
    source = find(name, Access(streaming=True, beat=lambda: beats.append(1)))["train"]
    *_, last, _ = [after for _, after in source.read_from(None, ["text"], 5)]
    beats.clear()
    columns, _ = next(source.read_from(last, ["text"], 5))
    assert columns["text"][-1] == texts[-1] and len(beats) >= beats_to_the_end


def test_a_plain_file_is_not_read_up_to_a_place(monkeypatch):
    Path("a.txt").write_text("".join(f"text {number}\n" for number in range(2000)))
    beats = []
    source = find("a.txt", Access(streaming=True, beat=lambda: beats.append(1)))["train"]
    *_, last, _ = [after for _, after in source.read_from(None, ["text"], 5)]
    beats.clear()
    assert next(source.read_from(last, ["text"], 5))[0]["text"][-1] == "text 1999" and len(beats) == 1
