"""Language-model batches: `batch_size` rows, each a long text that is read in windows of `bptt` tokens.

Row r of step t continues row r of step t - 1, so that the hidden state can be carried over (truncated
back-propagation through time). The batch is global: the tokens of row r at step t depend only on (corpus, seed,
batch_size, bptt, t), and a rank reads the `rows` that it holds. Two sources have the same interface,
`batches(state) -> (LMBatch, state)`: `CachedRows` reads a token cache, `StreamedRows` a corpus too large for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.mixture import EpochTexts
from ulmfit.batches.order import generator, permutation, permuted_part
from ulmfit.batches.position import LMBatch, check_identity, merge_states
from ulmfit.batches.stream import StreamedRows
from ulmfit.errors import UserError

__all__ = ["CachedRows", "LMBatch", "StreamedRows", "merge_states"]

IGNORED = -100  # the target that torch's losses ignore
MOST_JITTER = 25  # a step with jitter has at most bptt plus so many tokens
_JITTER = 1  # gives the step lengths another generator than the order of documents


class CachedRows:
    """Rows of the shuffled corpus of a token cache.

    Epoch e concatenates all documents in an order drawn from (seed, e). Its N tokens give N - 1 pairs (token, next
    token), which are divided into `batch_size` contiguous rows whose lengths differ by at most one. So every token
    is a target exactly once, except the first, and an input at most once. The last step is shorter. Its last column is
    padding (input `pad_id`, target -100) in the rows that are shorter by one.

    Args:
        rows: the contiguous rows of the global batch that this rank reads.
        shuffle: False keeps the documents in the order of the corpus (validation).
        backwards: reads the whole concatenated text in reverse, as fastai v1 does.
        jitter: step lengths vary around `bptt` (Merity et al. 2017, section 5), in the same way on all ranks.

    Raises:
        UserError: there are fewer pairs than rows.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch_size: int,
        bptt: int,
        seed: int,
        rows: range,
        shuffle: bool = True,
        backwards: bool = False,
        jitter: bool = False,
        pad_id: int = 1,
    ) -> None:
        assert bptt >= 1 and rows.step == 1 and 0 <= rows.start < rows.stop <= batch_size
        pairs = store.num_tokens - 1
        if pairs < batch_size:
            raise UserError(
                f"{store.num_tokens} tokens do not fill {batch_size} rows with 2 tokens each; "
                f"lower --batch-size to {max(1, pairs)} or less, or give more text"
            )
        self.store, self.batch_size, self.bptt, self.seed, self.rows = store, batch_size, bptt, seed, rows
        self.shuffle, self.backwards, self.jitter, self.pad_id = shuffle, backwards, jitter, pad_id
        cuts = np.arange(batch_size + 1, dtype=np.int64) * pairs // batch_size
        self._starts, self._sizes = cuts[:-1], np.diff(cuts)
        self._longest = int(self._sizes.max())
        self._identity = {"source": store.fingerprint, "batch_size": batch_size, "bptt": bptt, "seed": seed}
        # Cached, because every step needs it; two entries, because batches are read ahead into the next epoch.
        self._cached_ends = lru_cache(maxsize=2)(self._draw_ends if jitter else self._equal_ends)

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return len(self._step_ends(epoch))

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """Endlessly yield batches, from `state` or epoch 0 on, each with the state after it.

        The state is small, JSON-able and equal on all ranks.

        Raises:
            UserError: the state belongs to another corpus, tokenizer, batch size, bptt or seed.
        """
        check_identity(state, self._identity)
        epoch, step = (state["epoch"], state["step"]) if state else (0, 0)
        while True:
            last = self.steps_per_epoch(epoch) - 1
            for batch in self.epoch_batches(epoch, step):
                done = batch.step_in_epoch == last
                following = {"epoch": epoch + done, "step": 0 if done else batch.step_in_epoch + 1}
                yield batch, self._identity | following
            epoch, step = epoch + 1, 0

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterator[LMBatch]:
        """Batches of one epoch from step `start` on. A later `start` costs no more than 0."""
        ends = self._step_ends(epoch)
        text = _JoinedText(self, epoch)
        mine = slice(self.rows.start, self.rows.stop)
        for step in range(start, len(ends)):
            begin = int(ends[step - 1]) if step else 0
            length = int(ends[step]) - begin
            counts = np.clip(self._sizes - begin, 0, length)
            grid, counts_here, sources = text.read(self._starts[mine] + begin, counts[mine], length)
            tokens, targets = grid[:, :-1].copy(), grid[:, 1:].copy()
            if counts_here.min() < length:
                masked = np.arange(length) >= counts_here[:, None]
                tokens[masked], targets[masked] = self.pad_id, IGNORED
            yield LMBatch(
                torch.from_numpy(tokens),
                torch.from_numpy(targets),
                num_targets=int(counts.sum()),
                reset=step == 0,
                epoch=epoch,
                step_in_epoch=step,
                lr_scale=length / self.bptt if self.jitter else 1.0,
                sources=sources,
            )

    def _step_ends(self, epoch: int) -> np.ndarray:
        """Tokens of the longest row read after each step of an epoch, int64 [steps]."""
        return self._cached_ends(epoch if self.jitter else 0)

    def _equal_ends(self, epoch: int) -> np.ndarray:
        return np.minimum(np.arange(self.bptt, self._longest + self.bptt, self.bptt), self._longest)

    def _draw_ends(self, epoch: int) -> np.ndarray:
        rng = generator(self.seed, epoch, _JITTER)
        pieces, total = [], 0
        while total < self._longest:
            base = np.where(rng.random(1024) < 0.95, self.bptt, self.bptt / 2)
            # At least 5 tokens, as Merity et al.; at most 5 standard deviations above bptt, to bound memory.
            lengths = np.clip(rng.normal(base, 5.0).astype(np.int64), 5, self.bptt + MOST_JITTER)
            pieces.append(total + np.cumsum(lengths))
            total = int(pieces[-1][-1])
        ends = np.concatenate(pieces)
        return np.minimum(ends[: int(np.searchsorted(ends, self._longest)) + 1], self._longest)


class _JoinedText:
    """The concatenated documents of one epoch, limited to those that the rows of one rank need."""

    def __init__(self, source: CachedRows, epoch: int) -> None:
        self.backwards = source.backwards
        texts = source.store.of_epoch(source.seed, epoch) if source.shuffle else source.store
        self._gather = texts.gather
        self._sources = (texts.source_of, texts.num_sources) if isinstance(texts, EpochTexts) else None
        num_documents, self.total = texts.num_documents, texts.num_tokens
        lengths = texts.lengths
        # Keep only what this rank reads, because the order of all documents of a large corpus takes much memory.
        begin = int(source._starts[source.rows.start])
        end = int(source._starts[source.rows[-1]] + source._sizes[source.rows[-1]]) + 1
        if self.backwards:
            begin, end = self.total - end, self.total - begin
        position = 0
        if not source.shuffle:
            order = np.arange(num_documents)
        elif len(source.rows) == source.batch_size:
            order = permutation(num_documents, source.seed, epoch)
        else:
            order, position = permuted_part(lengths, begin, end, source.seed, epoch)
        bounds = np.empty(len(order) + 1, dtype=np.int64)
        bounds[0] = position
        np.cumsum(lengths[order], out=bounds[1:])
        bounds[1:] += position
        first = int(np.searchsorted(bounds, begin, side="right")) - 1
        last = int(np.searchsorted(bounds, end, side="left"))
        self._bounds = bounds[first : last + 1].copy()
        self._offsets = np.asarray(texts.offsets[order[first:last]])

    def read(
        self, begins: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor | None]:
        """counts[k] + 1 tokens from position begins[k] on, for all k: int64 [rows, length + 1], padded with 0.

        Also counts, and how many of the tokens are of each source of a mixture (None for one corpus).
        """
        if self.backwards:
            # Mirror the positions, read the rows from last to first, and reverse the result: this reverses each row.
            starts, sizes = self._pieces((self.total - begins - counts - 1)[::-1], (self.total - begins)[::-1])
            ids = self._gather(starts, sizes)[::-1]
        else:
            starts, sizes = self._pieces(begins, begins + counts + 1)
            ids = self._gather(starts, sizes)
        sources = None
        if self._sources is not None:
            source_of, num_sources = self._sources
            sources = torch.from_numpy(np.bincount(source_of(starts), sizes, num_sources).astype(np.int64))
        if counts.min() == length:
            return ids.reshape(len(begins), length + 1).astype(np.int64), counts, sources
        grid = np.zeros((len(begins), length + 1), dtype=np.int64)
        grid[np.arange(length + 1) <= counts[:, None]] = ids
        return grid, counts, sources

    def _pieces(self, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths) in the store of the tokens from begins[k] to ends[k] - 1, for all k, in order."""
        first = np.searchsorted(self._bounds, begins, side="right") - 1
        num_pieces = np.searchsorted(self._bounds, ends, side="left") - first
        row = np.repeat(np.arange(len(begins)), num_pieces)
        before = np.cumsum(num_pieces) - num_pieces
        document = np.arange(len(row)) + np.repeat(first - before, num_pieces)
        piece_begins = np.maximum(self._bounds[document], begins[row])
        piece_ends = np.minimum(self._bounds[document + 1], ends[row])
        starts = self._offsets[document] + piece_begins - self._bounds[document]
        return starts, piece_ends - piece_begins
