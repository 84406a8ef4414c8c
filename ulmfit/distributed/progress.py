"""What this process is doing, for those who ask from outside: the watchdog and the metrics of stragglers."""

from __future__ import annotations

import time
from typing import Any

import torch

WAITING = "waiting for the other ranks"


class Progress:
    """Where the loop stands, told by the loop itself at no cost worth naming.

    Attributes:
        step: the step in hand.
        doing: in words.
        count: rises whenever something new is told; a count that stands still means a process that does.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self.step, self.doing, self.count = 0, "starting", 0
        self._began: Any = None
        self._works: list[tuple[Any, Any]] = []

    def now(self, doing: str) -> None:
        """From here on the process does something else."""
        self.doing = doing
        self.count += 1

    def beat(self) -> None:
        """The process still does what it did, and gets on with it."""
        self.count += 1

    def begin_step(self, step: int) -> None:
        """The next step begins, by reading its batch."""
        self.step = step
        self._began = self._mark()
        self.now("reading data")

    def waits(self) -> None:
        """From here on the process may have to wait for other ranks. The first time in a step ends what
        counts as its own work."""
        if self._began is not None:
            self._works.append((self._began, self._mark()))
            self._began = None
        self.now(WAITING)

    def own_work(self) -> float:
        """Seconds of the steps since the last call that this process spent before it first met the others:
        reading and the forward pass (the backward pass overlaps with the reduction). On a GPU, of its time;
        the device must have finished these steps."""
        works, self._works = self._works, []
        if self._on_gpu:
            return sum(began.elapsed_time(ended) for began, ended in works) / 1000
        return sum(ended - began for began, ended in works)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
