"""A learner that trains nothing: what a page of documentation does with it can then run in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ulmfit.learner import LanguageModelLearner, Learner


class Recorded:
    """The result of a training that was not made.

    Args:
        load: loads its model.
    """

    def __init__(self, run_dir: Path, load: Callable[[], Any] | None) -> None:
        self.run_dir, self.model, self.state = run_dir, load, "done"
        self.metrics = {"valid": {"accuracy": 0.9}, "test": {"accuracy": 0.9}}
        self.summary = {"verdict": "ulmfit beats majority class"}
        self.suggestions = {"valley": 1e-3}


def trains_nothing(
    monkeypatch: pytest.MonkeyPatch, runs: SimpleNamespace, result: Callable[[Path, str, bool], Any]
) -> None:
    """Each stage of a learner puts a finished run of `runs` in its place.

    Args:
        result: of (run directory, "lm" or "clf", whether a learning rate was to be found), what the stage returns.
    """

    def train(learner: Learner, stage: Any, *, lr_find: bool = False) -> Any:
        task = "lm" if isinstance(learner, LanguageModelLearner) else "clf"
        run = getattr(runs, task)
        link = learner.path / run.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(run)
        return result(link, task, lr_find)

    monkeypatch.setattr(Learner, "_train", train)
