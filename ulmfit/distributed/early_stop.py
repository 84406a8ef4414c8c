"""Before the first step: takes a request to stop to all ranks, and past code that runs no Python.

Python runs signal handlers in the main thread, between instructions of Python. A rank that waits in a collective, or a
vocabulary of subwords that is trained in Rust, runs none for minutes. So a thread of each rank looks for requests. It
tells the other ranks by the process group's store, and interrupts a main thread that is in long work
(`StopRequest.interruptible`). If this has no effect, all ranks end their processes: before the first step nothing is
lost that a kill would not lose.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ulmfit.distributed.stop import SIGNALS, StopRequest

PERIOD = 0.2  # seconds between looks
PATIENCE = 1.5  # seconds in which the main thread must have reacted
HEARD = 3.0  # seconds in which the other ranks hear that this one leaves
_ASKED, _LEAVES, _LEFT = "ulmfit/early stop", "ulmfit/early leave", "ulmfit/early left"


class EarlyStop:
    """A thread that watches for requests until `close`. It does nothing for requests that signals do not set.

    Args:
        store: the process group's (`set`, `check`, `add`); None for a single process.
        tell: called before the process is ended.
    """

    def __init__(self, stop: StopRequest, *, rank: int, world_size: int, store: Any, tell: Callable[[], None]) -> None:
        self._stop, self._rank, self._world_size, self._store, self._tell = stop, rank, world_size, store, tell
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if not stop.handles_signals or threading.current_thread() is not threading.main_thread():
            return
        # The C handler writes the signal's number here at once, even if Python's handler has to wait.
        self._arrived, self._pipe = os.pipe()
        for descriptor in (self._arrived, self._pipe):
            os.set_blocking(descriptor, False)
        self._former = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="early stop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. It may be called twice."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            signal.set_wakeup_fd(self._former)
            os.close(self._arrived)
            os.close(self._pipe)

    def _watch(self) -> None:
        asked: float | None = None
        while not self._closed.wait(PERIOD):
            with suppress(RuntimeError):  # the store is gone with the rank that holds it
                if asked is None and (self._is_asked() or self._is_told(_ASKED)):
                    asked = time.monotonic()
                    if self._store is not None:
                        self._store.set(_ASKED, "1")
                if self._is_told(_LEAVES):
                    self._leave()
            if asked is None or self._stop.raised or not self._stop.is_interruptible:
                continue
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            if time.monotonic() - asked > PATIENCE:
                self._leave()

    def _is_asked(self) -> bool:
        arrived = b""
        with suppress(BlockingIOError):
            arrived = os.read(self._arrived, 64)
        return self._stop.requested() or any(number in SIGNALS for number in arrived)

    def _is_told(self, key: str) -> bool:
        return self._store is not None and self._store.check([key])

    def _leave(self) -> None:
        """End this process, once all ranks have heard of it, for they may wait for it in a collective."""
        with suppress(RuntimeError):
            if self._store is not None:
                self._store.set(_LEAVES, "1")
                self._store.add(_LEFT, 1)
                deadline = time.monotonic() + HEARD
                while self._store.add(_LEFT, 0) < self._world_size and time.monotonic() < deadline:
                    time.sleep(0.02)
        if self._rank == 0:
            with suppress(OSError):
                self._stop.before_leaving()
            self._tell()
        os._exit(0)
