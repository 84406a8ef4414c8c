"""Random orders as functions of (seed, epoch, ...). Because of this a position in the data is only a few integers."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np

CHUNK = 2**18  # numbers in memory at a time: they fit into a core's cache
_BUCKETS = 2**16


class Draw(IntEnum):
    """What is drawn by (seed, epoch) beside the order of an epoch's documents, each with a generator of its own."""

    STEPS = 1  # the order of a classifier's steps
    LABELS = 2  # the documents of --labels
    BASELINE_ROWS = 3  # the texts of the baseline, where there are too many
    NGRAM_ROWS = 4  # the texts that n-grams are trained on, where there are too many
    TAUGHT_ROWS = 5  # the texts without a label that n-grams learn of the networks


def generator(seed: int, *place: int) -> np.random.Generator:
    """A generator that depends only on (seed, place), which are integers >= 0."""
    # The length is included, because SeedSequence gives the same for [1] and [1, 0].
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(place), seed, *place])))


def permutation(n: int, seed: int, *place: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], that depends only on (n, seed, place).

    It sorts the generator's raw numbers instead of calling `Generator.permutation`. numpy guarantees that the raw
    stream never changes, but does not guarantee this for its shuffles, and a run must resume with a later numpy.
    """
    keys = generator(seed, *place).bit_generator.random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def permuted_part(lengths: np.ndarray, begin: int, end: int, seed: int, *place: int) -> tuple[np.ndarray, int]:
    """The part of permuted pieces that covers an interval, without sorting the others.

    The pieces, in the order of `permutation(len(lengths), seed, *place)`, lie one after another. Their keys are drawn
    twice in chunks: first to sum the lengths by the upper bits of the key, which tells what keys the interval has, and
    then to find the pieces with such keys. Only these are sorted. So time for sorting, and memory, are in proportion
    to the interval; what remains for all pieces is to draw their keys.

    Args:
        lengths: of the pieces in their own order, int [n].
        begin, end: positions in the permuted whole, 0 <= begin < end <= sum of lengths.

    Returns:
        Indices of neighbouring pieces in the permuted order, int64, which cover the interval and little more, and the
        position of the first one.
    """
    totals = np.zeros(_BUCKETS)  # float64 sums whole numbers exactly up to 2^53
    for start, _, buckets in _keys(len(lengths), seed, place):
        totals += np.bincount(buckets, weights=lengths[start : start + len(buckets)], minlength=_BUCKETS)
    bounds = np.zeros(_BUCKETS + 1, dtype=np.int64)
    np.cumsum(totals.astype(np.int64), out=bounds[1:])
    first = int(np.searchsorted(bounds, begin, side="right")) - 1
    last = int(np.searchsorted(bounds, end, side="left"))
    found, keys_found = [], []
    for start, keys, buckets in _keys(len(lengths), seed, place):
        chosen = np.flatnonzero((buckets >= first) & (buckets < last))
        found.append(chosen + start)
        keys_found.append(keys[chosen])
    order = np.argsort(np.concatenate(keys_found), kind="stable")
    return np.concatenate(found)[order], int(bounds[first])


def _keys(n: int, seed: int, place: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Chunks of the keys by which `permutation` sorts: index of the first, keys uint64, their upper bits int64."""
    bits = generator(seed, *place).bit_generator
    for start in range(0, n, CHUNK):
        keys = bits.random_raw(min(CHUNK, n - start))
        yield start, keys, (keys >> np.uint64(48)).astype(np.int64)
