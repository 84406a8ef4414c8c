"""Lines on the console beside a progress bar: a line that is printed past the bar would be appended to it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ulmfit.errors import without_keys


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, above the progress bars of this process if there are any. Keys in URLs are left out.

    Args:
        stream: standard output by default.
    """
    stream, line = sys.stdout if stream is None else stream, without_keys(line)
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None:  # not imported, so there is no bar
        print(line, file=stream, flush=True)
        return
    tqdm.write(line, file=stream)
    stream.flush()


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03, or ? if not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def warnings_above_bars() -> Iterator[None]:
    """Context in which Python's warnings are printed by `say`, on standard error."""

    def show(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
        say(text, sys.stderr if file is None else file)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
