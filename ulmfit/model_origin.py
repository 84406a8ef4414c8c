"""The runs that a model comes from, found by the folder that it lies in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ulmfit.files import fingerprint, parse_json
from ulmfit.fit_config import CLF, LM, classifier_name
from ulmfit.model_kinds import is_ngrams
from ulmfit.run_scores import ensemble_scores, scores_of


@dataclass(frozen=True)
class Run:
    """What a run directory tells of a training.

    Attributes:
        stored: its config.json.
        scores: by split, as of `scores_of`.
    """

    stored: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def options(self) -> Mapping[str, Any]:
        return as_dict(self.stored.get("options"))

    @property
    def resolved(self) -> Mapping[str, Any]:
        return as_dict(self.stored.get("resolved"))


@dataclass(frozen=True)
class Origin:
    """The runs that a model comes from.

    Attributes:
        runs: of its trainings, the last one first; empty if they are not at hand.
        job: config.json of the job (`fit`) that they belong to.
        summary: summary.json of the job.
    """

    runs: Sequence[Run] = ()
    job: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shows_values(self) -> bool:
        """Whether names of the data may be shown as they are: no run of it had --no-samples."""
        given = [run.options for run in self.runs] + [as_dict(self.job.get("options"))]
        return all(options.get("samples", True) is not False for options in given)

    @property
    def is_english(self) -> bool:
        """Whether the model derives from the English one of the package."""
        names = [run.resolved.get(name) for run in self.runs for name in ("init", "encoder")]
        names += [run.options.get(name) for run in self.runs for name in ("init", "encoder")]
        return "english" in names


def origin_of(folder: Path | None) -> Origin:
    """The runs of the model in a folder. Files that users have edited or deleted are told less of."""
    member = ""
    if folder is not None and (folder.parent / "bundle.json").is_file():
        folder, member = folder.parent, folder.name
    # Another model may have been exported into a run's directory. launch/pretrain.sh names the run's own "encoder".
    if folder is None or folder.resolve().name not in ("model", "encoder"):
        return Origin()
    place = folder.resolve().parent
    stored = _read(place / "config.json")
    if stored.get("task") == "fit":
        if is_ngrams(_read(folder / member / "config.json")):
            return Origin()
        runs = [_run(place / name) for name in (classifier_name(member or 1), LM)]
        if not member and (folder / "bundle.json").is_file() and (scores := ensemble_scores(place)):
            runs[0] = replace(runs[0], scores=scores)
        return Origin(
            [run for run in runs if run.stored.get("task") in (CLF, LM)], stored, _read(place / "summary.json")
        )
    if stored.get("task") not in ("lm", "clf"):
        return Origin()
    runs, seen = [_run(place)], {place}
    while start := runs[-1].options.get(name := "encoder" if runs[-1].stored["task"] == "clf" else "init"):
        before = Path(os.path.expanduser(str(start))).absolute()
        before = before.parent if before.name == "model" else before
        if _read(before / "config.json").get("task") == "fit":
            before /= LM
        run = _run(before)
        weights = as_dict(runs[-1].stored.get("identity")).get(f"{name} (content)")
        if before in seen or run.stored.get("task") not in ("lm", "clf") or _hash_of_model(before) != weights:
            break  # it has moved, or another run has its path now
        seen.add(before)
        runs.append(run)
    return Origin(runs)


def _hash_of_model(run_dir: Path) -> str | None:
    """Of the weights of a run, as a later run's identity has it."""
    try:
        return fingerprint(run_dir / "model" / "model.safetensors")
    except OSError:
        return None


def _run(folder: Path) -> Run:
    best = _read(folder / "status.json").get("best_step")
    return Run(_read(folder / "config.json"), scores_of(folder, best if isinstance(best, int) else None))


def _read(path: Path) -> dict[str, Any]:
    try:
        return as_dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def as_dict(value: Any) -> dict[str, Any]:
    """The value, or {} where a file that users have edited holds something else."""
    return value if isinstance(value, dict) else {}
