"""A process that tells events, a line of JSON each, and can be waited for, given up and killed.

What runs on a GPU may hang in a kernel or leave the device of its process unusable, and no exception ends that. So
every part of a measurement and every stage of the reproduction runs in a process of its own, and the one that waits
for it needs no torch.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class Child:
    """A started process. `seen` holds the last event of each kind by the key `event`.

    Args:
        log: where its stderr goes; None: to ours.
    """

    def __init__(self, command: Sequence[str], *, log: Path | None = None) -> None:
        self.ended, self.seen = False, dict[str, dict[str, Any]]()
        self._log = open(log, "a") if log else None
        # A group of its own, so that the processes that it starts end with it.
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, process_group=0
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # a library of the child may have found its way to stdout
                self._events.put(json.loads(line))
        self._events.put(None)

    def send(self, order: Any) -> None:
        """Write a line of JSON to its stdin. One that has ended is told by `next`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next event, waiting at most so long; None when the process has ended.

        Raises:
            TimeoutError: nothing came.
        """
        if self.ended:
            return None
        try:
            event = self._events.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError from None
        if event is None:
            self.ended = True
        elif "event" in event:
            self.seen[event["event"]] = event
        return event

    def code(self) -> int:
        """How it ended: its exit status, or the signal's number with a minus."""
        return self._process.wait()

    def close(self) -> None:
        """Kill it and what it has started."""
        self.ended = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._log:
            self._log.close()
