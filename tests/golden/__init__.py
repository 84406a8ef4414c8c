"""What fastai 1 and fastai 2 print for tiny, deterministic inputs; README.md beside this file says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent


def table(version: int | str) -> dict[str, Any]:
    """The values of fastai 1 or 2 that are no tensors."""
    return json.loads((FOLDER / f"golden_v{version}.json").read_text())


def arrays(version: int | str) -> dict[str, torch.Tensor]:
    """The tensors of fastai 1 or 2."""
    with np.load(FOLDER / f"golden_v{version}.npz") as content:
        return {name: torch.tensor(content[name]) for name in content.files}
