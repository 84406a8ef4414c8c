"""status.json: how a run, or a whole job of `fit`, stands or ended. Only rank 0 writes it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

from ulmfit.files import parse_json, write_text

STATUS = "status.json"
State = Literal["running", "done", "preempted", "failed"]
_TYPES: dict[str, type] = {"state": str, "step": int, "error": str, "best_step": int}


def write_status(output_dir: Path, state: State, step: int, **fields: Any) -> None:
    """Replace status.json. It tells how the run ended, because launchers do not pass on exit codes."""
    path = output_dir / STATUS
    text = json.dumps(plain({"state": state, "step": step} | fields)) + "\n"
    try:
        write_text(path, text)
    except OSError:
        if not path.exists():
            raise
        # On a full disk a second file is not possible, but the space of the existing one can be overwritten.
        with open(path, "r+b", buffering=0) as file:
            file.write(text.encode().ljust(os.fstat(file.fileno()).st_size))


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """Read status.json. None if there is none or it cannot be read. What has another type than we write is left out."""
    try:
        status = parse_json((output_dir / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(status, dict):
        return None
    return {name: value for name, value in status.items() if type(value) is _TYPES.get(name, type(value))}


def plain(value: Any) -> Any:
    """Convert tensors and numpy values to Python's, and nan and infinities to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
