"""Tells the other ranks that one has left an evaluation because it was asked to stop.

Each rank reads its own part of a split, and they meet only at the end: the number of batches differs, so that they cannot
agree after each as training does after each step. A request may reach one rank alone, as where one node is to be drained.
Without this the others would read their parts to the end, which takes minutes, for scores that are thrown away.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, ClassVar

PERIOD = 1.0  # seconds between looks: hundreds of ranks ask one store
_KEY = "ulmfit/left scoring/{}"


class LeftScoring:
    """Whether a rank has left the present evaluation.

    Attributes:
        number: of the present evaluation in this process, equal on all ranks. Several trainings of a process share a
            store, so that each goes on counting.

    Args:
        store: the process group's (`set`, `check`); None for a single process.
    """

    number: ClassVar[int] = 0

    def __init__(self, store: Any) -> None:
        self._store, self._looked = store, time.monotonic()

    def is_left(self, asked: bool) -> bool:
        """Whether to leave it: this rank was asked to, which the others are told, or another one has left it."""
        if self._store is None:
            return asked
        key = _KEY.format(LeftScoring.number)
        with suppress(RuntimeError):  # the store is gone with the rank that holds it: the next collective tells
            if asked:
                self._store.set(key, "1")
            elif time.monotonic() - self._looked >= PERIOD:
                self._looked = time.monotonic()
                return bool(self._store.check([key]))
        return asked

    def ended(self) -> None:
        """All ranks have read their parts, or left them."""
        if self._store is not None:
            LeftScoring.number += 1
