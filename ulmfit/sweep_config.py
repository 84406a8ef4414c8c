"""The options of a sweep (`ulmfit sweep`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tyro.conf import Suppress

from ulmfit.config import ClassifierConfig, LMConfig, Metric, OrElse, TrainConfig
from ulmfit.errors import UserError
from ulmfit.fit_config import CLF, LM, FitConfig
from ulmfit.option_types import DataOption, PathOption

_UNITS = {"s": 1, "m": 60, "h": 3600}
# What does not change what a trial trains, and may differ between the processes of a sweep.
_OPERATION = frozenset({"output_dir", "trials", "time_budget", "threads", "cache_dir", "samples"})


@dataclass
class SweepConfig:
    """Search learning rate, dropout and epochs of the classifier by its validation score.

    Needs Optuna (pip install 'ulmfit[sweep]'). Any number of processes may work on one sweep: start the same command
    several times, or as an array job. Whatever ended a process, the same command goes on, and a training that was cut
    off goes on from its checkpoint. What --clf sets is not searched.
    """

    data: OrElse[DataOption] = None
    """Corpus: file, glob, folder or hub data set name (default: the embedded sample)."""
    text_column: OrElse[str] = None
    """Column with the text; several, comma-separated, are joined with xxfld (default: text, else the only one)."""
    label_column: OrElse[str] = None
    """Column with the label, or with lists of labels; several, comma-separated, of 0 and 1 (default: label)."""
    label_separator: OrElse[str] = None
    """Between the labels of a cell, of which a row may have any number, as in "," (default: one label a row)."""
    valid: OrElse[PathOption] = None
    """Validation data: a fraction, a split name, a path or a boolean column (default: a valid split, else 0.1)."""
    group_column: OrElse[str] = None
    """Column of groups (film, author, ticket) that a held-out fraction does not divide (default: equal texts stay
    together)."""
    labels: OrElse[int] = None
    """Train the classifier on so many labelled documents, drawn evenly from the classes by the seed (default: all)."""
    unlabelled: OrElse[str] = None
    """Label of rows without a label; none where each is a class (default: -1 among whole numbers, if that is clear)."""
    separator: OrElse[str] = None
    """Between the fields of a table: a character, comma, semicolon, tab, bar, space, or none (default: found in the
    file)."""
    encoding: OrElse[str] = None
    """Encoding of text files and tables (default: UTF-8, UTF-16 or cp1252, as found in the file)."""
    header: OrElse[bool] = None
    """Whether the first line of a table names the columns; with --no-header they are 0, 1, 2 ... (default: found in
    the file)."""
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
        "data": (
            "data",
            "text_column",
            "label_column",
            "label_separator",
            "valid",
            "group_column",
            "labels",
            "unlabelled",
            "separator",
            "encoding",
            "header",
            "cache_dir",
        ),
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
        shared = ("data", "text_column", "label_column", "label_separator", "valid", "group_column", "labels", "unlabelled",
                  "separator", "encoding", "header", "cache_dir", "init", "preset", "recipe", "seed", "threads", "samples")  # fmt: skip
        options = {name: getattr(self, name) for name in shared}
        return FitConfig(**options, output_dir=output_dir, lm=dict(self.lm), clf=dict(clf))

    def identity(self) -> dict[str, Any]:
        """What all processes of a sweep must agree on, JSON-able."""
        values = {name: value for name, value in vars(self).items() if name not in _OPERATION | {"on_command_line"}}
        return {name: value if isinstance(value, int | float | dict | None) else str(value)
                for name, value in values.items()}  # fmt: skip
