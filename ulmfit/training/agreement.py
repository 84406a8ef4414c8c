"""What the ranks agree on between two steps: to stop, to write a checkpoint now, that one could not be written.

A rank may be asked alone: a signal reaches one node, a file lies on one disk, a clock runs ahead. All ranks must act
after the same step, so they exchange their requests about once a second, after the same steps. The answer is read a
step late, when it has arrived: to wait for it at once would drain the queue of a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.run.saver import Saver

SECONDS = 1.0  # about so often the ranks ask each other
MOST_STEPS = 20  # at most so many steps apart, because the next steps may be much slower than the last ones


class Agreed(NamedTuple):
    """Requests of any rank, equal on all ranks.

    Attributes:
        stop: to stop after a checkpoint.
        save: to write a checkpoint and go on.
        failed: a checkpoint could not be written.
    """

    stop: bool
    save: bool
    failed: bool


class Agreement:
    """Asks all ranks for their requests, and tells what they agreed on.

    Args:
        save_minutes: minutes without a checkpoint after which one is due; None for never.
    """

    def __init__(self, runtime: Runtime, stop: StopRequest, saver: Saver, save_minutes: float | None) -> None:
        self._runtime, self._stop, self._saver = runtime, stop, saver
        self._save_seconds = None if save_minutes is None else 60 * save_minutes
        self._answer: Callable[[], list[float]] | None = None
        self._every = 1
        self._asked = (0, time.perf_counter())
        self.saved()

    def begin_stage(self, step: int) -> None:
        """Measure the pace again: steps are slower where more layers are trained."""
        self._every = 1
        self._asked = (step, time.perf_counter())

    def saved(self) -> None:
        """A checkpoint is being written: the minutes until the next one count from here."""
        self._last_save = time.monotonic()

    def after_step(self, step: int) -> Agreed | None:
        """What was agreed since the last step; None if nothing was asked (a collective)."""
        agreed = self.rest()
        # What was agreed is not done yet: asked now, a checkpoint that is due would be due once more.
        done = agreed is None or not (agreed.stop or agreed.save)
        if done and step % self._every == 0:
            self._ask(step)
            if self._runtime.world_size == 1:
                return self.rest()
        return agreed

    def rest(self) -> Agreed | None:
        """The answer that is still to be read; None if there is none."""
        if self._answer is None:
            return None
        wanted, save, failed, slowest = self._answer()
        self._answer = None
        self._every = max(1, min(MOST_STEPS, 2 * self._every, int(SECONDS / max(slowest, 1e-3))))
        return Agreed(bool(wanted), bool(save), bool(failed))

    def _ask(self, step: int) -> None:
        (last_step, last_time), now = self._asked, time.perf_counter()
        self._asked = (step, now)
        pace = (now - last_time) / max(1, step - last_step)
        due = self._save_seconds is not None and time.monotonic() - self._last_save >= self._save_seconds
        requests = [self._stop.requested(), due or self._stop.save_requested(), self._saver.failed, pace]
        self._answer = self._runtime.max_later(requests)
