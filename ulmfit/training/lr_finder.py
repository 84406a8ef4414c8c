"""The learning-rate range test (Smith 2017, Cyclical Learning Rates; fastai's lr_find).

A mock training raises the rate exponentially and watches the smoothed loss; afterwards several rules read
a rate off the curve. What each rule gives for a curve is what fastai gives for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ulmfit.batches.prefetch import Prefetcher
from ulmfit.config import TrainConfig
from ulmfit.device import pinned
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.training import optim
from ulmfit.training.engine import build_engine
from ulmfit.training.loop import Task
from ulmfit.training.stages import Recipe

SMOOTHING = 0.98
DIVERGED = 4.0  # times the best smoothed loss
SLIDE_WIDTH, SLIDE_FLAT = 15, 0.005


def rate_at(k: int, num_it: int, *, start: float = 1e-7, end: float = 10.0) -> float:
    """The rate of mock step k (0-based): from `start` exponentially towards `end`, which step `num_it`
    would have."""
    return start * (end / start) ** (k / num_it)


class RangeTest:
    """The curve of one range test.

    Attributes:
        rates: the rate of each recorded step.
        losses: the loss after it, smoothed exponentially with the start's bias removed.
    """

    def __init__(self, num_it: int = 100, *, start: float = 1e-7, end: float = 10.0) -> None:
        assert num_it >= 1 and 0 < start < end
        self.num_it, self._start, self._end = num_it, start, end
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._sum, self._best = 0.0, math.inf

    @property
    def next_rate(self) -> float:
        """The rate of the step to be done now."""
        return rate_at(len(self.rates), self.num_it, start=self._start, end=self._end)

    def record(self, loss: float) -> bool:
        """Take the loss of the step done at `next_rate`; False when the test is over: all steps are done,
        the loss is no number, or it has grown to four times its best."""
        self.rates.append(self.next_rate)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        smoothed = self._sum / (1 - SMOOTHING ** len(self.rates))
        self.losses.append(smoothed)
        self._best = min(self._best, smoothed)
        return math.isfinite(smoothed) and smoothed <= DIVERGED * self._best and len(self.rates) < self.num_it

    @property
    def suggestions(self) -> dict[str, float]:
        """`suggest` on the curve without its first tenth and its last five steps.

        Raises:
            UserError: too little is left, because the loss grew or was lost at once.
        """
        skipped = self.num_it // 10
        found = suggest(self.rates[skipped:-5], self.losses[skipped:-5])
        if not found:
            raise UserError(
                f"the learning-rate finder stopped after {len(self.rates)} steps, too early for a "
                "curve, because the loss grew or was not finite; check the data, or use fp32"
            )
        return found

    def report(self) -> str:
        """The suggestions in words, the default first."""
        found = self.suggestions
        rules = {
            "valley": "in the middle of the longest descent",
            "slide": "before the slope changes for good",
            "minimum": "a tenth of the rate at the minimum",
            "steep": "steepest descent",
            "min_gradient": "steepest descent a step, as fastai v1",
        }
        lines = [f"  {name:13}{found[name]:.2e}  {text}" for name, text in rules.items() if name in found]
        return "\n".join(
            [
                f"learning-rate finder, {len(self.rates)} steps up to {self.rates[-1]:.2e}:",
                *lines,
                f"try --lr {next(iter(found.values())):.1e}",
            ]
        )


def run_finder(task: Task, recipe: Recipe, *, config: TrainConfig, runtime: Runtime) -> RangeTest:
    """The range test on the recipe's first stage. The task's weights are used up: make a new one to train."""
    stage, test = recipe.stages[0], RangeTest()
    trained = optim.freeze(task.net, task.groups, stage.freeze_to)
    rates = optim.discriminative_rates(1.0, stage.lr_divisor, len(task.groups))
    inner = optim.build_optimizer(
        task.net,
        task.groups,
        trained,
        rates,
        weight_decay=recipe.weight_decay,
        eps=config.adam_eps,
        decay_bias_norm=config.decay_bias_norm,
    )
    engine = build_engine(runtime)
    engine.begin_stage(task.net, inner)
    with Prefetcher(pinned(task.batches(None), runtime.device)) as batches:
        for number, (batch, _) in enumerate(batches):
            optim.set_hyperparameters(inner, test.next_rate, stage.momentum[0])
            result = task.step(engine, batch, number)
            engine.update(recipe.clip)
            if not test.record(runtime.sum(result.sums)[0].item() / result.num_predictions):
                return test
    raise AssertionError("batches go on without end")


def suggest(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """What each rule reads off a curve of smoothed losses, up to its first value that is no number.

    valley (fastai v2's default), slide (Novetta's; needs 16 points), minimum, steep, and min_gradient
    (v1's). Empty with fewer than 2 points.
    """
    y = np.asarray(losses, dtype=np.float64)
    x = np.asarray(rates, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        x, y = x[: bad[0]], y[: bad[0]]
    if len(y) < 2:
        return {}
    slope = np.gradient(y)  # a step, not a unit of rate
    found = {"valley": float(x[_valley(y)])}
    if len(y) > SLIDE_WIDTH:
        found["slide"] = float(x[_slide(slope)])
    found["minimum"] = float(x[y.argmin()]) / 10
    found["steep"] = float(x[(np.diff(y) / np.diff(np.log(x))).argmin()])
    found["min_gradient"] = float(x[slope.argmin()])
    return found


def _valley(y: np.ndarray) -> int:
    """Index within the longest valley: the longest strictly falling subsequence, of length n and first
    completed at `end`, is thought of as the n points before `end`; half of them on is the place (a third
    and half a third, each rounded down)."""
    tails: list[float] = []  # tails[n]: the highest end, negated, of a falling subsequence of n + 1 points
    longest = end = 0
    for i, value in enumerate(y):
        n = bisect_left(tails, -value)
        tails[n : n + 1] = [-value]
        if n + 1 > longest:
            longest, end = n + 1, i
    third = longest / 3
    return max(0, end - longest + int(third) + int(third / 2))


def _slide(slope: np.ndarray) -> int:
    """Index of the left edge of a window that slides from the right end while the slopes at its two edges
    differ by more than a threshold."""
    left = len(slope) - 1 - SLIDE_WIDTH
    place = left
    while left >= 0 and abs(slope[left + SLIDE_WIDTH] - slope[left]) > SLIDE_FLAT:
        place = left
        left -= 1
    return place
