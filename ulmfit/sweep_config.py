"""The options of a sweep (`ulmfit sweep`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from tyro.conf import Suppress

from ulmfit.config import ClassifierConfig, LMConfig, Metric, OrElse, TrainConfig
from ulmfit.errors import UserError
from ulmfit.fit_config import CLF, LM, FitConfig, JobData
from ulmfit.option_types import PathOption

_DATA = tuple(option.name for option in fields(JobData))
_UNITS = {"s": 1, "m": 60, "h": 3600}
# What does not change what a trial trains, and may differ between the processes of a sweep.
_OPERATION = frozenset({"output_dir", "trials", "time_budget", "threads", "cache_dir", "samples"})


@dataclass
class SweepConfig(JobData):
    """Search learning rate, dropout and epochs of the classifier by its validation score.

    Needs Optuna (pip install 'ulmfit[sweep]'). Any number of processes may work on one sweep: start the same command
    several times, or as an array job. Whatever ended a process, the same command goes on, and a training that was cut
    off goes on from its checkpoint. What --clf sets is not searched.
    """

    cache_dir: OrElse[PathOption] = None
    """Where tokenised corpora are kept (default: $ULMFIT_CACHE, else ~/.cache/ulmfit)."""
    encoder: OrElse[PathOption] = None
    """Language model whose encoder to use: a run directory or its model/, english (comes with the package), or none
    (default: one that the sweep trains first, in OUTPUT_DIR/lm)."""
    init: OrElse[PathOption] = None
    """What that language model starts from, as of ulmfit fit (default: english for English texts, else none)."""
    preset: OrElse[Literal["tiny", "small", "base", "blog", "wide"]] = None
    """Model size, see train-lm (default: that of --init or --encoder; tiny on the embedded sample; else small on a CPU,
    base on a GPU)."""
    recipe: Literal["quick", "blog", "ulmfit", "none"] = "quick"
    """Stages of the trainings: quick, blog (the 2019 post), ulmfit (fastai's best), none (your options)."""
    trials: int = 30
    """Finished trials of all processes after which to stop."""
    time_budget: str = "8h"
    """Time after which this process stops, with a checkpoint: 90s, 30m or 2h."""
    metric: OrElse[Metric] = None
    """What makes a trial the best, and an evaluation of a trial: accuracy, f1, recall, loss, or micro_f1 with several
    labels a row (default: accuracy, or micro_f1)."""
    most_epochs: int = 10
    """Largest number of epochs of the last stage that is tried."""
    seed: int = 0
    """Seed of the trainings; the search draws others in each process."""
    lm: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Any option of train-lm, for the language model, as in --lm.epochs 3 (see ulmfit train-lm --help)."""
    clf: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Any option of train-clf, for each trial, as in --clf.class-weights balanced (see ulmfit train-clf --help)."""
    output_dir: PathOption = "runs/sweep"
    """Directory of the study and of its runs."""
    threads: OrElse[int] = None
    """CPU threads of each process, at most one a core (default: the physical cores that it may use)."""
    samples: bool = True
    """Write generated text and the worst errors to TensorBoard; --no-samples for private corpora."""

    on_command_line: ClassVar[frozenset[str]] = frozenset()
    #: By prefix, the options that `--PREFIX.OPTION` takes.
    nested: ClassVar[dict[str, type[TrainConfig]]] = {LM: LMConfig, CLF: ClassifierConfig}
    #: The groups of `--help`.
    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": (*_DATA, "cache_dir"),
        "model": ("encoder", "init", "preset"),
        "search": ("trials", "time_budget", "metric", "most_epochs"),
        "training": ("recipe", "seed", "lm", "clf"),
        "saving": ("output_dir", "samples"),
        "speed": ("threads",),
    }

    @property
    def seconds(self) -> float:
        """The time budget.

        Raises:
            UserError: it is no time.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", self.time_budget.strip())
        if not found or not float(found[1]):
            raise UserError(f"--time-budget {self.time_budget} is no time; write 90s, 30m or 2h")
        return float(found[1]) * _UNITS[found[2]]

    def job(self, output_dir: str, clf: Mapping[str, Any]) -> FitConfig:
        """The whole job with these options of the classifier."""
        shared = (*_DATA, "cache_dir", "init", "preset", "recipe", "seed", "threads", "samples")
        options = {name: getattr(self, name) for name in shared}
        return FitConfig(**options, output_dir=output_dir, lm=dict(self.lm), clf=dict(clf))

    def identity(self) -> dict[str, Any]:
        """What all processes of a sweep must agree on, JSON-able."""
        values = {name: value for name, value in vars(self).items() if name not in _OPERATION | {"on_command_line"}}
        return {name: value if isinstance(value, int | float | dict | None) else str(value)
                for name, value in values.items()}  # fmt: skip
