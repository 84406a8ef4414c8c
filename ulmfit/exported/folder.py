"""An exported classifier as a folder: model.onnx, tokenizer.json, and config.json with label_names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.exported.reader import OnnxReader
from ulmfit.model_kinds import check_optional
from ulmfit.paths import as_path
from ulmfit.tokenizer.tokenizer import Tokenizer

CONFIG, MODEL, TOKENIZER = "config.json", "model.onnx", "tokenizer.json"
# Entries of config.json that this package reads, besides label_names and those of `check_optional`; each may be missing.
_KINDS = {"architecture": dict, "exported": dict, "max_len": int}
_TRAINED = "model.safetensors"
_CURE = "export the model again"


def write_export(
    folder: Path, model: bytes, tokenizer: Tokenizer, config: Mapping[str, Any], *, bits: Literal[8, 32]
) -> None:
    """Write the three files, each atomically. `config` is that of the trained model, and is kept."""
    content = {**config, "exported": {"format": "onnx", "bits": bits}}
    if config.get("multi_label") and config.get("thresholds") is None:
        content["thresholds"] = [0.5] * len(config["label_names"])  # programs that read the folder look for them
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / TOKENIZER)
    files.write_text(folder / CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")
    with files.replacing(folder / MODEL) as aside:
        aside.write_bytes(model)


def is_export(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder with an exported model and no trained one."""
    folder = Path(as_path(path))
    return (folder / MODEL).is_file() and not (folder / _TRAINED).is_file()


def graph_of(path: str | os.PathLike) -> Path:
    """The file of an exported model's graph."""
    return Path(as_path(path)) / MODEL


def read_export(path: str | os.PathLike) -> tuple[OnnxReader, Tokenizer, dict[str, Any]]:
    """The three files of an exported model.

    Raises:
        UserError: one of them is missing or damaged, or they do not fit together.
    """
    folder = Path(as_path(path))
    try:
        config = files.parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"{folder / CONFIG} cannot be read ({reason}); {_CURE}") from None
    names = config.get("label_names") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"label_names in {folder / CONFIG} is not a list of names; {_CURE}")
    for name, kind in _KINDS.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            raise UserError(f"{name} in {folder / CONFIG} is {excerpt(config[name])}, of another type; {_CURE}")
    check_optional(config, folder / CONFIG, _CURE)
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    if config.get("vocabulary", tokenizer.vocabulary_fingerprint) != tokenizer.vocabulary_fingerprint:
        raise UserError(
            f"{folder / TOKENIZER} has other words than the model was trained with; put the "
            "tokenizer.json back that was exported with the model"
        )
    reader = OnnxReader(folder / MODEL)
    if reader.num_classes != len(names):
        raise UserError(
            f"{folder / MODEL} has {reader.num_classes} classes and {CONFIG} names {len(names)}; copy the whole folder"
        )
    return reader, tokenizer, config
