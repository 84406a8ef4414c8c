"""Language models that come with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

ENCODERS = Path(__file__).parent / "encoders"
_WEIGHTS = "model.safetensors"


def shipped_encoders() -> list[str]:
    """The names."""
    return sorted(path.parent.name for path in ENCODERS.glob(f"*/{_WEIGHTS}"))


def shipped_folder(name: str) -> Path | None:
    """The folder of the model of this name; None if there is none, or if something here has that path, which wins."""
    if os.path.lexists(name) or name not in shipped_encoders():
        return None
    return ENCODERS / name
