"""Standard output and error of a command, which may be closed, full, or a pipe whose reader has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class OutputLost(Exception):
    """What a command prints is its result, and it cannot be written.

    Attributes:
        reader_left: whether stdout is a pipe whose reader has gone.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written ({error.strerror}); send it to another place")
        self.reader_left = isinstance(error, BrokenPipeError)


class _Stream:
    """A text stream whose failures are told as OutputLost where it is `needed`, and else end its output silently."""

    def __init__(self, stream: TextIO, *, needed: bool) -> None:
        self._stream, self._needed = stream, needed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        # What is still buffered must go somewhere: the interpreter flushes at its end, and exits with 120 if it fails.
        discard(self._stream)
        if self._needed:
            raise OutputLost(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams(*, needed: bool = True) -> Iterator[None]:
    """Within it a standard stream that fails ends nothing; but where stdout is `needed`, it raises OutputLost."""
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _wrap(sys.stdout, needed=needed), _wrap(sys.stderr, needed=False)
    try:
        yield
    finally:
        with suppress(OutputLost):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _wrap(stream: TextIO, *, needed: bool) -> _Stream:
    if isinstance(stream, _Stream):
        stream = stream._stream
    # A character that the terminal cannot show, or half of one in a prompt, is shown as \x...
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return _Stream(stream, needed=needed)


def _open_closed() -> None:
    """Put the null device where a standard stream is closed (`>&-`).

    The next file to be opened would take its number, and be written to by all that prints past Python.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: that of the closed stream
        setattr(sys, name, open(null, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def discard(stream: TextIO) -> None:
    """Send what else is written to a stream nowhere."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
