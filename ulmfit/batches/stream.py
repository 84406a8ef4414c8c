"""Language-model batches of a corpus that is too large for a token cache (streaming)."""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from ulmfit.batches.order import permutation
from ulmfit.batches.position import LMBatch, check_identity
from ulmfit.errors import UserError

OVERHEAD = 128  # memory of the Python objects of a waiting document, in tokens


def positions_of(state: dict[str, Any], rows: range) -> list[Any]:
    """The stored positions of some rows, from a state that covers them."""
    first, last = state["rows"]
    assert first <= rows.start and rows.stop <= last, "merge the states of all ranks first"
    return state["positions"][rows.start - first : rows.stop - first]


class StreamedRows:
    """Rows of a corpus that is tokenised while it is read, endlessly and without a cache.

    Each pass (epoch) is divided into windows of `window` documents (the last is shorter). Documents are shuffled within
    a window by (seed, epoch, window). They are numbered in this order over all epochs, and document g belongs to row
    g mod batch_size. So a rank reads all texts, but tokenises only its own. Rows continue from epoch to epoch without
    padding: all batches are [rows, bptt].

    Position: for each row its current document and the number of its tokens read; also the position of the oldest
    window that a row still needs. Resuming seeks to that window (for the cost see `data.shards`) and reads up to the
    position of the fastest row. It tokenises only what the rows still need. The distance between rows grows as the
    square root of the documents read (see Memory): after a million short documents, about thirty thousand are read
    again, which takes a few seconds.

    Memory: in each step all rows read the same number of tokens, but different numbers of documents. So documents wait
    for the slower rows; their number grows about as the square root of the documents read. When more than `max_waiting`
    tokens wait (with `OVERHEAD` tokens added per document), the slower half of the rows discards them and gets a pass
    of its own, which reads them again later. This repeats if necessary, down to single rows, for which at most one
    window waits.

    Args:
        rows: the contiguous rows of the global batch that this rank reads.
        backwards: reverses each document.

    Raises (while iterating):
        UserError, OSError: raised by reading the split.
        UserError: a pass has no documents, or another length than the first.
    """

    def __init__(
        self,
        split: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        bptt: int,
        seed: int,
        rows: range,
        window: int = 1000,
        backwards: bool = False,
        max_waiting: int = 2**26,
    ) -> None:
        assert bptt >= 1 and window >= 1 and rows.step == 1 and 0 <= rows.start < rows.stop <= batch_size
        self.split, self.tokenizer = split, tokenizer
        self.batch_size, self.bptt, self.seed, self.rows = batch_size, bptt, seed, rows
        self.window, self.backwards, self.max_waiting = window, backwards, max_waiting
        self.num_documents: int | None = None  # of one pass, known after the first
        self.num_passes = 0  # opened so far, to measure the cost of a stream
        self._dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        source = hashlib.sha256(f"{split.fingerprint}/{tokenizer.fingerprint}/{window}".encode()).hexdigest()
        self.identity = {
            "source": source[:32],
            "batch_size": batch_size,
            "bptt": bptt,
            "seed": seed,
            "direction": "backwards" if backwards else "forwards",
        }

    def steps_per_epoch(self, epoch: int = 0) -> None:
        """None, because rows reach the end of an epoch at different steps."""
        return None

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """Endlessly yield batches, each with the state after it.

        The yielded state covers the rows of this rank; `merge_states` merges those of all ranks. `state` may be any
        one that covers this rank's rows.

        Raises:
            UserError: the state belongs to another stream.
        """
        check_identity(state, self.identity)
        step, rows, place = 0, [Row(number, 0) for number in self.rows], START
        if state is not None:
            mine = positions_of(state, self.rows)
            step, rows = state["step"], [Row(document, offset) for document, offset in mine]
            place = state["place"]
            self.num_documents = self.num_documents or state["num_documents"]
        readers = [Reader(self, self.split, rows, place)]
        grid = np.empty((len(rows), self.bptt + 1), dtype=np.int64)
        while True:
            self.fill(readers, self.bptt)  # and the target of the last token
            for values, row in zip(grid, rows, strict=True):
                row.read_into(values)
            batch = LMBatch(
                torch.from_numpy(grid[:, :-1].copy()),
                torch.from_numpy(grid[:, 1:].copy()),
                num_targets=self.batch_size * self.bptt,
                reset=step == 0,
                epoch=0,
                step_in_epoch=step,
            )
            step += 1
            yield (
                batch,
                self.identity
                | {
                    "step": step,
                    "num_documents": self.num_documents,
                    "rows": [self.rows.start, self.rows.stop],
                    "positions": [[row.document, row.offset] for row in rows],
                    "place": min((reader.oldest_place() for reader in readers), key=number_of),
                },
            )

    def fill(self, readers: list[Reader], least: int, wanted: Row | None = None) -> None:
        """Read until every row, or the wanted one, has more than `least` tokens. It may append to `readers`."""
        for reader in readers:  # the list may grow during the loop
            while any(row.available <= least for row in reader.rows if wanted is None or row is wanted):
                reader.read_window()
                if len(reader.rows) > 1 and sum(row.weight for row in reader.rows) > self.max_waiting:
                    readers.append(reader.split_off_slower_half())


class Row:
    """The waiting documents of one row; `offset` tokens of the first one are already read."""

    def __init__(self, document: int, offset: int) -> None:
        self.document, self.offset = document, offset
        self.next = document  # number of the row's first document that is not tokenised yet
        self.waiting: deque[tuple[int, np.ndarray]] = deque()
        self.available = -offset

    @property
    def weight(self) -> int:
        """Memory of the waiting documents, in tokens, with the overhead of their objects."""
        return self.available + OVERHEAD * len(self.waiting)

    def append(self, document: int, ids: np.ndarray) -> None:
        self.waiting.append((document, ids))
        self.available += len(ids)

    def skip(self, count: int, batch_size: int) -> bool:
        """Advance by `count` tokens of the first document. Returns whether it is finished."""
        self.offset += count
        self.available -= count
        if self.offset < len(self.waiting[0][1]):
            return False
        self.waiting.popleft()
        self.document, self.offset = self.document + batch_size, 0
        return True

    def drop(self) -> None:
        """Discard the waiting documents. They will be read again."""
        self.waiting.clear()
        self.next, self.available = self.document, -self.offset

    def read_into(self, values: np.ndarray) -> None:
        """Copy the next tokens, [bptt + 1], and advance by bptt, because the last target is the next input."""
        filled, offset = 0, self.offset
        for _, ids in self.waiting:
            piece = ids[offset : offset + len(values) - filled]
            values[filled : filled + len(piece)] = piece
            filled, offset = filled + len(piece), 0
            if filled == len(values):
                break
        assert filled == len(values)
        self.offset += len(values) - 1
        self.available -= len(values) - 1
        while self.offset >= len(self.waiting[0][1]):
            self.offset -= len(self.waiting.popleft()[1])
        self.document = self.waiting[0][0]


# A place is the start of a window. `number`: number of its first document, over all epochs. `first`: number of the
# first document of its pass. `epoch`, `window`: numbers of epoch and window. `skip`: texts to skip from the position
# `split` of the split on.
START: dict[str, Any] = {"number": 0, "first": 0, "epoch": 0, "window": 0, "split": None, "skip": 0}
number_of = itemgetter("number")


class Reader:
    """Reads the corpus pass after pass, from `place` on, for some of the rows."""

    def __init__(self, source: StreamedRows, split: Any, rows: list[Row], place: dict[str, Any]) -> None:
        self.source, self.split, self.rows = source, split, rows
        self._start = place
        self._windows = self._read(place)
        self._places: deque[dict[str, Any]] = deque()  # places of windows already read, from the oldest needed one on
        self._row_of = {row.next % source.batch_size: row for row in rows}

    def oldest_place(self) -> dict[str, Any]:
        """The place of the window with the first document that a row still needs."""
        oldest = min(row.document for row in self.rows)
        while len(self._places) > 1 and number_of(self._places[1]) <= oldest:
            self._places.popleft()
        return self._places[0] if self._places else self._start

    def read_window(self) -> None:
        """Tokenise the documents of the next window that belong to these rows, and append them to the rows."""
        source = self.source
        place, texts = next(self._windows)
        self._places.append(place)
        first = number_of(place)
        chosen = [
            number
            for number in range(first, first + len(texts))
            if (row := self._row_of.get(number % source.batch_size)) and number >= row.next
        ]
        if not chosen:
            return
        ids, lengths = source.tokenizer.encode_flat([texts[number - first] for number in chosen])
        end = 0
        for number, length in zip(chosen, lengths.tolist(), strict=True):
            start, end = end, end + length
            document = ids[start:end][::-1] if source.backwards else ids[start:end]
            row = self._row_of[number % source.batch_size]
            # astype makes a copy: a view would keep the whole window in memory while one document waits.
            row.append(number, document.astype(source._dtype))
            row.next = number + source.batch_size

    def split_off_slower_half(self) -> Reader:
        place = self.oldest_place()
        ordered = sorted(self.rows, key=lambda row: row.available)
        half = len(ordered) // 2
        for row in ordered[half:]:
            row.drop()
        self.rows = ordered[:half]
        self._row_of = {row.next % self.source.batch_size: row for row in self.rows}
        # A copy, because a split counts its skipped rows, and two passes must not share the counts.
        return Reader(self.source, copy.copy(self.split), ordered[half:], place)

    def _read(self, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield (place, shuffled texts) of each window, from the one at `place` on."""
        source, split = self.source, self.split
        while True:
            source.num_passes += 1
            end = number_of(place)
            for window, texts in self._cut(place):
                order = permutation(len(texts), source.seed, window["epoch"], window["window"])
                yield window, [texts[i] for i in order]
                end = number_of(window) + len(texts)
            split.check()
            length = end - place["first"]
            if length == 0:
                raise UserError(f"the split {split.name!r} holds no documents; check the data and its columns")
            if source.num_documents not in (None, length):
                raise UserError(
                    f"the split {split.name!r} had {source.num_documents} documents, now {length}; "
                    "start afresh by --resume never, on data that stays"
                )
            source.num_documents = length
            place = START | {"number": end, "first": end, "epoch": place["epoch"] + 1}

    def _cut(self, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield (place, texts in the order of the corpus) of each window of a pass, from `place` on."""
        before, skip, size = place["split"], place["skip"], self.source.window
        window: list[str] = []
        for batch in self.split.batches(start=before):
            taken = min(skip, len(batch.texts))
            skip -= taken
            while taken < len(batch.texts):
                if not window:
                    place = place | {"split": before, "skip": taken}
                part = batch.texts[taken : taken + size - len(window)]
                window += part
                taken += len(part)
                if len(window) == size:
                    yield place, window
                    place = place | {"number": number_of(place) + size, "window": place["window"] + 1}
                    window = []
            before = batch.after
        if window:
            yield place, window
