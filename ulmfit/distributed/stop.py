"""Requests to stop: signals, a stop file, a time limit and the death of the launcher. Imports no torch, so that a
script can install the handlers first: a signal during a long import would otherwise kill the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOP_FILE = "stop"
# Set for their workers by torchrun (and accelerate's launchers of several processes) and by accelerate's of one.
# A launcher hands on the Ctrl-C that its processes may have had from the terminal already: within so many seconds it is one.
ECHO = 1.0
LAUNCHER_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StopRequest:
    """A flag that signals set; the training loop reads it and agrees on it between ranks.

    The second Ctrl-C leaves at once: a script with exit code 130, a call from Python by KeyboardInterrupt.

    Attributes:
        reason: why, once there is a request.
        interrupted: it came by Ctrl-C in a call from Python.
        in_loop: a request will be looked at; a Ctrl-C before or after that raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.interrupted = self.in_loop = False
        self._interrupts, self._last_interrupt = 0, -ECHO
        # Workers are in sessions of their own and outlive a launcher that is killed. Without a launcher the
        # parent is a shell, which one may leave while the run goes on.
        self._launcher = os.getppid() if any(mark in os.environ for mark in LAUNCHER_MARKS) else None
        self._deadline: float | None = None
        self._file: Path | None = None
        self._former: dict[int, Any] = {}

    @classmethod
    def install(cls) -> StopRequest:
        """Handle SIGTERM, SIGINT and SIGUSR1 from now on."""
        request = cls()
        for number in SIGNALS:
            request._former[number] = signal.signal(number, request._on_signal)
        return request

    def release(self) -> None:
        """Give the signals back to their former handlers, and hand on one that has come meanwhile."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self.reason is not None:
            signal.raise_signal(signal.Signals[self.reason])

    @classmethod
    @contextmanager
    def on_interrupt(cls) -> Iterator[StopRequest]:
        """Within it the first Ctrl-C asks for a stop and the second raises KeyboardInterrupt.

        For calls from Python, whose process is not ours: the handler that was there comes back. Only in the main
        thread, because Python runs handlers there alone.
        """
        request = cls()
        former = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or former is None:
            yield request
            return
        signal.signal(signal.SIGINT, request._on_interrupt)
        try:
            yield request
        finally:
            signal.signal(signal.SIGINT, former)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        echo = self._launcher is not None and now - self._last_interrupt < ECHO
        self._last_interrupt = now
        if echo and self.interrupted:
            return
        if self.interrupted or not self.in_loop:
            raise KeyboardInterrupt
        self.reason, self.interrupted = "KeyboardInterrupt", True
        _announce()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(130)
            _announce()
        self.reason = signal.Signals(number).name

    def watch(self, directory: Path, max_minutes: float | None, started: float) -> None:
        """Also stop for a file named `stop` in the run directory, or `max_minutes` after `started`.

        A stop file left from before is removed by whoever creates the run directory's lock.
        """
        self._file = directory / STOP_FILE
        self._deadline = None if max_minutes is None else started + 60 * max_minutes

    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "--max-time"
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"{STOP_FILE} file"
        if self.reason is None and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "the launcher's death"
        return self.reason is not None


def _announce() -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        sys.stderr.write("\nstopping after this step with a checkpoint; Ctrl-C again to leave at once\n")
