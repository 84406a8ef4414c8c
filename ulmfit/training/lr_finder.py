"""The learning-rate range test (Smith 2017, Cyclical Learning Rates; fastai's lr_find).

A trial training increases the rate exponentially and records the smoothed loss. Then several rules choose a rate
from the curve. For the same curve, each rule gives the same rate as in fastai.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ulmfit.batches.prefetch import Prefetcher
from ulmfit.config import TrainConfig
from ulmfit.device import pinned
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed
from ulmfit.files import replacing
from ulmfit.run import figures
from ulmfit.training import optim
from ulmfit.training.engine import build_engine
from ulmfit.training.stages import Recipe, Stage
from ulmfit.training.task import Task

SMOOTHING = 0.98
DIVERGED = 4.0  # the test ends when the smoothed loss is this many times its best value
SLIDE_WIDTH, SLIDE_FLAT = 15, 0.005
FOLDER = "lr_find"  # in the run directory


def rate_at(k: int, num_it: int, *, start: float = 1e-7, end: float = 10.0) -> float:
    """The rate of trial step k (0-based). It grows exponentially from `start` at step 0 to `end` at step `num_it`."""
    return start * (end / start) ** (k / num_it)


class RangeTest:
    """The curve of one range test.

    Args:
        stage: the name of the stage that is tested.
        alone: whether the recipe has no other stage, so that the report does not name it.
        weights: whose weights the test began with, in words.
        last_stage: the recipe's rate in the last stage, which `--lr` sets, divided by that in the tested stage.

    Attributes:
        rates: the rate of each recorded step.
        losses: the loss of each recorded step, exponentially smoothed with bias correction.
    """

    def __init__(
        self,
        num_it: int = 100,
        *,
        start: float = 1e-7,
        end: float = 10.0,
        stage: str = "",
        alone: bool = False,
        weights: str = "the weights at the start",
        last_stage: float = 1.0,
    ) -> None:
        assert num_it >= 1 and 0 < start < end
        self._stage, self._alone, self._weights, self._last_stage = stage, alone, weights, last_stage
        self.num_it, self._start, self._end = num_it, start, end
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._raw: list[float] = []
        self._sum, self._best = 0.0, math.inf

    @property
    def next_rate(self) -> float:
        """The rate of the next step."""
        return rate_at(len(self.rates), self.num_it, start=self._start, end=self._end)

    def record(self, loss: float) -> bool:
        """Record the loss of the step done at `next_rate`. Returns False at the end of the test.

        The test ends after all steps, or when the smoothed loss is not finite or above four times its best value.
        """
        self.rates.append(self.next_rate)
        self._raw.append(loss)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        smoothed = self._sum / (1 - SMOOTHING ** len(self.rates))
        self.losses.append(smoothed)
        self._best = min(self._best, smoothed)
        return math.isfinite(smoothed) and smoothed <= DIVERGED * self._best and len(self.rates) < self.num_it

    @property
    def suggestions(self) -> dict[str, float]:
        """Values of `--lr`, which is the rate of the last stage: see `marks`."""
        return {rule: rate * self._last_stage for rule, rate in self.marks.items()}

    @property
    def marks(self) -> dict[str, float]:
        """Rates of the tested stage: `suggest` on the curve without its first tenth and its last five steps.

        A rule that took noise for a descent is left out: at its rate the loss has hardly begun to fall, or rises again. If
        that is so of all rules, the default rule stays, and the report says that the curve is noisy.

        Raises:
            UserError: too few points are left, because the loss diverged at once; or the loss fell at no rate.
        """
        shown = slice(self.num_it // 10, -5)
        rates, losses = self.rates[shown], self.losses[shown]
        found = suggest(rates, losses)
        if not found:
            raise UserError(
                f"the learning-rate finder stopped after {len(self.rates)} steps, too early for a "
                "curve, because the loss grew or was not finite; check the data, or use fp32"
            )
        if not self._falls():
            raise UserError(
                "the learning-rate finder found no rate at which the loss falls; check the labels and the texts (ulmfit show)"
            )
        kept = {rule: rate for rule, rate in found.items() if _is_descent(rates, losses, rate)}
        return kept or dict(list(found.items())[:1])

    def _falls(self) -> bool:
        """Whether the loss is lower at some rate than at the beginning, each a mean of several steps.

        The smoothed curve does not tell: it begins with the mean of a few steps, so some easy batches at the start put its
        first point below all others.
        """
        first = np.asarray(self._raw[: max(1, min(self.num_it // 4, len(self._raw) // 2))])
        shown = np.asarray(self._raw[self.num_it // 10 : -5])
        width = max(1, min(self.num_it // 10, len(shown)))
        lowest = np.convolve(shown, np.full(width, 1 / width), "valid").min()
        return bool(lowest < first.mean() - 1e-9 * abs(first.mean()))  # a level curve differs in the last bits

    @property
    def is_noisy(self) -> bool:
        """Whether no rule found a descent that is larger than the noise."""
        shown = slice(self.num_it // 10, -5)
        return not any(_is_descent(self.rates[shown], self.losses[shown], rate) for rate in self.marks.values())

    def report(self) -> str:
        """The suggestions in a sentence for the user, the default rule first."""
        found = self.suggestions
        rules = {
            "valley": "in the middle of the longest descent",
            "slide": "before the slope changes for good",
            "minimum": "a tenth of the rate at the minimum",
            "steep": "steepest descent",
            "min_gradient": "steepest descent a step, as fastai v1 (and the blog post)",
        }
        lines = [f"  {name:13}{found[name]:.2e}  {text}" for name, text in rules.items() if name in found]
        return "\n".join(
            [
                f"learning-rate finder, {len(self.rates)} steps up to {self.rates[-1]:.2e}:",
                *self._tested(),
                *lines,
                *["  the curve is noisy, so look at it before; a larger --batch-size makes it smoother"]
                * self.is_noisy,
                f"try --lr {next(iter(found.values())):.1e}",
            ]
        )

    def save(self, folder: Path) -> Path:
        """Draw the curve with the suggestions into FOLDER/STAGE.png, and into an event file of TensorBoard there.

        Returns:
            The path of the picture.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter

        stage = self._stage or "all groups"
        title = f"{stage}: try --lr {next(iter(self.suggestions.values())):.1e}"
        shown = slice(self.num_it // 10, -5)
        figure = figures.finder_figure(self.rates, self.losses, self.marks, title=title, shown=shown)
        name = re.sub(r"\W+", "-", stage)
        path = folder / f"{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            aside.write_bytes(figures.png(figure))
        for earlier in folder.glob(f"events.*.{name}"):
            earlier.unlink()
        with SummaryWriter(str(folder), filename_suffix=f".{name}") as board:
            board.add_image(f"learning-rate finder/{stage}", figures.pixels(figure), 0, dataformats="HWC")
        return path

    def _tested(self) -> list[str]:
        """Lines that say which layers were trained from which weights, and what --lr means there; none if that is plain."""
        if self._alone or not self._stage:
            return []
        layers = "the head" if self._stage == "head" else f"{'the ' * ('last' in self._stage)}{self._stage} of layers"
        lines = [f"  it trained {layers}, from {self._weights}"]
        if self._last_stage != 1:
            lines.append(
                f"  --lr is the rate of the last stage, {self._last_stage:.3g} times the rate here, so these are values of --lr:"
            )
        return lines


def tested_stage(recipe: Recipe, name: str | None) -> Stage:
    """The stage of this name; without a name the last one, whose rate --lr sets.

    Raises:
        UserError: the recipe has no such stage.
    """
    for stage in reversed(recipe.stages):
        if name in (None, stage.name):
            return stage
    names = listed(stage.name for stage in recipe.stages)
    raise UserError(f"--lr-find-stage {excerpt(name)} is no stage of this training; give one of {names}")


def run_finder(
    task: Task, recipe: Recipe, *, config: TrainConfig, runtime: Runtime, goes_on: bool = False
) -> RangeTest:
    """Run the range test on a stage (`tested_stage`), from the task's present weights.

    It changes these weights: train with a new task.

    Args:
        goes_on: the weights are those of the stages before.
    """
    stage, last = tested_stage(recipe, config.lr_find_stage), recipe.stages[-1]
    weights = "the weights that the stages before have left" if goes_on else "the weights at the start"
    test = RangeTest(stage=stage.name, alone=len(recipe.stages) == 1, weights=weights, last_stage=last.lr / stage.lr)
    *_, inner = optim.begin_stage(
        task.net,
        task.groups,
        stage,
        lr=1.0,
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
    """The rate of each rule for a curve of smoothed losses. The curve ends before its first value that is not finite.

    The rules: valley (fastai v2's default), slide (Novetta's; needs 16 points), minimum, steep, and min_gradient
    (fastai v1's). Empty with fewer than 2 points.
    """
    y = np.asarray(losses, dtype=np.float64)
    x = np.asarray(rates, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        x, y = x[: bad[0]], y[: bad[0]]
    if len(y) < 2:
        return {}
    slope = np.gradient(y)  # per step, not per unit of rate
    found = {"valley": float(x[_valley(y)])}
    if len(y) > SLIDE_WIDTH:
        found["slide"] = float(x[_slide(slope)])
    found["minimum"] = float(x[y.argmin()]) / 10
    found["steep"] = float(x[(np.diff(y) / np.diff(np.log(x))).argmin()])
    found["min_gradient"] = float(x[slope.argmin()])
    return found


def _is_descent(rates: Sequence[float], losses: Sequence[float], rate: float) -> bool:
    """Whether the loss falls at this rate. By then it has fallen by more than the noise, and it falls further.

    The noise is the highest that the curve rises above an earlier point before its lowest one.
    """
    y = np.asarray(losses, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(y))
    y = y[: bad[0]] if len(bad) else y
    place, lowest = int(np.searchsorted(rates[: len(y)], rate * (1 - 1e-9))), int(y.argmin())
    before = y[: lowest + 1]
    noise = float((before - np.minimum.accumulate(before)).max())
    return place <= lowest and y[0] - y[place] > noise


def _valley(y: np.ndarray) -> int:
    """Index in the middle of the longest valley.

    The valley is the longest strictly decreasing subsequence. Let n be its length and `end` the index where it is
    first complete. It is treated as the n points before `end`. The result is its start plus a third plus a sixth of n,
    each rounded down.
    """
    tails: list[float] = []  # tails[n]: the highest last value, negated, of a decreasing subsequence of n + 1 points
    longest = end = 0
    for i, value in enumerate(y):
        n = bisect_left(tails, -value)
        tails[n : n + 1] = [-value]
        if n + 1 > longest:
            longest, end = n + 1, i
    third = longest / 3
    return max(0, end - longest + int(third) + int(third / 2))


def _slide(slope: np.ndarray) -> int:
    """Index of the left edge of a window. It slides from the right end to the left while the slopes at its two edges
    differ by more than a threshold."""
    left = len(slope) - 1 - SLIDE_WIDTH
    place = left
    while left >= 0 and abs(slope[left + SLIDE_WIDTH] - slope[left]) > SLIDE_FLAT:
        place = left
        left -= 1
    return place
