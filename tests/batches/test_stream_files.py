"""`StreamedRows` over corpora that lie in files: positions in shards, failing shards, other corpora, memory."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ulmfit.batches.lm import StreamedRows, merge_states
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.data.corpus import open_corpus
from ulmfit.errors import UserError

BATCH_SIZE, STEPS = 8, 90


def write_corpus(kind, num_shards, num_rows=240):
    """Documents of ids that are all different, some rows at fault."""
    generator, first = random.Random(0), 10
    texts: list[str | None] = []
    for row in range(num_rows):
        length = generator.randint(1, 14)
        texts.append(None if row % 40 == 3 else " ".join(map(str, range(first, first + length))))
        first += length
    Path("c").mkdir(exist_ok=True)
    for shard in range(num_shards):
        part = texts[shard * num_rows // num_shards : (shard + 1) * num_rows // num_shards]
        if kind == "parquet":
            pq.write_table(pa.table({"text": part}), f"c/{shard:03}.parquet", row_group_size=11)
        elif kind == "csv":
            Path(f"c/{shard:03}.csv").write_text("text,id\n" + "".join(f"{text or ''},0\n" for text in part))
        else:
            Path(f"c/{shard:03}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))


@pytest.fixture
def stream(tmp_path, monkeypatch, fakes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 300)
    tokenizer = fakes[0](20_000)

    def make(rows=range(BATCH_SIZE), **options):
        split = open_corpus("c", task="lm", valid=0.2, streaming=True).splits["train"]
        defaults = {"batch_size": BATCH_SIZE, "bptt": 12, "seed": 3, "window": 25}
        return StreamedRows(split, tokenizer, rows=rows, **defaults | options)

    return make


def take(batches, count):
    return list(itertools.islice(batches, count))


def deal(num_ranks):
    each = BATCH_SIZE // num_ranks
    return [range(rank * each, (rank + 1) * each) for rank in range(num_ranks)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_shards"), [("jsonl", 1), ("jsonl", 60), ("parquet", 3), ("csv", 3)])
def test_any_ranks_go_on_from_any_step_of_any_ranks(stream, kind, num_shards):
    write_corpus(kind, num_shards)
    whole = take(stream().batches(), STEPS)
    assert whole[-1][1]["positions"][0][0] > 3 * 186  # epochs
    ranks = {num: [take(stream(rows).batches(), STEPS) for rows in deal(num)] for num in (2, 4)}
    for num, runs in ranks.items():
        for (batch, _), *parts in zip(whole, *runs, strict=True):
            assert torch.equal(batch.tokens, torch.cat([part.tokens for part, _ in parts])), num
    for done in range(1, STEPS - 4, 11):
        for before, after in [(1, 4), (4, 2), (2, 1)]:
            saved = [whole[done - 1][1]] if before == 1 else [run[done - 1][1] for run in ranks[before]]
            state = json.loads(json.dumps(merge_states(saved)))
            assert len(json.dumps(state)) < 2000
            resumed = [stream(rows).batches(state) for rows in deal(after)]
            for batch, _ in whole[done : done + 4]:
                pieces = [next(rank)[0] for rank in resumed]
                assert torch.equal(batch.tokens, torch.cat([piece.tokens for piece in pieces]))
                assert torch.equal(batch.targets, torch.cat([piece.targets for piece in pieces]))


def test_a_resume_of_a_resume_counts_the_rows_at_fault_of_the_whole_pass(stream):
    write_corpus("jsonl", 5)
    straight = stream()
    take(straight.batches(), 2 * STEPS)
    state = None
    for _ in range(20):  # with a pass's end in the third and others
        resumed = stream()
        state = json.loads(json.dumps(take(resumed.batches(state), STEPS // 10)[-1][1]))
    assert resumed.split.num_rows == straight.split.num_rows > 0
    assert resumed.split.skipped == straight.split.skipped and straight.split.skipped["no text"] > 0
    assert state == take(stream().batches(), 2 * STEPS)[-1][1]


def test_a_resume_opens_no_shard_before_its_place(stream):
    write_corpus("jsonl", 60)
    run = take(stream().batches(), 12)
    _, state = run[7]
    number = state["place"]["split"]["place"][0]
    assert number > 10
    source = stream()
    for shard in range(number):
        Path(f"c/{shard:03}.jsonl").unlink()
    batch, _ = next(source.batches(state))
    assert torch.equal(batch.tokens, run[8][0].tokens)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_passes_side_by_side_read_from_the_place_and_not_from_the_beginning(stream, kind):
    write_corpus(kind, 4)
    free, tight = stream(), stream(max_waiting=300)
    for (batch, state), (other, other_state) in zip(take(free.batches(), STEPS), take(tight.batches(), STEPS),
                                                    strict=True):  # fmt: skip
        assert torch.equal(batch.tokens, other.tokens) and state["positions"] == other_state["positions"]
        assert state["place"]["number"] == other_state["place"]["number"]
        if state["step"] % 19 == 0:
            resumed, _ = next(stream(max_waiting=10).batches(other_state))
            assert resumed.tokens[:, 0].tolist() == batch.targets[:, -1].tolist()


@pytest.mark.parametrize("change", ["a row", "a file", "the order"])
def test_a_corpus_that_changed_under_a_stopped_stream_is_refused(stream, change):
    write_corpus("jsonl", 3)
    _, state = next(stream().batches())
    assert len(take(stream().batches(state), 2)) == 2
    if change == "a row":
        text = Path("c/002.jsonl").read_text()
        Path("c/002.jsonl").write_text(text[:-6] + '7"}\n')
        assert len(Path("c/002.jsonl").read_text()) == len(text) - 2
    elif change == "a file":
        Path("c/003.jsonl").write_text('{"text": "5 6 7"}\n')
    else:
        Path("c/000.jsonl").rename("c/aside")
        Path("c/002.jsonl").rename("c/000.jsonl")
        Path("c/aside").rename("c/002.jsonl")
    with pytest.raises(UserError, match=r"of another corpus or tokenizer .*--resume never"):
        next(stream().batches(state))


def test_a_large_corpus_that_was_copied_anew_is_the_same(stream, monkeypatch):
    """Above a bound, earlier versions went by the time of modification."""
    write_corpus("jsonl", 3)
    monkeypatch.setattr("ulmfit.data.fingerprint._SMALL", 100)
    _, state = next(stream().batches())
    os.utime("c/001.jsonl", (1, 1))
    next(stream().batches(state))


@pytest.mark.parametrize(("option", "value", "word"), [
    ("batch_size", 16, "batch size"), ("bptt", 13, "bptt"), ("seed", 4, "seed"), ("window", 24, "corpus or tokenizer"),
    ("backwards", True, r"direction \(forwards, now backwards\)")])  # fmt: skip
def test_the_position_of_another_stream_is_refused(stream, option, value, word):
    write_corpus("jsonl", 1)
    _, state = next(stream().batches())
    with pytest.raises(UserError, match=f"another {word}"):
        next(stream(**{option: value}).batches(state))


def test_a_tokenizer_of_another_fingerprint_is_refused(stream, fakes):
    write_corpus("jsonl", 1)
    source = stream()
    _, state = next(source.batches())
    other = StreamedRows(
        source.split, fakes[0](30_000), batch_size=BATCH_SIZE, bptt=12, seed=3, rows=range(BATCH_SIZE), window=25
    )
    with pytest.raises(UserError, match="another corpus or tokenizer"):
        next(other.batches(state))


def test_a_shard_that_fails_for_a_while_changes_no_batch(stream, monkeypatch, capsys):
    write_corpus("parquet", 3)
    expected = take(stream().batches(), 40)
    waited, left = [], [3]
    monkeypatch.setattr("ulmfit.data.retry.time.sleep", waited.append)
    whole = pq.ParquetFile

    class Failing(whole):
        def iter_batches(self, *args, row_groups, **options):
            if row_groups == [2] and left[0]:
                left[0] -= 1
                raise ConnectionResetError(104, "Connection reset by peer")
            return super().iter_batches(*args, row_groups=row_groups, **options)

    source = stream()
    monkeypatch.setattr(pq, "ParquetFile", Failing)
    for (batch, state), (other, other_state) in zip(expected, source.batches(), strict=False):
        assert torch.equal(batch.tokens, other.tokens) and state == other_state
    assert waited == [1, 2, 4] and capsys.readouterr().err.count("000.parquet cannot be read") == 3


def test_reading_ends_at_once_when_a_run_stops(stream):
    write_corpus("parquet", 3)
    for _ in range(3):
        with Prefetcher(stream().batches()) as batches:
            next(batches)
            thread = batches._thread
            begin = time.monotonic()
        assert not thread.is_alive() and time.monotonic() - begin < 20  # it would wait for ever; busy machines


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_documents_read(stream):
    Path("c").mkdir()
    generator = random.Random(1)
    for shard in range(6):
        with open(f"c/{shard}.jsonl", "w") as file:
            for _ in range(10_000):
                file.write('{"text": "' + "7 " * generator.randint(1, 20) + '"}\n')
    source = stream(range(64), batch_size=64, bptt=70, window=1000)
    batches, after_half, waiting = source.batches(), None, 0
    for _, state in batches:
        read = max(document for document, _ in state["positions"])
        if after_half is None and read > 24_000:
            after_half = resident()
        rows = batches.gi_frame.f_locals["rows"]
        waiting = max(waiting, sum(row.available for row in rows))
        if read > 47_000:
            break
    assert source.num_passes == 1 and waiting < 200_000  # of half a million tokens
    assert resident() - after_half < 4e6
