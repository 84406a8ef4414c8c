"""Stop requests: signals, a stop file, a time limit, the end of the launcher. Also the file that asks for a checkpoint.

Imports no torch, so that a script can install the handlers before its long imports. Without them a signal would kill
the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ulmfit.errors import StoppedEarly

# SIGHUP: the terminal was closed, or its connection is lost.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOP_FILE = "stop"
# A file and no signal: launchers hand on none that is free, and die of it.
SAVE_FILE = "save-now"
MAX_TIME = "--max-time"
# A launcher forwards a Ctrl-C that its processes may also get from the terminal. Within so many seconds the two count
# as one.
ECHO = 1.0
# Environment variables that launchers set for their workers: torchrun and accelerate with several processes, and
# accelerate with one.
LAUNCHER_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StopRequest:
    """A flag that signals set. The training loop reads it, and the ranks agree on it.

    Before the first step a request ends long work on the corpus at once (`interruptible`). The second Ctrl-C stops at
    once: a script exits with code 130, a call from Python raises KeyboardInterrupt.

    Attributes:
        reason: the reason of the request; None without one.
        interrupted: True if it came by Ctrl-C in a call from Python.
        in_loop: True while the loop, or an evaluation after it, reads requests. At other times Ctrl-C raises KeyboardInterrupt at once.
        raised: True after a request has ended long work.
        before_leaving: called on rank 0 before a process that does not answer a request is ended.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._kept: set[Path] = set()  # requests for a checkpoint that could not be removed
        self.interrupted = self.in_loop = self.raised = False
        self._interruptible = 0  # nesting depth
        self._interrupts, self._last_interrupt = 0, -ECHO
        # Workers have their own sessions, so they survive a launcher that is killed, and must notice its end. Without
        # a launcher the parent is a shell, which the user may close while the run continues.
        self._launcher = os.getppid() if any(mark in os.environ for mark in LAUNCHER_MARKS) else None
        self._deadline: float | None = None
        self._file: Path | None = None
        self._job_file: Path | None = None
        self._former: dict[int, Any] = {}
        self.before_leaving: Callable[[], object] = lambda: None

    @classmethod
    def install(cls) -> StopRequest:
        """Handle `SIGNALS` from now on; SIGHUP only if it is not ignored, as it is after `nohup`."""
        request = cls()
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                request._former[number] = signal.signal(number, request._on_signal)
        return request

    @property
    def handles_signals(self) -> bool:
        """Whether signals set this flag: in scripts, and not in calls from Python."""
        return bool(self._former)

    @property
    def is_interruptible(self) -> bool:
        """Whether the process is in long work before the first step."""
        return self._interruptible > 0

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context of long work of this process alone, without collectives, in which a request raises StoppedEarly.

        Only the main thread may enter it, because signal handlers run there. It does nothing for requests that
        signals do not set.
        """
        if not self.handles_signals:
            yield
            return
        self._interruptible += 1
        try:
            self._raise_if_asked()
            yield
        finally:
            self._interruptible -= 1

    def _raise_if_asked(self) -> None:
        if self._interruptible and not self.raised and self.requested():
            self.raised = True
            raise StoppedEarly(str(self.reason))

    def release(self) -> None:
        """Restore the former signal handlers, and raise again a signal that has arrived meanwhile."""
        self.restore()
        if self.reason is not None:
            signal.raise_signal(signal.Signals[self.reason])

    def restore(self) -> None:
        """Restore the former signal handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @classmethod
    @contextmanager
    def on_interrupt(cls) -> Iterator[StopRequest]:
        """Context in which the first Ctrl-C requests a stop and the second raises KeyboardInterrupt.

        It is for calls from Python. The former handler is restored at the end, because the process belongs to the
        caller. It acts in the main thread only, because Python runs signal handlers only there.
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
        # A signal is more urgent than the time limit, see `ends_evaluations`. In long work it may be that of `EarlyStop`.
        if self.reason is None or (self.reason == MAX_TIME and not self._interruptible):
            self.reason = signal.Signals(number).name
        self._raise_if_asked()

    def watch(self, directory: Path, max_minutes: float | None, started: float) -> None:
        """Also stop for a file named `stop` in the run directory, or `max_minutes` after `started`.

        A stop file of an earlier run is removed when the run directory's lock is created.
        """
        self._file = directory / STOP_FILE
        self._deadline = None if max_minutes is None else started + 60 * max_minutes

    def watch_job(self, directory: Path) -> None:
        """Also stop for a file named `stop` in the directory of a job, whose trainings have directories of their own."""
        self._job_file = directory / STOP_FILE

    def save_requested(self) -> bool:
        """Whether a file named `save-now` in the directory of the run or the job asks for a checkpoint."""
        return any(_is_there(file) for file in self._save_files() if file not in self._kept)

    def take_save_request(self) -> None:
        """Remove the file that asks for a checkpoint, before it is written: a file made later asks for another one."""
        for file in self._save_files():
            try:
                if _is_there(file):
                    file.unlink(missing_ok=True)
            except OSError as error:  # else it would ask for another checkpoint every second
                self._kept.add(file)
                sys.stderr.write(f"{file} cannot be removed ({error.strerror}) and asks for no more checkpoints\n")

    def _save_files(self) -> list[Path]:
        return [file.with_name(SAVE_FILE) for file in (self._file, self._job_file) if file is not None]

    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = MAX_TIME
        # The others are more urgent than the time limit, see `ends_evaluations`.
        files = [file for file in (self._file, self._job_file) if file is not None]
        if self.reason in (None, MAX_TIME) and any(map(_is_there, files)):
            self.reason = f"{STOP_FILE} file"
        if self.reason in (None, MAX_TIME) and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "the launcher's death"
        return self.reason is not None

    def ends_evaluations(self) -> bool:
        """Whether an evaluation should be left unfinished. The resumed run begins with it.

        The time limit does not ask for that: with one shorter than an evaluation, the run would never get beyond it.
        """
        return self.requested() and self.reason != MAX_TIME


def _is_there(file: Path) -> bool:
    """Whether there is a file. A disk that does not tell, as one behind a network may for a while, asks for nothing."""
    try:
        return file.is_file()
    except OSError:
        return False


def _announce() -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        sys.stderr.write("\nstopping, and saving what is done; Ctrl-C again to leave at once\n")
