"""What the loop remembers from step to step, and stores in each checkpoint, besides weights and the optimizer's state."""

from __future__ import annotations

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
