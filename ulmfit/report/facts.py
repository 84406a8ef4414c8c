"""What the files of a run tell a report. Users edit them and disks damage them: what is not sound is left out."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulmfit.bundle import make_up
from ulmfit.errors import UserError, without_keys
from ulmfit.files import parse_json
from ulmfit.fit_config import CLF, LM, MEAN, classifier_name
from ulmfit.option_types import flag
from ulmfit.paths import as_path
from ulmfit.run.directory import MODEL
from ulmfit.run.status import read_status
from ulmfit.run.stored import CONFIG, read_stored
from ulmfit.run_command import KINDS, words_of_command
from ulmfit.run_scores import METRICS, ensemble_scores, ngrams_of, number
from ulmfit.training.job_files import ensemble_of, minutes_of, read_json
from ulmfit.training.privacy import hides_texts, hides_texts_of_run
from ulmfit.training.result import read_metrics

_UNFINISHED = {
    "running": "This training is running, or was killed,",
    "preempted": "This training was stopped",
    "failed": "This training failed",
}


@dataclass(frozen=True)
class Training:
    """A run of one training.

    Attributes:
        stored: config.json.
        lines: of metrics.jsonl.
        metrics: by split, of the weights in model/.
        best_step: the step that these are of; None for the last one.
    """

    path: Path
    stored: dict[str, Any]
    lines: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    best_step: int | None

    @property
    def resolved(self) -> dict[str, Any]:
        return self.stored["resolved"]

    def curve(self, event: str, name: str, split: str | None = None) -> list[tuple[float, float]]:
        """The points (step, value) of a score over the training."""
        found = []
        for line in self.lines:
            if line.get("event") == event and line.get("split") == split:
                step, value = number(line.get("step")), number(line.get(name))
                if step is not None and value is not None:
                    found.append((step, value))
        return found

    def reached(self) -> tuple[int, int]:
        """The last step that was logged, and the steps of the whole training; 0 where that is not known."""
        logged = (number(line.get("step")) for line in self.lines)
        planned = (number(stage.get("steps")) for stage in self.resolved.get("stages", []) if isinstance(stage, dict))
        return int(max(filter(None, logged), default=0)), int(sum(filter(None, planned)))

    def stages(self) -> list[tuple[float, str]]:
        """The first step of each stage, and its name."""
        starts: list[tuple[float, str]] = []
        step = 0.0
        for stage in self.resolved.get("stages", []):
            if isinstance(stage, dict):
                starts.append((step, str(stage.get("name", len(starts) + 1))))
                step += number(stage.get("steps")) or 0
        return starts


@dataclass(frozen=True)
class Facts:
    """A run, or a job of fit.

    Attributes:
        path: as it was given.
        job: config.json of the job or run.
        summary: of the job; empty of a run.
        minutes: by training, of a job; and of the making of their mean.
        hidden: it was trained with --no-samples.
        state: of the job or run, as status.json tells it: done, running, preempted, failed, or unknown.
        members: of several classifiers of a job (--ensemble) those that have begun; `clf` is the first of them, with the
            scores of all together.
        ensemble: how many classifiers the model is to be the mean of.
        averaged: how many the model that there is is the mean of; of a job that was made larger and stopped, fewer.
        ngrams: share of n-grams in that mean; 0 without them.
        taught: texts without a label that these learned of the networks.
    """

    path: str
    job: dict[str, Any]
    lm: Training | None
    clf: Training | None
    summary: dict[str, Any]
    minutes: dict[str, float]
    hidden: bool
    state: str = "done"
    members: tuple[Training, ...] = ()
    ensemble: int = 1
    averaged: int = 1
    ngrams: float = 0.0
    taught: int = 0

    @property
    def unfinished(self) -> str:
        """What a run that is not done has done so far, in a sentence; "" of one that is done."""
        if self.state not in _UNFINISHED:
            return ""
        step, steps = (self.members[-1] if self.members else self.main).reached()
        what = "classifier" if self.clf else "language model"
        if self.ensemble > 1 and self.members:
            what = f"classifier {len(self.members)} of {self.ensemble}"
        of = f" of {steps:,}" if steps else ""
        more = "; the classifier has not begun" if self.job.get("task") == "fit" and not self.clf else ""
        return f"{_UNFINISHED[self.state]} at step {step:,}{of} of the {what}{more}; the figures are those so far"

    @property
    def main(self) -> Training:
        """The training that the model is of: the classifier, else the language model."""
        found = self.clf or self.lm
        assert found is not None
        return found

    @property
    def rival(self) -> dict[str, Any]:
        """The scores of the TF-IDF baseline by split; empty where there is none."""
        systems = self.summary.get("systems")
        scores = systems.get("TF-IDF + logistic regression") if isinstance(systems, dict) else None
        return scores if isinstance(scores, dict) else {}

    @property
    def data(self) -> str:
        """The corpus, as it was named."""
        return without_keys(str(self.job["options"].get("data") or "the embedded sample"))

    def commands(self) -> list[tuple[str, str]]:
        """What was run and what can be run, each with what it does."""
        # A baseline may have been added to a finished job; its config.json tells how it was trained.
        never = {"baseline"} if self.rival else set()
        found = [("Go on with it" if self.unfinished else "Train it again", command(self.job, self.path, never))]
        if self.unfinished:  # there is no model yet
            return found
        if self.clf is not None:
            model = shlex.quote(self.path)
            found += [
                ("Label new texts", f"ulmfit predict --model {model} --data new.csv --output labels.csv"),
                ("Score it on labelled texts", f"ulmfit evaluate --model {model} --data labelled.csv --split all"),
                ("See what decided", f'ulmfit explain {model} "a text"'),
                ("See the rows it gets most wrong", f"ulmfit top-losses {model}"),
            ]
        elif self.lm is not None:
            found += [
                ("Train a classifier on it", f"ulmfit train-clf --encoder {shlex.quote(self.path)} --data labelled.csv")
            ]
        return found


def read_facts(given: str) -> Facts:
    """Read a run.

    Raises:
        UserError: there is no run, or its config.json is damaged.
    """
    path = Path(as_path(given))
    job = read_json(path / CONFIG)
    task = job.get("task") if isinstance(job, dict) else None
    if not isinstance(task, str) or task not in KINDS:
        raise UserError(f"{given} holds no run; give the output directory of a training")
    if not isinstance(job.get("options"), dict):
        raise UserError(f"{path / CONFIG} is damaged (has no object options); put it right")
    trainings: dict[str, Training | None] = {LM: None, CLF: None}
    summary: Any = {}
    minutes = {}
    members: list[Training] = []
    ensemble, averaged, ngrams, taught = 1, 1, 0.0, 0
    status = read_status(path) or {}
    if task == "fit":
        summary = read_json(path / "summary.json")
        minutes = minutes_of(status)
        trainings = {name: _training(path / name) for name in (LM, CLF)}
        ensemble = ensemble_of(job)
        names = [classifier_name(number) for number in range(1, ensemble + 1)]
        with suppress(UserError):  # bundle.json is damaged
            averaged, ngrams = make_up(path / MODEL)
        # More may have been trained, and are not used.
        minutes = {name: minutes[name] for name in (LM, *names, MEAN) if name in minutes}
        if ensemble > 1:
            members = [found for name in names if (found := _training(path / name))]
        if (averaged > 1 or ngrams) and (first := trainings[CLF]):
            trainings[CLF] = replace(first, metrics=ensemble_scores(path) or first.metrics)
        if ngrams:
            taught = int(number((ngrams_of(path) or {}).get("taught")) or 0)
    else:
        trainings[task] = _training(path)
    if not any(trainings.values()):
        raise UserError(f"{given} holds a job without any training; run it first")
    return Facts(given, job, trainings[LM], trainings[CLF], summary if isinstance(summary, dict) else {}, minutes,
                 hides_texts_of_run(path) or hides_texts([t.path for t in trainings.values() if t]),
                 str(status.get("state", "unknown")), tuple(members), ensemble, averaged, ngrams, taught)  # fmt: skip


def _training(path: Path) -> Training | None:
    if not (path / CONFIG).is_file():
        return None
    stored = read_stored(path)
    if stored is None:
        return None
    best, _, metrics = read_metrics(path)
    return Training(path, stored, list(_lines(path / METRICS)), metrics, best)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict):
                    yield line


def command(stored: dict[str, Any], path: str, never: Collection[str] = ()) -> str:
    """The command that trains a run again in its directory, but for keys in URLs: pages are shown to others.

    Args:
        never: options that are left out.
    """
    options = stored["options"] | {"output_dir": path}
    words = words_of_command(stored["task"], options, always={"output_dir"}, never=never)
    return shlex.join(map(without_keys, words))


def differing(runs: list[Facts]) -> list[tuple[str, list[str]]]:
    """Options of several runs that are not the same in all: the name, and by run the value."""
    names = dict.fromkeys(name for run in runs for name in run.job["options"])
    rows = []
    for name in names:
        values = [_spelled(run.job["options"].get(name)) for run in runs]
        if name not in ("output_dir", "resume", "config", "max_time", "cache_dir", "threads") and len(set(values)) > 1:
            rows.append((f"--{flag(name)}", values))
    return rows


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{flag(name)} {each}" for name, each in value.items()) or "-"
    return "-" if value is None else without_keys(str(value))
