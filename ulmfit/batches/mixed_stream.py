"""Language-model batches of several sources with weights that are too large for a token cache (streaming).

Document g of a source, in the order of `StreamedRows`, belongs to row g mod batch_size. So each row has a text of its own
in every source. It reads whole documents of them, and when one ends it draws the source of the next: with a probability in
proportion to the tokens by which the source is behind its share, if the row were to read `AHEAD` tokens more. So the
choice is random, but the tokens that a row has read of a source never exceed its share by more than `AHEAD` tokens and a
document. The draw depends on (seed, row, number of documents that the row has read) and on the tokens that it has read of
each source: on nothing that another rank knows. For the meaning of weights see `mixture`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from ulmfit.batches.position import LMBatch, check_identity
from ulmfit.batches.stream import START, Reader, Row, StreamedRows, number_of, positions_of

AHEAD = 2**14  # tokens; the choice among the sources is the more random the larger it is
_MOST_WAITING = 2**26  # tokens of all sources that wait, as in `StreamedRows`


class MixedStreamedRows:
    """Rows of several streamed sources. The interface, and what is said of memory and positions, are those of
    `StreamedRows`; the options are the same for all sources.

    Position: for each row the source of its current document, the number of tokens of it that are read, and for each
    source the row's next document and the tokens of its finished ones; and for each source the place in its files.

    Args:
        sources: (name, weight, split) of each; the weights are above 0.
        max_waiting: tokens of all sources that wait.
        options: of `StreamedRows`.

    Attributes:
        names, weights: of the sources; the weights sum to 1.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, float, Any]],
        tokenizer: Any,
        *,
        max_waiting: int = _MOST_WAITING,
        **options: Any,
    ) -> None:
        total = sum(weight for _, weight, _ in sources)
        self.names = [name for name, _, _ in sources]
        self.weights = [weight / total for _, weight, _ in sources]
        each = max(1, max_waiting // len(sources))
        self.streams = [StreamedRows(split, tokenizer, max_waiting=each, **options) for _, _, split in sources]
        first = self.streams[0]
        self.batch_size, self.bptt, self.seed, self.rows = first.batch_size, first.bptt, first.seed, first.rows
        self._identity = first.identity | {
            "source": sha256("".join(str(stream.identity["source"]) for stream in self.streams).encode()).hexdigest()[
                :32
            ],
            "weights": self.weights,
        }

    def steps_per_epoch(self, epoch: int = 0) -> None:
        """None, because rows reach the end of a pass at different steps."""
        return None

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """As `StreamedRows.batches`.

        Raises:
            UserError: the state belongs to other streams.
        """
        check_identity(state, self._identity)
        step, places = 0, [START] * len(self.streams)
        positions: list[Any] = [None] * len(self.rows)
        if state is not None:
            positions = positions_of(state, self.rows)
            step, places = state["step"], state["place"]
            for stream, number in zip(self.streams, state["num_documents"], strict=True):
                stream.num_documents = stream.num_documents or number
        rows = [_MixedRow(self, number, position) for number, position in zip(self.rows, positions, strict=True)]
        readers = [
            [Reader(stream, stream.split, [row.texts[source] for row in rows], place)]
            for source, (stream, place) in enumerate(zip(self.streams, places, strict=True))
        ]
        grid = np.empty((len(rows), self.bptt + 1), dtype=np.int64)
        while True:
            read = np.zeros(len(self.streams), dtype=np.int64)
            for values, row in zip(grid, rows, strict=True):
                row.read_into(values, readers, read)
            batch = LMBatch(
                torch.from_numpy(grid[:, :-1].copy()),
                torch.from_numpy(grid[:, 1:].copy()),
                num_targets=self.batch_size * self.bptt,
                reset=step == 0,
                epoch=0,
                step_in_epoch=step,
                sources=torch.from_numpy(read),
            )
            step += 1
            yield (
                batch,
                self._identity
                | {
                    "step": step,
                    "num_documents": [stream.num_documents for stream in self.streams],
                    "rows": [self.rows.start, self.rows.stop],
                    "positions": [row.position() for row in rows],
                    "place": [min((reader.oldest_place() for reader in group), key=number_of) for group in readers],
                },
            )


class _MixedRow:
    """One row of the batch: its text in each source, and the source of its current document."""

    def __init__(self, source: MixedStreamedRows, number: int, position: list[Any] | None) -> None:
        self._source, self._number = source, number
        num_sources = len(source.streams)
        if position is None:
            self._tokens = [0] * num_sources  # of the finished documents of each source
            self.texts = [Row(number, 0) for _ in range(num_sources)]
            self._current = self._chosen()
        else:
            self._current, offset, documents, self._tokens = position[0], position[1], position[2], list(position[3])
            self.texts = [
                Row(document, offset if source == self._current else 0) for source, document in enumerate(documents)
            ]

    def position(self) -> list[Any]:
        """[source, tokens read of the current document, next documents by source, tokens by source]."""
        documents = [text.document for text in self.texts]
        return [self._current, self.texts[self._current].offset, documents, list(self._tokens)]

    def read_into(self, values: np.ndarray, readers: list[list[Reader]], read: np.ndarray) -> None:
        """Copy the next tokens, [bptt + 1], and advance by bptt, because the last target is the next input.

        Args:
            readers: by source; they may become more.
            read: int64 [S], to which the number of tokens read of each source is added.
        """
        filled, bptt = 0, len(values) - 1
        while filled < bptt:
            text, ids = self._document(readers)
            piece = ids[text.offset : text.offset + bptt - filled]
            values[filled : filled + len(piece)] = piece
            filled += len(piece)
            read[self._current] += len(piece)
            if text.skip(len(piece), self._source.batch_size):
                self._tokens[self._current] += len(ids)
                self._current = self._chosen()
        text, ids = self._document(readers)
        values[bptt] = ids[text.offset]

    def _document(self, readers: list[list[Reader]]) -> tuple[Row, np.ndarray]:
        """The row's text in the current source, and the ids of its current document, read if need be."""
        while True:
            text = self.texts[self._current]
            if not text.waiting:
                self._source.streams[self._current].fill(readers[self._current], 0, text)
            if len(text.waiting[0][1]):
                return text, text.waiting[0][1]
            text.skip(0, self._source.batch_size)  # a document without tokens
            self._current = self._chosen()

    def _chosen(self) -> int:
        """The source of the next document."""
        weights, batch_size = self._source.weights, self._source.batch_size
        reach = sum(self._tokens) + AHEAD
        behind = [max(0.0, weight * reach - read) for weight, read in zip(weights, self._tokens, strict=True)]
        count = sum((text.document - self._number) // batch_size for text in self.texts)
        left = _uniform(self._source.seed, self._number, count) * sum(behind)
        for source, part in enumerate(behind):
            left -= part
            if left < 0:
                return source
        return max(range(len(behind)), key=behind.__getitem__)  # rounding


def _uniform(seed: int, row: int, count: int) -> float:
    """A number in [0, 1) from (seed, row, count): 53 bits of three rounds of splitmix64, which costs a microsecond."""
    value = 0
    for number in (seed, row, count):
        value = (value ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return (value >> 11) / 2**53
