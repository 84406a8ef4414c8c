"""The config.json of a model folder: what the net is, its labels, and how it reads texts."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.ngrams import NGramConfig
from ulmfit.model_kinds import check_optional, is_ngrams

CONFIG = "config.json"

#: Increased when older versions of this package cannot read new files. 2: weights in 8 bits. 3: several labels. 4: n-grams.
FORMAT_VERSION = 4

CURE = "give the output directory of a finished training, or train again"


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Read and check config.json of a model folder. Unknown keys are kept.

    Raises:
        UserError: it is absent or damaged, or a value in it is of a wrong kind.
    """
    path = Path(folder) / CONFIG
    try:
        config = files.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {CURE}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object; {CURE}")
    if _field(config, "format_version", int, path) > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {config['format_version']} and this ulmfit reads up to "
            f"{FORMAT_VERSION}; update ulmfit"
        )
    task = _field(config, "task", str, path)
    if task not in ("language_model", "classifier"):
        raise UserError(f"{path} has task {excerpt(task)}, which is neither language_model nor classifier; {CURE}")
    _field(config, "backwards", bool, path)
    architecture_of(config, path)
    if task == "classifier":
        names = _field(config, "label_names", list, path)
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"label_names in {path} is not a list of names; {CURE}")
        check_optional(config, path, CURE)
    elif is_ngrams(config):
        raise UserError(f"{path} has n-grams as a language model; {CURE}")
    if task == "classifier" and not is_ngrams(config):
        for name in ("bptt", "max_len", "head_hidden"):
            _field(config, name, int, path)
        _field(config, "head_p", float, path)
        if config.get("multi_label") is not None:
            _field(config, "multi_label", bool, path)
        if config.get("gradient_window") is not None:
            _field(config, "gradient_window", int, path)
    return config


def _field(config: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    value = config.get(name)
    good = isinstance(value, (int, float) if kind is float else kind)
    # Larger numbers fit no type of torch and ONNX.
    if not good or (isinstance(value, bool) and kind is not bool) or (isinstance(value, int) and abs(value) >= 2**63):
        raise UserError(f"{name} in {path} is {excerpt(value)}, not of type {kind.__name__}; {CURE}")
    return value


def architecture_of(config: dict[str, Any], path: Path) -> AWDLSTMConfig | NGramConfig:
    architecture = _field(config, "architecture", dict, path)
    kinds = {"int": int, "float": float}
    kind = NGramConfig if is_ngrams(config) else AWDLSTMConfig
    return kind(**{part.name: _field(architecture, part.name, kinds[str(part.type)], path) for part in fields(kind)})
