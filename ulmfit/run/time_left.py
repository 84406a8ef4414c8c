"""The time left of a run whose stages have steps of different cost."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class TimeLeft:
    """Time to the last step, by the speed since this process began or, if that is later, the present stage did.

    A stage that trains the head alone is several times as fast as one that trains all layers. So speed is work a second,
    where the work of a step is that of its stage.

    Args:
        stages: (steps, work of a step in any unit) of each stage.
        start_step: steps that were done before this process.
    """

    def __init__(self, stages: Sequence[tuple[int, float]], start_step: int = 0) -> None:
        self._ends = list(accumulate((steps for steps, _ in stages), initial=0))
        self._works = [work for _, work in stages]
        self._done = list(accumulate((steps * work for steps, work in stages), initial=0.0))
        self._since, self._began = self._next = start_step, time.monotonic()  # from where speed is measured

    def passed(self, step: int) -> None:
        """Take notice that `step` steps are done. To be called for each."""
        if step in self._ends and step > self._since:
            self._next = step, time.monotonic()
        elif step > self._next[0]:
            self._since, self._began = self._next

    def seconds(self, step: int) -> float:
        """Seconds from the end of step `step` (1-based) to that of the last one; NaN if no speed is known yet."""
        worked = self._work(step) - self._work(self._since)
        if worked <= 0:
            return math.nan
        return (time.monotonic() - self._began) / worked * (self._done[-1] - self._work(step))

    def _work(self, step: int) -> float:
        """The work of the first `step` steps."""
        stage = min(bisect_right(self._ends, step) - 1, len(self._works) - 1)
        return self._done[stage] + (step - self._ends[stage]) * self._works[stage]
