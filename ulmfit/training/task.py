"""What the loop runs: a task (lm_task.py, clf_task.py) and the stages of its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training.engine import Passes
from ulmfit.training.stages import Stage, share_steps


class StepResult(NamedTuple):
    """Numbers of one step for the log. The tensor stays on the device, so that the host does not wait.

    Attributes:
        sums: float64 [2 + S], this rank's part of the summed cross-entropy (nats), of the number of correct predictions,
            and of the tokens read from each of the S sources of a mixture (`Task.source_names`).
        num_predictions: number of predictions in the global step.
        tokens: number of tokens read in the global step.
    """

    sums: Tensor
    num_predictions: float
    tokens: int


class Task(Protocol):
    """The interface between the loop and a task (language model or classifier)."""

    groups: list[list[str]]
    name: str
    micro_batches: int

    @property
    def net(self) -> LanguageModelNet | ClassifierNet: ...
    @property
    def source_names(self) -> Sequence[str]: ...
    @property
    def most_micro_batches(self) -> int: ...
    @property
    def judged(self) -> int: ...
    def steps_in_epoch(self, epoch: int) -> int | None: ...
    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]: ...
    def step(self, engine: Passes, batch: Any, number: int) -> StepResult: ...
    def largest_batch(self) -> Any: ...
    def reset_hidden(self) -> None: ...
    def mean_tokens(self) -> float: ...
    def trained_windows(self) -> list[list[tuple[int, int]]]: ...
    def global_position(self, state: dict[str, Any]) -> dict[str, Any] | None: ...
    def evaluate(self, store: TokenStore | None = None) -> dict[str, Any] | None: ...
    def calibrate(self) -> dict[str, float]: ...
    def model_entries(self) -> dict[str, Any]: ...
    def quality(self, metrics: dict[str, Any]) -> list[float]: ...
    def samples(self) -> list[tuple[str, str]]: ...
    def hidden_state(self) -> dict[str, Any]: ...
    def load_hidden_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class PlannedStage:
    """A stage and its number of steps."""

    stage: Stage
    num_steps: int


def plan_stages(task: Task, stages: tuple[Stage, ...], max_steps: int | None) -> list[PlannedStage]:
    """The number of steps of each stage: its share of `max_steps` if given, else the steps of its epochs."""
    if max_steps is not None:
        return [PlannedStage(stage, steps) for stage, steps in zip(stages, share_steps(stages, max_steps), strict=True)]
    plan, begun = [], 0.0
    for stage in stages:
        end = begun + stage.epochs
        plan.append(PlannedStage(stage, max(1, _steps_until(task, end) - _steps_until(task, begun))))
        begun = end
    return plan


def _steps_until(task: Task, epochs: float) -> int:
    whole = math.floor(epochs)
    steps = sum(_epoch_steps(task, epoch) for epoch in range(whole))
    return steps + round((epochs - whole) * _epoch_steps(task, whole)) if epochs > whole else steps


def _epoch_steps(task: Task, epoch: int) -> int:
    steps = task.steps_in_epoch(epoch)
    assert steps is not None, "a stream has no epochs; its length is max_steps"
    return steps
