"""fit, sweep, train-lm and train-clf: the trainers, whose options are in ulmfit/fit_config.py, sweep_config.py and config.py."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.distributed.stop import StopRequest
from ulmfit.fit_config import FitConfig
from ulmfit.sweep_config import SweepConfig

if TYPE_CHECKING:
    from ulmfit.training.result import TrainingResult


def fit(config: FitConfig, stop: StopRequest) -> None:
    """Do the whole job."""
    from ulmfit.training import fit as job

    result = job.fit(config, stop=stop)
    if result.state == "preempted" and int(os.environ.get("RANK", 0)) == 0:
        print("stopped with what is done so far; the same command goes on from there")


def sweep(config: SweepConfig, stop: StopRequest) -> None:
    """Work on a sweep."""
    from ulmfit.training import sweep as trials

    trials.sweep(config, stop)


def train_lm(config: LMConfig, stop: StopRequest) -> None:
    """Train a language model."""
    from ulmfit.training.lm_training import train_language_model

    _tell(train_language_model(config, stop))


def train_clf(config: ClassifierConfig, stop: StopRequest) -> None:
    """Train a classifier."""
    from ulmfit.training.clf_training import train_classifier

    _tell(train_classifier(config, stop))


def _tell(result: TrainingResult) -> None:
    if int(os.environ.get("RANK", 0)) != 0:
        return
    if result.state == "done":
        from ulmfit.model.stored_config import read_config

        direction = " --backwards" * read_config(result.model_dir)["backwards"]
        run = shlex.quote(str(result.run_dir))
        following = {
            "lm": f"ulmfit train-clf --encoder {run} --data labelled.csv" + direction,
            "clf": f"ulmfit predict --model {run} --data new.csv --output labels.csv",
        }
        print(f"the model is in {result.model_dir}; next: {following[result.task]}")
    elif result.state != "preempted":
        return
    elif result.step == 0:
        from ulmfit.training.session import tell_stopped_early

        tell_stopped_early()
    else:
        print(f"stopped at step {result.step} with a checkpoint; the same command goes on from there")
