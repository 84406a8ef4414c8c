"""Random orders as functions of (seed, epoch, ...). Because of this a position in the data is only a few integers."""

from __future__ import annotations

import numpy as np


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
