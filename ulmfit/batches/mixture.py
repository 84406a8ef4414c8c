"""Several token caches with weights, read as one corpus. Defines what a weight means, here and for streams.

* A weight is a share of the tokens that training reads, after division by the sum of all weights. It is no share of the
  documents: a source of long documents gives fewer of them. Without weights the shares are those of the tokens that the
  sources have, so that every text is read once an epoch.
* An epoch has as many tokens as all sources together, T. Source i gives round(w_i T) of them, exactly the same number in
  every epoch (largest remainders). So the length of a training does not depend on the weights.
* Each source is read in passes. A pass is a random order of its documents, drawn from (seed, pass, source), in which each
  token occurs once. The source's passes one after another are one endless text, and each epoch takes the next round(w_i T)
  tokens of it. A small source with a large weight is therefore read several times an epoch, and a large one with a small
  weight goes on in the next epoch where it stopped: no text is read again before all others of its source were. A
  document at the end of an epoch may be cut, and its other part is in the next epoch.
* The documents of an epoch, of all sources, are shuffled by (seed, epoch) as those of one corpus.
* A stream (`mixed_stream`) has no epochs. Each row of the batch keeps the shares by itself, and sources run on into their
  next pass too.
* Validation reads each held-out text of each source once. Loss and accuracy are the means over the sources by weight,
  perplexity is that of this loss: they estimate those on the mixture. Each source's loss is told too.

The position stays (epoch, step): which tokens a step reads is a function of (sources, weights, seed, epoch, step).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.order import permuted_part

_PASSES = 2  # gives the orders within sources other generators than the order of an epoch and the jitter of steps


@dataclass(frozen=True)
class EpochTexts:
    """What an epoch reads, with the names of `TokenStore`: pieces of documents instead of documents.

    Attributes:
        num_documents, num_tokens: counts.
        offsets: int64 [num_documents], each piece's first token in the mixture.
        lengths: int64 [num_documents].
        gather: as `TokenStore.gather`.
        num_sources: sources of the mixture.
        source_of: int64 [k] positions in the mixture -> int64 [k] numbers of their sources.
    """

    num_documents: int
    num_tokens: int
    offsets: np.ndarray
    lengths: np.ndarray
    gather: Callable[[np.ndarray, np.ndarray], np.ndarray]
    num_sources: int
    source_of: Callable[[np.ndarray], np.ndarray]


class MixedStore(TokenStore):
    """The token caches of several sources, one after another. For the meaning of weights see above.

    Args:
        parts: (name, weight, store) of each source. Weights are all None, or all positive; they need not sum to 1.

    Attributes:
        names: of the sources.
        weights: shares of the tokens, which sum to 1.
        quotas: tokens of each source in an epoch. Their sum is `num_tokens`.
    """

    def __init__(self, parts: Sequence[tuple[str, float | None, TokenStore]]) -> None:
        self.names = [name for name, _, _ in parts]
        self.stores = [store for _, _, store in parts]
        sizes = [store.num_tokens for store in self.stores]
        given = [size if weight is None else weight for (_, weight, _), size in zip(parts, sizes, strict=True)]
        self.weights = [weight / sum(given) for weight in given]
        self.num_documents = sum(store.num_documents for store in self.stores)
        self.num_tokens = sum(sizes)
        self.vocab_size = self.stores[0].vocab_size
        self.dtype = self.stores[0].dtype
        self.skipped = dict(sum((Counter(store.skipped) for store in self.stores), Counter[str]()))
        self.labels = None
        self.quotas = (
            sizes if parts[0][1] is None else quotas(self.weights, self.num_tokens)
        )  # floats of sizes need not give them back
        self.fingerprint = _hash(
            [(store.fingerprint, quota) for store, quota in zip(self.stores, self.quotas, strict=True)]
        )
        self._bases = np.cumsum([0, *sizes])[:-1]

    @property
    def lengths(self) -> np.ndarray:  # type: ignore[override]
        """int64 [num_documents]; joined on access, because a second copy of all columns would take much memory."""
        return np.concatenate([store.lengths.astype(np.int64) for store in self.stores])

    @property
    def offsets(self) -> np.ndarray:  # type: ignore[override]
        """int64 [num_documents], each document's first token in the mixture; joined on access."""
        pairs = zip(self.stores, self._bases.tolist(), strict=True)
        return np.concatenate([store.offsets[: store.num_documents].astype(np.int64) + base for store, base in pairs])

    @property
    def passes(self) -> list[float]:
        """How often each source is read in an epoch."""
        return [quota / store.num_tokens for quota, store in zip(self.quotas, self.stores, strict=True)]

    def parts(self) -> list[tuple[str, float, TokenStore]]:
        """(name, share, store) of each source."""
        return list(zip(self.names, self.weights, self.stores, strict=True))

    def of_epoch(self, seed: int, epoch: int) -> EpochTexts:
        """The pieces of documents that an epoch reads, one source after another."""
        offsets, lengths = [], []
        for number, (store, quota, base) in enumerate(zip(self.stores, self.quotas, self._bases.tolist(), strict=True)):
            for starts, sizes in _pieces(store, epoch * quota, (epoch + 1) * quota, seed, number):
                offsets.append(starts + base)
                lengths.append(sizes)
        starts, sizes = np.concatenate(offsets), np.concatenate(lengths)
        return EpochTexts(len(starts), self.num_tokens, starts, sizes, self.gather, len(self.stores), self.source_of)

    def source_of(self, positions: np.ndarray) -> np.ndarray:
        """The number of the source of each position in the mixture."""
        return np.searchsorted(self._bases, positions, side="right") - 1

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `TokenStore.gather`, with positions in the mixture."""
        starts, lengths = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
        sources = self.source_of(starts)
        ends = np.cumsum(lengths)
        ids = np.empty(int(ends[-1]) if len(ends) else 0, dtype=self.dtype)
        for number in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == number)
            sizes = lengths[mine]
            read = self.stores[number].gather(starts[mine] - self._bases[number], sizes)
            # The places of these tokens in the result: each piece's first one, and the numbers from there on.
            begins = ends[mine] - sizes
            within = np.arange(len(read)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            ids[np.repeat(begins, sizes) + within] = read
        return ids


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Share `total` tokens in proportion to the weights, which sum to 1, by largest remainders."""
    exact = [weight * total for weight in weights]
    whole = [int(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda number: (whole[number] - exact[number], number))
    for number in order[: total - sum(whole)]:
        whole[number] += 1
    return whole


def _pieces(store: TokenStore, begin: int, end: int, seed: int, source: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(starts, lengths) of the pieces from token `begin` to token `end` - 1 of the passes of a source, by pass.

    Of a pass that is read in part only that part is sorted.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    if begin == end:  # a weight too small for a token
        return found
    size = store.num_tokens
    for number in range(begin // size, -(-end // size)):
        first, last = max(0, begin - number * size), min(size, end - number * size)
        order, position = permuted_part(store.lengths, first, last, seed, number, source, _PASSES)
        bounds = np.full(len(order) + 1, position, dtype=np.int64)
        bounds[1:] += np.cumsum(store.lengths[order], dtype=np.int64)
        a = int(np.searchsorted(bounds, first, side="right")) - 1
        b = int(np.searchsorted(bounds, last, side="left"))
        begins, ends = np.maximum(bounds[a:b], first), np.minimum(bounds[a + 1 : b + 1], last)
        starts = store.offsets[order[a:b]].astype(np.int64) + begins - bounds[a:b]
        some = ends > begins
        found.append((starts[some], (ends - begins)[some]))
    return found


def _hash(value: Any) -> str:
    return sha256(repr(value).encode()).hexdigest()[:32]
