"""The part of a permutation that a rank needs, found without sorting the rest."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ulmfit.batches import order
from ulmfit.batches.order import permutation, permuted_part


def check(lengths: np.ndarray, begin: int, end: int, *place: int) -> int:
    """The part covers [begin, end) and is a run of the permutation; returns the number of its pieces."""
    part, position = permuted_part(lengths, begin, end, *place)
    whole = permutation(len(lengths), *place)
    bounds = np.concatenate([[0], np.cumsum(lengths[whole])])
    first = int(np.flatnonzero(whole == part[0])[0])
    assert np.array_equal(part, whole[first : first + len(part)]) and part.dtype == np.int64
    assert position == bounds[first] <= begin and bounds[first + len(part)] >= end
    return len(part)


@pytest.mark.parametrize("chunk", [1, 7, 2**18])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_every_interval_of_a_few_pieces(n, chunk, monkeypatch):
    monkeypatch.setattr(order, "CHUNK", chunk)
    lengths = np.random.default_rng(n).integers(1, 4, n, dtype=np.int32)
    total = int(lengths.sum())
    for begin in range(0, total, 1 + total // 10):
        for end in range(begin + 1, total + 1, 1 + total // 10):
            check(lengths, begin, end, 3, 1)
        check(lengths, begin, total, 3, 1)


def test_a_hundredth_of_many_pieces_sorts_about_a_hundredth(monkeypatch):
    monkeypatch.setattr(order, "CHUNK", 1000)
    lengths = np.random.default_rng(0).integers(1, 1000, 200_000)
    total = int(lengths.sum())
    for rank in (0, 37, 99):
        assert 1900 < check(lengths, total * rank // 100, total * (rank + 1) // 100, 5, 2) < 2100


def test_equal_keys_keep_the_order_of_the_corpus(monkeypatch):
    class Few:
        """A generator of five different keys."""

        def __init__(self):
            self.drawn = np.random.default_rng(1)

        def random_raw(self, n: int) -> np.ndarray:
            return self.drawn.integers(0, 5, n).astype(np.uint64) << np.uint64(61)

    monkeypatch.setattr(order, "generator", lambda *place: SimpleNamespace(bit_generator=Few()))
    monkeypatch.setattr(order, "CHUNK", 64)
    for begin, end in [(0, 10), (500, 900), (1990, 2000)]:
        check(np.full(1000, 2), begin, end, 0)
