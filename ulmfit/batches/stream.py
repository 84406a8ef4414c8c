"""Language-model batches of a corpus that is too large for a token cache."""

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

OVERHEAD = 128  # tokens that take as much memory as the objects around a waiting document


class StreamedRows:
    """Rows of a corpus that is tokenised while it is read, endlessly, without a cache.

    Each pass (epoch) is cut into windows of `window` documents (the last one shorter), shuffled inside by
    (seed, epoch, window). The documents are numbered in this order over all epochs; number g goes to row
    g mod batch_size. So a rank reads all texts but tokenises only its own, and rows run on from epoch to
    epoch without padding: all batches are [rows, bptt].

    Position: for each row the document that it reads and how many of its tokens it has read, and the place of
    the oldest window that a row still needs. Resuming goes to that place (what a seek costs: `text.shards`) and
    reads on from there to where the fastest row was; it tokenises again only what the rows still need. Rows
    drift apart as the square root of the documents read (see Memory): after a million short documents some
    thirty thousand are read again, which takes a few seconds.

    Memory: rows advance at the same number of tokens a step but unequal numbers of documents, so documents
    wait for the rows that are behind, about as the square root of the documents read. When more than
    `max_waiting` tokens wait (a document counting `OVERHEAD` tokens more than it has), the slower half of the
    rows drops them and is served by a second pass of its own, which reads them again later; and so on, down to
    single rows, for which at most one window waits.

    Args:
        rows: the rows of the global batch that this rank reads, contiguous.
        backwards: each document reversed.

    Raises (while iterating):
        UserError, OSError: what reading the split raises.
        UserError: a pass without documents; a pass of another length.
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
        self.num_passes = 0  # opened so far, for those who watch what a stream costs
        self._dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        source = hashlib.sha256(f"{split.fingerprint}/{tokenizer.fingerprint}/{window}".encode()).hexdigest()
        self._identity = {
            "source": source[:32],
            "batch_size": batch_size,
            "bptt": bptt,
            "seed": seed,
            "direction": "backwards" if backwards else "forwards",
        }

    def steps_per_epoch(self, epoch: int = 0) -> None:
        """None: rows cross the end of an epoch at different steps."""
        return None

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """Batches without end, each with the state to go on after it.

        The state covers the rows of this rank: `merge_states` joins those of all ranks, and any state that
        covers this rank's rows may be given. UserError if it is of another stream.
        """
        check_identity(state, self._identity)
        step, rows, place = 0, [_Row(number, 0) for number in self.rows], _START
        if state is not None:
            first, last = state["rows"]
            assert first <= self.rows.start and self.rows.stop <= last, "merge the states of all ranks first"
            mine = state["positions"][self.rows.start - first : self.rows.stop - first]
            step, rows = state["step"], [_Row(document, offset) for document, offset in mine]
            place = state["place"]
            self.num_documents = self.num_documents or state["num_documents"]
        readers = [_Reader(self, self.split, rows, place)]
        grid = np.empty((len(rows), self.bptt + 1), dtype=np.int64)
        while True:
            self._fill(readers)
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
                self._identity
                | {
                    "step": step,
                    "num_documents": self.num_documents,
                    "rows": [self.rows.start, self.rows.stop],
                    "positions": [[row.document, row.offset] for row in rows],
                    "place": min((reader.oldest_place() for reader in readers), key=_number),
                },
            )

    def _fill(self, readers: list[_Reader]) -> None:
        """Read on until every row has a step's tokens and the target of its last."""
        for reader in readers:  # grows while it is walked through
            while any(row.available <= self.bptt for row in reader.rows):
                reader.read_window()
                if len(reader.rows) > 1 and sum(row.weight for row in reader.rows) > self.max_waiting:
                    readers.append(reader.split_off_slower_half())


class _Row:
    """What one row has still to read: `offset` tokens of the first waiting document are behind it."""

    def __init__(self, document: int, offset: int) -> None:
        self.document, self.offset = document, offset
        self.next = document  # number of the first document that is not waiting here
        self.waiting: deque[tuple[int, np.ndarray]] = deque()
        self.available = -offset

    @property
    def weight(self) -> int:
        """What waits here, in tokens, with the memory that documents take beside them."""
        return self.available + OVERHEAD * len(self.waiting)

    def append(self, document: int, ids: np.ndarray) -> None:
        self.waiting.append((document, ids))
        self.available += len(ids)

    def drop(self) -> None:
        """Forget what waits; it will be read again."""
        self.waiting.clear()
        self.next, self.available = self.document, -self.offset

    def read_into(self, values: np.ndarray) -> None:
        """Copy the next tokens, [bptt + 1], and advance by bptt: the last target is the next input."""
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


# A place is where a window begins: `number` of its first document over all epochs, that of its pass (`first`),
# `epoch`, number of the `window` in it, and the texts to `skip` from the place `split` of the split on.
_START: dict[str, Any] = {"number": 0, "first": 0, "epoch": 0, "window": 0, "split": None, "skip": 0}
_number = itemgetter("number")


class _Reader:
    """One pass after another through the corpus, for some of the rows, from `place` on."""

    def __init__(self, source: StreamedRows, split: Any, rows: list[_Row], place: dict[str, Any]) -> None:
        self.source, self.split, self.rows = source, split, rows
        self._windows = self._read(place)
        self._places: deque[dict[str, Any]] = deque()  # of the windows that were read, from the oldest needed on
        self._row_of = {row.next % source.batch_size: row for row in rows}

    def oldest_place(self) -> dict[str, Any]:
        """Where the window begins that holds the first document which a row still needs."""
        oldest = min(row.document for row in self.rows)
        while len(self._places) > 1 and _number(self._places[1]) <= oldest:
            self._places.popleft()
        return self._places[0]

    def read_window(self) -> None:
        """Tokenise what the next window holds for these rows and let it wait there."""
        source = self.source
        place, texts = next(self._windows)
        self._places.append(place)
        first = _number(place)
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
            # astype copies: a view would keep the whole window alive for as long as one document waits.
            row.append(number, document.astype(source._dtype))
            row.next = number + source.batch_size

    def split_off_slower_half(self) -> _Reader:
        place = self.oldest_place()
        ordered = sorted(self.rows, key=lambda row: row.available)
        half = len(ordered) // 2
        for row in ordered[half:]:
            row.drop()
        self.rows = ordered[:half]
        self._row_of = {row.next % self.source.batch_size: row for row in self.rows}
        # A copy, because a split counts the rows that it skips, and the two passes would mix their counts.
        return _Reader(self.source, copy.copy(self.split), ordered[half:], place)

    def _read(self, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """(its place, shuffled texts) of each window from the one at `place` on."""
        source, split = self.source, self.split
        while True:
            source.num_passes += 1
            end = _number(place)
            for window, texts in self._cut(place):
                order = permutation(len(texts), source.seed, window["epoch"], window["window"])
                yield window, [texts[i] for i in order]
                end = _number(window) + len(texts)
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
            place = _START | {"number": end, "first": end, "epoch": place["epoch"] + 1}

    def _cut(self, place: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """The windows of a pass from `place` on, in the order of the corpus."""
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
                    place = place | {"number": _number(place) + size, "window": place["window"] + 1}
                    window = []
            before = batch.after
        if window:
            yield place, window
