"""A sweep over learning rate, dropout and epochs of the classifier, with Optuna.

The study is a journal file, which is safe on network file systems. Each trial is a run directory. A worker holds a lock
with its own name while it lives, so that another one sees which trials have been cut off.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import filelock

from ulmfit.config import ClassifierConfig, changed
from ulmfit.config_check import check
from ulmfit.distributed.runtime import open_runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import TrainingInterrupted, UserError, one_line
from ulmfit.excerpts import listed
from ulmfit.fit_config import CLF, LM, naming, stage_configs
from ulmfit.limits import check_numbers
from ulmfit.option_types import flag, normalized, path_text
from ulmfit.sweep_config import SweepConfig
from ulmfit.training.clf_training import check_options, train_classifier
from ulmfit.training.default_encoder import NO_ENCODER
from ulmfit.training.lm_training import train_language_model
from ulmfit.training.setup import access_of, keeps_best, opened_corpus
from ulmfit.training.stages import recipe_for

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState
except ImportError:
    raise UserError("optuna is not installed; pip install 'ulmfit[sweep]'") from None

_BEST_CLEARLY = "best_clearly"  # attribute of a study: its trials keep the best evaluation where it is clearly better
_NO_VALIDATION = "a sweep goes by validation rows and there are none; name some with --valid"
MOST_FAILURES = 3  # trials of a process that fail one after another
_RANGES = {"lr": (1e-3, 3e-2), "drop_mult": (0.1, 1.0)}


def sweep(config: SweepConfig, stop: StopRequest | None = None) -> None:
    """Work on a sweep until it has enough trials, or the time is over, or a stop is requested.

    Args:
        stop: the stop request of a script that handles signals itself.

    Raises:
        UserError: an option, file, column or model is wrong, or this sweep was begun with other options.
    """
    config = normalized(config)
    check_numbers(vars(config))
    deadline = time.monotonic() + config.seconds
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "a sweep shares no training between processes; start ulmfit sweep without a launcher, several times"
        )
    if config.encoder is not None and (config.lm or config.init is not None):
        raise UserError("--lm and --init are for a language model and --encoder names a trained one; leave out one")
    folder = Path(path_text(config.output_dir))
    by_itself = _check(config, folder)  # a mistake is told before anything is written or trained
    with _worker(folder, "minimize" if config.metric == "loss" else "maximize") as (worker, study):
        _begin(study, folder, config)
        # Version 0.2.0 kept the best of all evaluations in every trial.
        config = config if by_itself and study.user_attrs.get(_BEST_CLEARLY) else _with_the_best(config)
        _take_over(study, folder)
        encoder = _encoder(config, folder, deadline, stop)
        if encoder is not None:
            _work(study, folder, config, worker, encoder, deadline, stop)
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if len(finished) < config.trials:
        print(f"{len(finished)} of {config.trials} trials are done; the same command goes on")
    if finished:
        best = study.best_trial
        name = config.metric or study.user_attrs["metric"]
        print(f"the best of {len(finished)} trials: {name} {best.value:.4f} with {_shown(best.params)}, in "
              f"{folder / best.user_attrs['directory']}")  # fmt: skip


def _check(config: SweepConfig, folder: Path) -> bool:
    """Check the options of both trainings, and the corpus.

    Returns:
        Whether a classifier keeps its best evaluation by itself. It then does so only where that is clearly better: the best
        of a dozen evaluations on a few hundred rows is mostly the luckiest, and a sweep would take the luckiest of these.

    Raises:
        UserError: one is wrong.
    """
    classifier = _stages(config, folder, {})
    job = config.job(str(folder), config.clf)
    with naming(job, LM):
        check(stage_configs(job)[0])
    with naming(job, CLF):
        check(classifier)
        recipe_for(classifier, pretrained=config.encoder != NO_ENCODER)
        with open_runtime(classifier) as (runtime, _):
            corpus = opened_corpus(classifier, access_of(classifier, None, runtime))
        if "valid" not in corpus.splits:
            raise UserError(_NO_VALIDATION)
        by_itself = keeps_best(classifier, corpus)
        check_options(classifier if by_itself else _stages(_with_the_best(config), folder, {}), corpus)
    return by_itself


def _with_the_best(config: SweepConfig) -> SweepConfig:
    """A copy whose trials keep the best of all evaluations, unless --clf says otherwise."""
    return changed(config, clf={"keep_best": True} | config.clf)


@contextmanager
def _worker(folder: Path, direction: Literal["minimize", "maximize"]) -> Iterator[tuple[str, Any]]:
    """Context with this process's name and the study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    worker = uuid.uuid4().hex
    lock = filelock.FileLock(folder / f"{worker}.lock")  # the system frees it when this process ends, however
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        journal = str(folder / "journal.log")
        storage = optuna.storages.JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
        study = optuna.create_study(study_name="ulmfit", storage=storage, direction=direction, load_if_exists=True)
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written ({error.strerror}); name another") from None
    try:
        yield worker, study
    finally:
        lock.release()
        (folder / f"{worker}.lock").unlink(missing_ok=True)


def _begin(study: Any, folder: Path, config: SweepConfig) -> None:
    """Store the options of a new sweep, and queue the recipe's own values as its first trial.

    Raises:
        UserError: the sweep was begun with other options.
    """
    with filelock.FileLock(folder / "begin.lock"):
        ours, theirs = config.identity(), study.user_attrs.get("options")
        started = study.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
        if theirs is not None and theirs != ours and not started:  # what was begun by a mistake binds nobody
            study.set_user_attr("options", ours)
            return
        if theirs is None:
            study.set_user_attr("options", ours)
            study.set_user_attr(_BEST_CLEARLY, True)
            _, classifier = stage_configs(config.job("", {}))
            recipe = recipe_for(classifier, pretrained=config.encoder != "none") if config.recipe != "none" else None
            usual = {} if recipe is None else {"lr": recipe.stages[-1].lr, "drop_mult": recipe.drop_mult}
            usual = {name: value for name, value in usual.items() if name in _searched(config)}
            if usual and all(low <= usual.get(name, low) <= high for name, (low, high) in _RANGES.items()):
                study.enqueue_trial(usual)
            return
    changed = [flag(name) for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if changed:
        raise UserError(f"--output-dir {folder} is a sweep with other options ({listed(sorted(changed))}); name another "
                        "directory, or give the same options")  # fmt: skip


def _take_over(study: Any, folder: Path) -> None:
    """Queue the trials of processes that were killed: the lock of such a process is free."""
    with filelock.FileLock(folder / "take-over.lock"):
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker is None:
                continue  # it begins just now
            try:
                with filelock.FileLock(folder / f"{worker}.lock", timeout=0):
                    _again(study, trial)
            except filelock.Timeout:
                pass  # it is alive


def _again(study: Any, trial: Any) -> None:
    """End a trial that was cut off, and queue its like, which goes on in the same directory."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params, user_attrs={"directory": trial.user_attrs["directory"]})


def _encoder(config: SweepConfig, folder: Path, deadline: float, stop: StopRequest | None) -> str | None:
    """The language model of all trials; None if it is not done because of the time or of a request to stop.

    The first process trains it, others wait for it.
    """
    if config.encoder is not None:
        return path_text(config.encoder)
    job = config.job(str(folder), {})
    lock = filelock.FileLock(folder / "lm.lock")
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except filelock.Timeout:  # another process trains it
            if time.monotonic() > deadline or stop is not None and stop.requested():
                return None
    with lock, naming(job, LM):
        language_model, _ = stage_configs(job)
        language_model.max_time = _minutes(deadline)
        result = train_language_model(language_model, stop)
        return str(result.run_dir) if result.state == "done" else None


def _minutes(deadline: float) -> float:
    return max(1e-3, (deadline - time.monotonic()) / 60)


def _searched(config: SweepConfig) -> list[str]:
    """Names of what is searched: not what --clf sets."""
    fixed = set(config.clf) | ({"epochs"} if "max_steps" in config.clf else set())
    return [name for name in ("lr", "drop_mult", "epochs") if name not in fixed]


def _stages(config: SweepConfig, folder: Path, params: dict[str, Any]) -> ClassifierConfig:
    """The options of a trial's training.

    Raises:
        UserError: an option of --clf is unknown, or is one of the sweep.
    """
    if "metric" in config.clf:
        raise UserError("--clf.metric is an option of the sweep; give --metric")
    usual: dict[str, Any] = {"keep": 1} | ({} if config.metric is None else {"metric": config.metric})
    _, classifier = stage_configs(config.job(str(folder), usual | config.clf | params))
    return classifier


def _work(
    study: Any, folder: Path, config: SweepConfig, worker: str, encoder: str, deadline: float, stop: StopRequest | None
) -> None:
    """Trials until there are enough, or the time is over, or a stop is requested."""
    failures = 0
    while len(study.get_trials(states=(TrialState.COMPLETE,))) < config.trials:
        if time.monotonic() > deadline or stop is not None and stop.requested():
            return
        trial = study.ask()
        directory = trial.user_attrs.get("directory") or f"trial-{trial.number:05}"
        trial.set_user_attr("directory", directory)
        params = _draw(trial, config)
        trial.set_user_attr("worker", worker)  # from here on another process may take it over
        try:
            scores = train(config, params, encoder, folder / directory, _minutes(deadline), stop)
        except (KeyboardInterrupt, TrainingInterrupted):
            _again(study, trial)
            raise
        except UserError:  # of the data or an option: the next trial would meet it too
            study.tell(trial, state=TrialState.FAIL)
            raise
        except Exception as error:  # such as a training that diverged
            study.tell(trial, state=TrialState.FAIL)
            failures += 1
            print(f"trial {trial.number} failed: {one_line(str(error))}", flush=True)
            if failures == MOST_FAILURES:
                raise
            continue
        if scores is None:
            _again(study, trial)
            continue
        failures = 0
        name = config.metric or ("micro_f1" if "micro_f1" in scores else "accuracy")
        if "metric" not in study.user_attrs:
            study.set_user_attr("metric", name)
        study.tell(trial, scores[name])
        print(f"trial {trial.number}: {name} {scores[name]:.4f} with {_shown(params)}", flush=True)


def _draw(trial: Any, config: SweepConfig) -> dict[str, Any]:
    """The values to try."""
    searched = _searched(config)
    params: dict[str, Any] = {
        name: trial.suggest_float(name, *_RANGES[name], log=name == "lr")
        for name in ("lr", "drop_mult")
        if name in searched
    }
    if "epochs" in searched:
        params["epochs"] = trial.suggest_int("epochs", 1, config.most_epochs)
    return params


def train(
    config: SweepConfig, params: dict[str, Any], encoder: str, directory: Path, minutes: float, stop: StopRequest | None
) -> dict[str, Any] | None:
    """The scores on the validation rows; None if it was cut off, with a checkpoint in the directory.

    Raises:
        UserError: an option or the data are wrong.
    """
    classifier = _stages(config, directory, params)
    classifier.encoder, classifier.output_dir, classifier.max_time = encoder, str(directory), minutes
    with naming(config.job(str(directory), config.clf), CLF):
        result = train_classifier(classifier, stop)
    if result.state != "done":
        return None
    if "valid" not in result.metrics:
        raise UserError(_NO_VALIDATION)
    return result.metrics["valid"]


def _shown(params: dict[str, Any]) -> str:
    return ", ".join(f"{flag(name)} {value:.3g}" for name, value in params.items()) or "the given options"
