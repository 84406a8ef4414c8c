"""Progress of a pass over a corpus: a bar on a terminal, else a line every ten seconds, on standard error.

Before the first step, a large corpus is hashed, its vocabulary is trained and its texts are tokenised. This may take
hours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

from ulmfit.console import duration, say

EVERY = 10.0  # seconds between lines


class Meter:
    """Shows progress, speed, and if the total is known the time left.

    Nothing is shown before the first count. If the console is closed, only the display stops.

    Args:
        what: description of the work.
        total: rows or bytes in all, as counted by `add` or `count`; None if not known.
        console: standard error by default.
        clock: returns seconds.
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        console: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._console: TextIO | None = sys.stderr if console is None else console
        self._bar: tqdm | None = None
        self._begun = self._shown = clock()
        self._first: int | None = None  # the count when this process started
        self._texts = self._bytes = 0
        self._lines = 0

    def add(self, batch: Any) -> None:
        """Count a `TextBatch`. The time left depends on rows of the source, because skipped rows take time too."""
        if self._first is None:
            self._first = batch.rows[0]
        self._texts += len(batch.texts)
        self._bytes += sum(len(text.encode()) for text in batch.texts)
        self._show(batch.after["row"], f"{self._texts:,} texts")

    def count(self, done: int, total: int) -> None:
        """Set the progress to `done` of `total` bytes."""
        if self._first is None:
            self._first = 0
        self._total, self._bytes = total, done
        self._show(done, f"{done / 1e9:,.1f} of {total / 1e9:,.1f} GB")

    def close(self) -> None:
        """Remove the bar. If lines were printed, print the total time."""
        if self._bar is not None:
            self._try(self._bar.close)
        elif self._lines:
            self._print(f"{self._what}: {self._amount} in {duration(self._clock() - self._begun)}")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, done: int, amount: str) -> None:
        now, self._amount = self._clock(), amount
        speed = f"{self._bytes / 1e6 / max(1e-9, now - self._begun):,.1f} MB/s"
        if self._console is not None and self._is_terminal():
            self._try(lambda: self._move(done, speed))
        elif now - self._shown >= EVERY:
            self._shown = now
            self._lines += 1
            self._print(f"{self._what}: {amount}, {speed}{self._left(done, now)}")

    def _left(self, done: int, now: float) -> str:
        passed = done - (self._first or 0)
        if self._total is None or passed <= 0:
            return ""
        return f", left {duration((now - self._begun) / passed * max(0, self._total - done))}"

    def _move(self, done: int, speed: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=self._what,
                total=self._total,
                initial=self._first or 0,
                unit="",
                unit_scale=True,
                file=self._console,
                dynamic_ncols=True,
                leave=False,
            )
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(done - self._bar.n)

    def _is_terminal(self) -> bool:
        with suppress(ValueError, OSError):  # the console is closed
            return self._console is not None and self._console.isatty()
        return False

    def _print(self, line: str) -> None:
        self._try(lambda: say(line, self._console))

    def _try(self, action: Callable[[], Any]) -> None:
        if self._console is None:
            return
        try:
            action()
        except (OSError, ValueError):
            self._console = None
            if self._bar is not None:
                self._bar.disable = True


def metered_texts(split: Any, what: str, *, most: int | None = None) -> Iterator[str]:
    """Iterate over at most `most` texts of a split, with a meter."""
    expected = split.expected_rows()
    total = expected if most is None or expected is None else min(most, expected)
    left = most
    with Meter(what, total=most if total is None else total) as meter:
        for batch in split.batches():
            texts = batch.texts[:left]
            yield from texts
            meter.add(batch)
            left = None if left is None else left - len(texts)
            if left == 0:
                return
