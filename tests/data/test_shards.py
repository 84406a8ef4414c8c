"""Reading from a place: what follows it and nothing else; and over failures: nothing twice, nothing lost."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import itertools
import json
import lzma
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import Hub
from ulmfit.data import corpus as corpora
from ulmfit.data.fingerprint import Access
from ulmfit.data.hub_sets import of_dataset
from ulmfit.data.retry import retried
from ulmfit.data.sources import find
from ulmfit.errors import UserError

NUM_FILES, NUM_ROWS = 3, 23  # rows in each file
TEXTS = [f"text {number} with \u2028 caf\u00e9" for number in range(NUM_FILES * NUM_ROWS)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 64)
    monkeypatch.setattr("ulmfit.data.shards.SLICE_BYTES", 200)
    monkeypatch.setattr("ulmfit.data.readers.SLICE_BYTES", 200)
    monkeypatch.setattr("ulmfit.data.hub_sets._STREAM_ROWS", 5)


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr("ulmfit.data.retry.time.sleep", waited.append)
    return waited


def lines_of(texts):
    return "".join(f"{text}{end}" for text, end in zip(texts, ["\n", "\r\n", "\n\n  \n"] * 99, strict=False))


def json_of(texts):
    return "".join('{"text": null}\n' * (number % 20 == 4) + json.dumps({"text": text}) + "\n"
                   for number, text in enumerate(texts))  # fmt: skip


def csv_of(texts, separator=","):
    return f"id{separator}text\n" + "".join(f'{n}{separator}"{text}"\n' for n, text in enumerate(texts))


PLAIN = {
    ".txt": lambda texts: lines_of(texts).encode("utf-8-sig"),
    ".jsonl": lambda texts: json_of(texts).encode(),
    ".csv": lambda texts: csv_of(texts).encode(),
    ".tsv": lambda texts: csv_of(texts, "\t").encode(),
}
PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
KINDS = [".txt", ".jsonl", ".csv", ".tsv", ".parquet", "documents", ".jsonl.gz", ".txt.xz", ".jsonl.bz2", ".txt.zst",
         ".csv.gz"]  # fmt: skip


def write(kind: str) -> list[str]:
    """The corpus as three files of a kind in the folder c (a file a text for documents)."""
    Path("c").mkdir()
    paths = []
    for number in range(NUM_FILES):
        texts = TEXTS[number * NUM_ROWS : (number + 1) * NUM_ROWS]
        if kind == "documents":
            for place, text in enumerate(texts):
                paths.append(f"c/{number}-{place:02}.txt")
                Path(paths[-1]).write_text(text, newline="")
            continue
        paths.append(f"c/{number}{kind}")
        if kind == ".parquet":
            pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), paths[-1], row_group_size=9)
            continue
        plain, packed = f".{kind.split('.')[1]}", kind.removeprefix(f".{kind.split('.')[1]}")
        content = PLAIN[plain](texts)
        if packed:  # datasets hands compressed files on with the byte order mark
            content = content.removeprefix(codecs.BOM_UTF8)
        if packed == ".zst":
            compress = pytest.importorskip("zstandard").compress
            content = compress(content[:99]) + compress(content[99:])  # two frames, as parallel compressors write
        elif packed:
            content = PACKED[packed](content)
        Path(paths[-1]).write_bytes(content)
    return paths


def open_whole(kind):
    """A folder of .txt files of other names would be one of documents."""
    return corpora.open_rows("c" if kind == "documents" else "c/*", streaming=True)


def rest(split, start=None, batch_size=7):
    """(texts, rows, what was skipped, rows seen) from a place on, to the end of the pass."""
    batches = list(split.batches(batch_size, start))
    return ([text for batch in batches for text in batch.texts], [row for batch in batches for row in batch.rows],
            Counter(split.skipped), split.num_rows)  # fmt: skip


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


# Failures


class Flaky:
    """A reader of 20 items that fails `times` in a row before item 7."""

    def __init__(self, times, error):
        self.left, self.error, self.calls = times, error, 0

    def __call__(self, place):
        self.calls += 1
        for number in range(place or 0, 20):
            if number == 7 and self.left:
                self.left -= 1
                raise self.error
            yield number, number + 1


class Answer(Exception):
    def __init__(self, status):
        super().__init__(f"the hub says {status}")
        self.response = type("Response", (), {"status_code": status})()


class HubIsSlow(Exception):
    """As the HTTP client of huggingface_hub 2.4 raises it, without a cause."""

    __module__ = "httpx2"


PASSING = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"), TimeoutError("late"),
           ConnectionError("reset"), Answer(503), Answer(429), HubIsSlow("no answer")]  # fmt: skip
LASTING = [OSError("Couldn't deserialize thrift"), FileNotFoundError(errno.ENOENT, "No such file"), ValueError("bad"),
           Answer(404), PermissionError(errno.EACCES, "Permission denied")]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_a_failure_that_may_pass_is_tried_again_from_where_it_struck(error, pauses, capsys):
    assert [item for item, _ in retried(Flaky(4, error), None, lambda: "part-7")] == list(range(20))
    assert pauses == [1, 2, 4, 8]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and told[0] == f"part-7 cannot be read ({error}): try 2 of 5 in 1 s"
    reader = Flaky(5, error)
    got = []
    with pytest.raises(OSError, match="part-7 cannot be read .*, also after 5 tries: see to its file system") as caught:
        got.extend(item for item, _ in retried(reader, None, lambda: "part-7"))
    assert reader.calls == 5 and caught.value.__cause__ is error and caught.value.errno is not None


def test_tries_are_counted_from_the_last_progress(pauses):
    def read(place):
        yield place, place + 1
        raise OSError(errno.EIO, "Input/output error")

    items = retried(read, 0, lambda: "part-7")
    assert [next(items)[0] for _ in range(30)] == list(range(30))
    assert pauses == [1] * 29


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_cannot_get_better_is_named_at_once(error, pauses):
    reader = Flaky(1, error)
    with pytest.raises(UserError, match=r"^part-7 cannot be read \(.*\); mend the file"):
        list(retried(reader, None, lambda: "part-7"))
    assert reader.calls == 1 and not pauses


class FailingFile(io.FileIO):
    """A local file on a network that drops out at every fifth read."""

    reads = failures = 0

    def readinto(self, buffer):
        self._count()
        return super().readinto(buffer)

    def readall(self):
        self._count()
        return super().readall()

    def _count(self):
        FailingFile.reads += 1
        if FailingFile.reads % 5 == 0:
            FailingFile.failures += 1
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".jsonl.gz", "documents"])
def test_a_file_system_that_drops_out_loses_no_row(kind, pauses, monkeypatch):
    write(kind)
    split = open_whole(kind)
    whole = rest(split)
    monkeypatch.setattr(FailingFile, "failures", 0)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, *_: io.BufferedReader(FailingFile(path), 512))
        texts = rest(split)
    assert texts == whole and len(pauses) == FailingFile.failures >= 2


def test_a_parquet_file_that_fails_is_opened_again(pauses, monkeypatch):
    write(".parquet")
    split = open_whole(".parquet")
    left = [2]
    whole, opened = pq.ParquetFile, []

    class Failing(whole):
        def iter_batches(self, *args, row_groups, **options):
            opened.append(row_groups)
            if row_groups == [1] and left[0]:
                left[0] -= 1
                raise OSError(errno.ETIMEDOUT, "Connection timed out")
            return super().iter_batches(*args, row_groups=row_groups, **options)

    monkeypatch.setattr(pq, "ParquetFile", Failing)
    assert rest(split)[0] == TEXTS and pauses == [1, 2]
    assert opened[:5] == [[0], [1], [1], [1], [2]]  # the group before it is not read again


def test_a_failing_shard_of_datasets_is_tried_again(pauses, capsys):
    datasets = pytest.importorskip("datasets")
    left = [3]

    def generate(shards):
        for shard in shards:
            for row in range(10):
                if (shard, row) == (1, 6) and left[0]:
                    left[0] -= 1
                    raise ConnectionError("reset by peer")
                yield {"text": f"{shard} {row}"}

    dataset = datasets.IterableDataset.from_generator(
        generate, gen_kwargs={"shards": [0, 1, 2]}, features=datasets.Features({"text": datasets.Value("string")})
    )
    source = of_dataset(dataset, "owner/name (train)", "f", [], [], Access())
    read = [text for columns in source.read(["text"], 4) for text in columns["text"]]
    assert read == [f"{shard} {row}" for shard in range(3) for row in range(10)] and pauses == [1, 2, 4]
    assert "owner/name (train) cannot be read (reset by peer): try 2 of 5 in 1 s" in capsys.readouterr().err


def damage(kind, path):
    content = Path(path).read_bytes()
    Path(path).write_bytes({
        "cut": content[:len(content) // 2],
        "wrong": content[:20] + b"\xff" * 8 + content[28:],
        "gone": b"",
    }[kind])  # fmt: skip


@pytest.mark.parametrize(("kind", "how", "message", "waits"), [
    (".jsonl.gz", "cut", r"c/1.jsonl.gz cannot be read \(.*end-of-stream.*\), it is incomplete; copy", [1, 2, 4, 8]),
    (".jsonl.gz", "wrong", r"c/1.jsonl.gz cannot be read \(.*\); mend", []),
    (".jsonl.bz2", "wrong", r"c/1.jsonl.bz2 cannot be read \(.*\); mend", []),
    (".txt.xz", "wrong", r"c/1.txt.xz cannot be read \(.*\); mend", []),
    (".parquet", "cut", r"c/1.parquet cannot be read \(.*\); mend", []),
    (".parquet", "gone", r"c/1.parquet cannot be read \(.*\); mend", []),
    (".csv.gz", "cut", r"c/1.csv.gz cannot be read", [1, 2, 4, 8]),
])  # fmt: skip
def test_a_damaged_shard_is_named(kind, how, message, waits, pauses):
    write(kind)
    split = open_whole(kind)
    damage(how, f"c/1{kind}")
    with pytest.raises(UserError, match=message) as caught:
        list(split.batches())
    assert pauses == waits and "\n" not in str(caught.value)


def test_a_shard_without_the_column_is_named():
    write(".parquet")
    pq.write_table(pa.table({"txt": ["a"]}), "c/1.parquet")
    with pytest.raises(UserError, match="c/1.parquet has no column text; its columns are txt"):
        rest(open_whole(".parquet"))


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
    assert most <= before + 3 and count > 600
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
