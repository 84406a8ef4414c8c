"""A sweep over learning rate, dropout and epochs of the classifier, by its score on the validation rows.

    pip install 'ulmfit[sweep]'
    ulmfit train-lm --data reviews.csv --output-dir runs/lm
    python examples/sweep.py --data reviews.csv --encoder runs/lm --study runs/sweep --trials 30 --time-budget 30m

The study is a journal file in --study, which is safe on network file systems. Any number of processes may work on it at
once: start the same command several times, or as an array job (sbatch --array=0-7 ... with this command). --trials counts
those of all processes, --time-budget is that of each. Whatever ended a process, the same command goes on: a training that
was cut off goes on from its checkpoint. Without --encoder each trial trains a language model too.
"""

import argparse
import re
import sys
import time
import uuid
from pathlib import Path

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

import ulmfit

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """A time such as 90s, 30m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no time; write 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


def train(params: dict, directory: Path, minutes: float, given: argparse.Namespace) -> dict | None:
    """The scores on the validation rows; None if the time was over first, with a checkpoint in the directory."""
    options = {"data": given.data, "output_dir": str(directory), "max_time": minutes, "samples": False}
    clf = params | ({"preset": given.preset} if given.preset else {})
    if given.encoder:
        result = ulmfit.train_classifier(ulmfit.ClassifierConfig(encoder=given.encoder, **options, **clf))
    else:
        result = ulmfit.fit(baseline=False, preset=given.preset, clf=params, **options).classifier
    return result.metrics["valid"] if result is not None and result.state == "done" else None


def again(study: optuna.Study, trial: optuna.trial.BaseTrial) -> None:
    """End a trial that was cut off, and queue its like, which goes on in the same directory."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params, user_attrs={"directory": trial.user_attrs["directory"]})


def take_over(study: optuna.Study, folder: Path) -> None:
    """Queue the trials of processes that were killed: the lock of such a process is free."""
    with filelock.FileLock(folder / "take-over.lock"):
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker is None or len(trial.params) < 3:
                continue  # it begins just now
            try:
                with filelock.FileLock(folder / f"{worker}.lock", timeout=0):
                    again(study, trial)
            except filelock.Timeout:
                pass  # it is alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="corpus, as for ulmfit fit")
    parser.add_argument("--encoder", help="language model whose encoder to use")
    parser.add_argument("--preset", help="model size without --encoder")
    parser.add_argument("--study", type=Path, default="runs/sweep", help="folder of the study and its runs")
    parser.add_argument("--trials", type=int, default=30, help="finished trials of all processes")
    parser.add_argument("--time-budget", type=seconds, default="8h", help="of this process: 90s, 30m, 2h")
    parser.add_argument("--metric", choices=["accuracy", "f1", "loss"], default="accuracy")
    parser.add_argument("--most-epochs", type=int, default=10)
    given = parser.parse_args()
    given.study.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + given.time_budget
    journal = str(given.study / "journal.log")
    storage = optuna.storages.JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
    direction = "minimize" if given.metric == "loss" else "maximize"
    study = optuna.create_study(study_name="ulmfit", storage=storage, direction=direction, load_if_exists=True)
    worker = uuid.uuid4().hex
    with filelock.FileLock(given.study / f"{worker}.lock"):  # the system frees it when this process ends, however
        take_over(study, given.study)
        while len(study.get_trials(states=(TrialState.COMPLETE,))) < given.trials:
            minutes = (deadline - time.monotonic()) / 60
            if minutes <= 0:
                break
            trial = study.ask()
            directory = trial.user_attrs.get("directory") or f"trial-{trial.number:05}"
            trial.set_user_attr("directory", directory)
            params = {
                "lr": trial.suggest_float("lr", 1e-3, 3e-2, log=True),
                "drop_mult": trial.suggest_float("drop_mult", 0.1, 1.0),
                "epochs": trial.suggest_int("epochs", 1, given.most_epochs),
            }
            trial.set_user_attr("worker", worker)
            try:
                scores = train(params, given.study / directory, minutes, given)
            except KeyboardInterrupt:
                again(study, trial)
                raise
            except ulmfit.UserError as error:  # of the data or an option: the next trial would meet it too
                study.tell(trial, state=TrialState.FAIL)
                sys.exit(f"error: {error}")
            except Exception as error:  # such as a training that diverged
                study.tell(trial, state=TrialState.FAIL)
                print(f"trial {trial.number} failed: {error}")
                continue
            if scores is None:
                again(study, trial)
            else:
                study.tell(trial, scores[given.metric])
    if finished := study.get_trials(states=(TrialState.COMPLETE,)):
        best = study.best_trial
        print(f"{len(finished)} trials; the best {given.metric} is {best.value:.4f}, with {best.params}, in "
              f"{given.study / best.user_attrs['directory']}")  # fmt: skip


if __name__ == "__main__":
    main()
