"""What the loop remembers from step to step, and stores in each checkpoint, besides weights and the optimizer's state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Position:
    """Progress of the run: the part of a checkpoint that is not tensors.

    Attributes:
        step: optimizer steps done, over all stages.
        stage: index of the current stage.
        step_in_stage: steps done in it.
        tokens: tokens read so far, over all ranks.
        data: position in the data after the last step; None before the first.
    """

    step: int = 0
    stage: int = 0
    step_in_stage: int = 0
    tokens: int = 0
    data: dict[str, Any] | None = None


@dataclass
class Best:
    """The weights of the best evaluation so far.

    Attributes:
        step: the step after which the evaluation was made.
        quality: `Task.quality` of its metrics; lists are compared element by element, larger is better.
        model: the state dict, on the CPU.
    """

    step: int
    quality: list[float]
    model: dict[str, Tensor]

    def is_by_chance(self, quality: list[float], judged: int) -> bool:
        """Whether this evaluation is better than a later one by no more than one standard error of the difference.

        The best of several evaluations on few texts is often the luckiest, and its learning rate had not fallen yet: on held
        out texts it was worse than the last one (benchmarks/RESULTS.md). A share of n texts p has a variance of p (1 - p) / n;
        one right and one wrong text are added to each, so that a share of 1 has one too.

        Args:
            quality: of the later evaluation.
            judged: the number of texts of which the first entry is a share; 0 if it is none, and nothing is chance.
        """
        if not judged or not math.isfinite(quality[0]):
            return False
        shares = [(score * judged + 1) / (judged + 2) for score in (self.quality[0], quality[0])]
        error = math.sqrt(sum(share * (1 - share) for share in shares) / judged)
        return self.quality[0] - quality[0] <= error


@dataclass
class Stale:
    """What --stop-after counts.

    Attributes:
        quality: the best `Task.quality` so far, over all stages.
        step: the step of that evaluation.
        evaluations: those of the last stage since then.
    """

    quality: list[float] | None = None
    step: int = 0
    evaluations: int = 0
