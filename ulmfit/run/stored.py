"""config.json of a run directory: read with its types checked, or from the copy in the newest checkpoint.

Users edit the file by hand, and disks damage it. Each checkpoint holds a copy under its checksum. So a file that is
missing or damaged does not cost a run its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.files import parse_json
from ulmfit.option_types import is_of_type
from ulmfit.run import checkpoint

CONFIG = "config.json"
_MOST = 1e15  # for any number
_SECTIONS = ("options", "resolved", "identity", "versions")
# What later starts compute with, besides the options: by name, the types of a value.
_RESOLVED: dict[str, tuple[type, ...]] = {
    "scheme": (int,),
    "batch_size": (int,),
    "bptt": (int,),
    "drop_mult": (int, float),
    "weight_decay": (int, float),
    "clip": (int, float),
    "vocabulary": (int,),
    "parameters": (int,),
    "architecture": (dict,),
    "keep_best": (bool,),
    "best_clearly": (bool,),
    "metric": (str, type(None)),
    "stages": (list,),
    "micro_batches": (int, str),
    "revision": (str, dict, type(None)),
    "start_revision": (str, type(None)),
    "valid_rows": (str, type(None)),
    "text_column": (str, type(None)),
    "label_column": (str, type(None)),
    "valid": (str, type(None)),
}


def read_stored(path: Path, notice: Callable[[str], None] = lambda sentence: None) -> dict[str, Any] | None:
    """Read config.json of a run directory; None if there is none. That of version 0.1.0 is converted.

    Args:
        notice: called with a sentence for the user if the copy of a checkpoint is taken.

    Raises:
        UserError: it is damaged, and no checkpoint holds a copy.
    """
    file = path / CONFIG
    stored, fault = None, "is missing"
    try:
        stored = parse_json(file.read_text(encoding="utf-8"))
        fault = fault_of_config(stored)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ValueError:
        fault = "is not JSON"
    if isinstance(stored, dict) and stored.get("task") == "fit":
        raise UserError(
            f"{path} holds a job of fit, whose trainings are in its folders lm and clf; name another directory"
        )
    copy = _copy(path) if fault else None
    if copy is not None:
        notice(f"{file} {fault}; going on by the copy in the newest checkpoint")
        return copy
    if fault == "is missing":
        return None
    if fault:
        raise UserError(
            f"{file} is damaged ({fault}); put it right to go on from its checkpoints, or start afresh with "
            "--resume never"
        )
    assert stored is not None, "without a fault there is a content"
    return _converted(stored)


def holds_copy(path: Path) -> bool:
    """Whether a checkpoint of a run directory holds a sound config.json."""
    return _copy(path) is not None


def _copy(path: Path) -> dict[str, Any] | None:
    text = checkpoint.kept_file(path / "checkpoints", CONFIG)
    stored = None if text is None else parse_json(text)
    return None if stored is None or fault_of_config(stored) else _converted(stored)


def fault_of_config(stored: Any) -> str:
    """What is wrong with the content of a config.json, in words; "" if nothing is."""
    if not isinstance(stored, dict):
        return "is not a JSON object"
    for name in _SECTIONS:
        if not isinstance(stored.setdefault(name, {}), dict):
            return f"has no object {name}"
    kind = {"lm": LMConfig, "clf": ClassifierConfig}.get(str(stored.get("task")))
    if kind is None:
        return f"has the task {excerpt(stored.get('task'))}"
    for name, value in stored["options"].items():
        if not is_of_type(kind, name, value):
            return f"has {excerpt(value)} as the option {name}"
    threads = stored.get("threads", 1)
    if type(threads) is not int or threads < 1:
        return f"has {excerpt(threads)} threads"
    commit, version = stored.get("git_commit"), stored["versions"].get("ulmfit")
    if not isinstance(commit, str | None) or not isinstance(version, str | None):
        return "does not tell the version that wrote it"
    for name, value in stored["resolved"].items():
        if name in _RESOLVED and (type(value) not in _RESOLVED[name] or not _is_sane(value)):
            return f"has {excerpt(value)} as the resolved {name}"
    for stages in (stored["resolved"].get("stages", []), stored["identity"].get("stages") or []):
        if not isinstance(stages, list) or not all(map(_is_stage, stages)):
            return "has stages that are none"
    return ""


def _is_sane(value: Any) -> bool:
    return not isinstance(value, int | float) or 0 <= value <= _MOST  # false for nan


def _is_stage(stage: Any) -> bool:
    return isinstance(stage, dict) and type(stage.get("steps")) is int and stage["steps"] >= 0


def _converted(stored: dict[str, Any]) -> dict[str, Any]:
    """What version 0.1.0 wrote, with what it left to defaults that have changed."""
    given, resolved = stored["options"], stored["resolved"]
    if "scheme" not in resolved:
        resolved |= {"scheme": 1, "keep_best": False}
        start = "init" if stored.get("task") == "lm" else "encoder"
        if given.get(start) is None:
            given[start] = "none"
            given["preset"] = given.get("preset") or ("tiny" if given.get("data") is None else "base")
        if stored.get("task") == "lm" and given.get("sampled_softmax") is None:
            given["sampled_softmax"] = 0
    return stored


def identity_of(stored: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The identity in a config.json.

    Version 0.1.0 stored options as given, with None for those left out. For these the resolved values are used, or if
    they are not stored, the values of this start (`new`).
    """
    old = dict(stored["identity"])
    if stored["resolved"]["scheme"] != 1:
        return old
    resolved = stored["resolved"]
    stages = resolved.get("stages") or [{}]
    old |= {name: resolved[name] for name in new.keys() & resolved.keys()}
    old |= {"lr": stages[-1].get("lr"), "schedule": stages[-1].get("schedule"), "epochs": None}
    old["max_steps"] = sum(stage.get("steps", 0) for stage in stages)
    old["preset"] = new.get("preset")  # checked later by the number of parameters (see `training.begun`)
    for name in ("text_column", "label_column", "valid", "vocab_size"):
        if old.get(name) is None:
            old[name] = new.get(name)
    return old


def begun_by(stored: dict[str, Any]) -> str:
    """The version of this package that wrote a config.json, in words for the user."""
    version, commit = stored["versions"].get("ulmfit"), stored.get("git_commit")
    words = f"ulmfit {version}" if version else "an early ulmfit"
    return f"{words} of commit {commit[:7]}" if commit else words


def as_text(content: dict[str, Any]) -> str:
    """The text of a config.json."""
    return json.dumps(content, indent=2) + "\n"
