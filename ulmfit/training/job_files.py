"""The files of a job (`fit`): reads what an earlier start has left. Users edit these files, and disks damage them.

Nothing in them is worth a finished training: what is damaged is told or made again, and the job goes on.
"""

from __future__ import annotations

import filecmp
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.config import ClassifierConfig, LMConfig, TrainConfig
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.files import parse_json
from ulmfit.fit_config import CLF, LM, MEAN, FitConfig, JobData
from ulmfit.limits import LIMITS
from ulmfit.option_types import is_of_type
from ulmfit.run import lock
from ulmfit.run.stored import CONFIG, read_stored

RIVALS, ROWS = "baseline.json", "options"
_TASKS: dict[str, type[TrainConfig]] = {LM: LMConfig, CLF: ClassifierConfig}
_TIMED = re.compile(rf"{LM}|{CLF}(-\d+)?|{MEAN}")


def read_json(path: Path) -> Any:
    """The content of a file; None if it is absent or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def holds_training(path: Path) -> bool:
    """Whether the first training of a job has begun in a directory. Then it is a job, whatever its config.json is."""
    return (path / LM / CONFIG).exists()


def begun_options(path: Path, notice: Callable[[str], None]) -> dict[str, Any] | None:
    """The options of the job in a directory; None if there is none, or if its config.json is damaged or gone.

    Then those of this start are taken. Each training compares them with its own config.json and refuses others.

    Args:
        notice: called with a sentence for the user if config.json is damaged or gone.

    Raises:
        UserError: the directory holds a run of one training; or config.json is damaged and no training has begun, so
            that it may be the file of another program.
    """
    file = path / CONFIG
    if not file.exists():
        if holds_training(path):
            notice(f"{file} is missing; going on by the options of this command")
        return None
    stored = read_json(file)
    task = stored.get("task") if isinstance(stored, dict) else None
    if task in ("lm", "clf"):
        raise UserError(
            f"--output-dir {path} holds a run of train-{task} and not of fit; name another directory, or start "
            "afresh with --resume never"
        )
    fault = _fault_of(stored)
    if not fault:
        # Before there were these options, a job had one classifier and no n-grams.
        return {"ensemble": 1, "ngrams": False} | stored["options"]
    if not holds_training(path):
        raise UserError(f"{file} {fault}; put it right, or start afresh with --resume never")
    notice(f"{file} {fault}; going on by the options of this command")
    return None


def _fault_of(stored: Any) -> str:
    """What is wrong with the content of the config.json of a job, in words; "" if nothing is."""
    if not isinstance(stored, dict) or not isinstance(stored.get("options"), dict) or stored.get("task") != "fit":
        return "is damaged"
    options = stored["options"]
    for name, value in options.items():
        if not is_of_type(FitConfig, name, value):
            return f"has {excerpt(value)} as the option {name}"
    for training, kind in _TASKS.items():
        for name, value in options.get(training, {}).items():
            if not is_of_type(kind, name, value):
                return f"has {excerpt(value)} as the option {training}.{name}"
    return ""


def ensemble_of(stored: Any) -> int:
    """The number of classifiers in the config.json of a job; those of earlier versions have one."""
    options = stored.get("options") if isinstance(stored, dict) else None
    found = options.get("ensemble", 1) if isinstance(options, dict) else 1
    least, most, _ = LIMITS["ensemble"]
    return found if type(found) is int and least <= found <= most else 1


def seed_of(path: Path) -> int | None:
    """The seed of the job or the run in a directory; None if it holds none that can be read."""
    stored = read_json(path / CONFIG)
    options = stored.get("options") if isinstance(stored, dict) else None
    found = options.get("seed") if isinstance(options, dict) else None
    return found if type(found) is int else None


def ngrams_option_of(stored: Any) -> bool | None:
    """The option of n-grams in the config.json of a job; those of earlier versions have none."""
    options = stored.get("options") if isinstance(stored, dict) else None
    found = options.get("ngrams", False) if isinstance(options, dict) else False
    return found if found is None or isinstance(found, bool) else False


def minutes_of(status: dict[str, Any]) -> dict[str, float]:
    """The minutes of each training in a status.json, and those of `MEAN`."""
    stored = status.get("minutes")
    if not isinstance(stored, dict):
        return {}
    return {
        name: float(value)
        for name, value in stored.items()
        if _TIMED.fullmatch(name) and _is_number(value) and value >= 0
    }


def start_and_length(path: Path, config: FitConfig, trainings: Sequence[str]) -> dict[str, Any]:
    """What finished trainings of a job began with, for its advice: `init`, whether that was a pretrained model, and
    `length`, by training the option that set its length and the value."""
    length, init = {}, "none"
    for name in trainings:
        resolved = (read_stored(path / name) or {}).get("resolved", {})
        stages = resolved.get("stages") or [{"steps": 1}]
        by_steps = getattr(config, name).get("max_steps") is not None
        length[name] = ("max-steps", sum(stage["steps"] for stage in stages)) if by_steps else (
            "epochs", stages[-1].get("epochs", 1))  # fmt: skip
        init = resolved.get("init", init)
    return {"init": init != "none", "length": length}


def rivals_of(path: Path, config: ClassifierConfig) -> dict[str, Any] | None:
    """The content of the baseline.json of a job, if it is of the rows of this classifier; else None.

    An earlier start may have been stopped, or refused, before a run kept the data and options that it had. The language
    model's run refuses other data, but knows nothing of the classifier's options.
    """
    stored = sound_rivals(read_json(path / RIVALS))
    if stored is None or (path / CLF / CONFIG).is_file():  # the classifier's run refuses other rows
        return stored
    same = (path / LM / CONFIG).is_file() and stored.get(ROWS) == row_options(config)
    return stored if same else None


def row_options(config: ClassifierConfig) -> dict[str, Any]:
    """The options that say which rows a classifier has, beside the data: JSON-able."""
    names = [option.name for option in fields(JobData) if option.name != "data"]
    found = {name: getattr(config, name) for name in names} | {"probability_columns": config.probability_columns}
    return {name: None if value is None else str(value) for name, value in found.items()} | {
        "seed": config.seed_of_draws
    }


def sound_rivals(stored: Any) -> dict[str, Any] | None:
    """The content of baseline.json, as of `run_baselines`; None if something is missing in it."""
    if not isinstance(stored, dict) or not {"rows", "classes", "majority", "tfidf", "reason"} <= stored.keys():
        return None
    rows, classes = stored["rows"], stored["classes"]
    if not isinstance(rows, dict) or not all(type(number) is int and number > 0 for number in rows.values()):
        return None
    if "train" not in rows or not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return None
    if not isinstance(stored["reason"], str | None):
        return None
    for scores in (stored["majority"], stored["tfidf"]) if stored["tfidf"] is not None else (stored["majority"],):
        if not isinstance(scores, dict) or not _is_number(scores.get("minutes")):
            return None
        for split in rows.keys() - {"train"}:
            found = scores.get(split)
            if not isinstance(found, dict) or not all(_is_number(found.get(name)) for name in ("accuracy", "f1")):
                return None
    return stored


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for nan, and no float overflows


def content_of(path: Path) -> bytes | None:
    """The content of a file; None if it is absent."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, unless its copy is there."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(target) as aside:
        aside.write_bytes(source.read_bytes())


def put_back(path: Path, before: Mapping[str, bytes | None], held: lock.DirectoryLock, aside: Path | None) -> None:
    """Undo what a start has written that has trained nothing, and unlock the directory.

    Args:
        before: by name what files of the directory held; None of those that were not there.
        held, aside: as of `locked`.
    """
    for name, content in before.items():
        if content is None:
            (path / name).unlink(missing_ok=True)
        elif content_of(path / name) != content:
            with files.replacing(path / name) as new:
                new.write_bytes(content)
    held.close()
    with suppress(OSError):  # it was there before
        place = Path(os.path.realpath(path))  # see `lock.rename_aside`
        place.rmdir()
        if aside is not None:
            aside.rename(place)
            print(f"moved the earlier job back to {path}", flush=True)


def locked(path: Path, *, afresh: bool) -> tuple[lock.DirectoryLock, Path | None]:
    """Lock the directory of a job, which is made where it is not there.

    Args:
        afresh: move an earlier job aside.

    Returns:
        (the lock, where the earlier job is now).

    Raises:
        UserError: a live process has the lock.
        OSError: the directory cannot be written.
    """
    aside = None
    if afresh and path.exists() and any(path.iterdir()):
        held = lock.DirectoryLock(path)
        aside = lock.rename_aside(path)
        (aside / held.path.name).unlink()
        held.close()
        print(f"moved the earlier job to {aside}", flush=True)
    return lock.DirectoryLock(path), aside
