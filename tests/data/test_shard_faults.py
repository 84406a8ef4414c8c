"""Reading over failures: nothing twice, nothing lost; and what cannot be read is named."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.shards import TEXTS, open_whole, rest, write
from ulmfit.data.fingerprint import Access
from ulmfit.data.hub_sets import of_dataset
from ulmfit.data.retry import retried
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr("ulmfit.data.retry.time.sleep", waited.append)
    return waited


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
