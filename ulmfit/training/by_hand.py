"""Stages that are given one by one, as `ulmfit.learner` does, instead of by a recipe.

Each stage is a run with a directory of its own. It begins with the last checkpoint of the run before it, in which its
optimizer's steps, the position in the data and every random number are those of one training with all stages so far. So
stages by hand end with the same bits as the same stages in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.run import checkpoint
from ulmfit.run.directory import MODEL
from ulmfit.run.status import read_status
from ulmfit.training.stages import Stage


@dataclass(frozen=True)
class ByHand:
    """What one run of such a training does.

    Attributes:
        stages: all stages from the beginning. The last one is that of this run.
        start: the run directory of the stages before it; None for the first one.
    """

    stages: tuple[Stage, ...]
    start: Path | None = None

    def fingerprint(self) -> str | None:
        """Of the weights that the run starts from, for its identity. None for the first run.

        Raises:
            UserError: the run before it is not done, or its directory is gone.
        """
        if self.start is None:
            return None
        status = read_status(self.start) or {}
        weights = self.start / MODEL / "model.safetensors"
        if status.get("state") != "done" or not weights.exists():
            raise UserError(
                f"{self.start}, which this training goes on from, is not a finished run; run that one first"
            )
        return files.fingerprint(weights)

    def check(self, groups: int) -> None:
        """Refuse a stage that trains nothing of a model with this many layer groups.

        Raises:
            UserError: it begins after the last group.
        """
        if (first := self.stages[-1].freeze_to) >= groups:
            raise UserError(f"freeze_to({first}) leaves nothing to train, for there are {groups} layer groups; give a "
                            "lower number")  # fmt: skip

    def checkpoint(self) -> dict[str, Any]:
        """The last checkpoint of the run before it.

        Raises:
            UserError: it has none.
        """
        assert self.start is not None
        newest = checkpoint.latest(self.start / "checkpoints", warn=lambda line: None)
        if newest is None:
            raise UserError(f"{self.start} has no checkpoint left to go on from; run that training again")
        return checkpoint.load(newest)
