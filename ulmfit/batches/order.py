"""Orders as functions of (seed, epoch, ...): what makes a position in the data a few integers."""

from __future__ import annotations

import numpy as np


def generator(seed: int, *place: int) -> np.random.Generator:
    """A generator that depends on (seed, place) alone; all of them integers >= 0."""
    # SeedSequence takes [1] and [1, 0] for the same; the length in front tells them apart.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(place), seed, *place])))


def permutation(n: int, seed: int, *place: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], that depends on (n, seed, place) alone.

    Sorts the generator's raw words instead of calling `Generator.permutation`: numpy promises that the raw
    stream never changes, but not what its distributions and shuffles make of it, and a run must be able to
    go on under a later numpy.
    """
    keys = generator(seed, *place).bit_generator.random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
