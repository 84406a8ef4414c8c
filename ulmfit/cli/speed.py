"""How far a long command is: a bar on a terminal, else a line every ten seconds, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ulmfit.console import duration

EVERY = 10.0  # seconds between two lines


class Speed:
    """Tells how many rows are done, how many a second, and how long the rest takes.

    Args:
        total: about how many there are; None if it is not known.
        done: rows of an earlier process, which do not count for the speed.
        bar: whether a bar may be shown.
        clock: seconds.
    """

    def __init__(
        self, total: int | None, done: int = 0, *, bar: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._first, self._done, self._clock = total, done, done, clock
        self._began = self._last = clock()
        self._bar: Any = None
        if bar and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=" rows", unit_scale=False, file=sys.stderr,
                             dynamic_ncols=True, leave=False)  # fmt: skip

    def now(self, done: int) -> None:
        """So many rows are done, in all."""
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done
        if self._bar is None and self._clock() - self._last >= EVERY:
            self._last = self._clock()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        seconds = max(self._clock() - self._began, 1e-9)
        speed = (self._done - self._first) / seconds
        total = self._total if self._total is not None and self._total >= self._done else None
        of = f" of {total:,}" if total is not None else ""
        left = f", {duration((total - self._done) / speed)} left" if total is not None and speed else ""
        return f"{self._done:,}{of} rows, {speed:,.0f} a second{left}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
