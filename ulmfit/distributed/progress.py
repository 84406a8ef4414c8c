"""What this process is doing now, for the watchdog and for the timing of slow ranks."""

from __future__ import annotations

import time
from typing import Any

import torch

WAITING = "waiting for the other ranks"


class Progress:
    """Current activity of the loop. The loop updates it, at negligible cost.

    Attributes:
        step: the current step.
        doing: the current activity, in words.
        count: heartbeat counter, incremented at each update; unchanged means stuck.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self.step, self.doing, self.count = 0, "starting", 0
        self._began: Any = None
        self._works: list[tuple[Any, Any]] = []
        self._own_work = 0.0

    def now(self, doing: str) -> None:
        """Set the current activity."""
        self.doing = doing
        self.count += 1

    def beat(self) -> None:
        """Heartbeat: the same activity makes progress."""
        self.count += 1

    def begin_step(self, step: int) -> None:
        """Start a step. Its first activity is to read the batch."""
        self.step = step
        self._began = self._mark()
        self.now("reading data")

    def waits(self) -> None:
        """From now on the process may wait for other ranks. The first call in a step ends the time of its own work."""
        if self._began is not None:
            self._works.append((self._began, self._mark()))
            self._began = None
        self.now(WAITING)

    def own_work(self) -> float:
        """Mean seconds of this process's own work in a step, over the steps since the last call.

        This is the time before a step's first collective: reading and forward pass (the backward pass overlaps with the
        reduction). On a GPU it is time of the GPU, and of the steps that it has finished: the host does not wait for
        the others, which count in the next call. If there is none, the last mean holds.
        """
        finished = len(self._works)
        if self._on_gpu:
            finished = next((i for i, (_, ended) in enumerate(self._works) if not ended.query()), finished)
        works, self._works = self._works[:finished], self._works[finished:]
        if works:
            times = [began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began for began, ended in works]
            self._own_work = sum(times) / len(times)
        return self._own_work

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
