"""Fixtures: golden values of the peers, and a recorder of the tensors that operations make."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="session")
def golden():
    """json and arrays of fastai 1 and 2, and the token ids and documents behind them."""
    folder = os.environ.get("ULMFIT_GOLDEN")
    if not folder:
        pytest.skip("ULMFIT_GOLDEN is not set")
    folder, random = Path(folder), np.random.RandomState

    def arrays(version):
        with np.load(folder / f"golden_v{version}.npz") as content:
            return {name: torch.tensor(content[name]) for name in content.files}

    return SimpleNamespace(
        v1=arrays(1),
        v2=arrays(2),
        json1=json.loads((folder / "golden_v1.json").read_text()),
        json2=json.loads((folder / "golden_v2.json").read_text()),
        tokens=torch.tensor(random(7).randint(2, 50, (2, 14))),
        documents=[torch.tensor(random(20 + i).randint(2, 50, n)) for i, n in enumerate((30, 20, 9))],
    )


class _Recorder(TorchDispatchMode):
    """The shapes of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        self.shapes += [tuple(output.shape) for output in outputs if isinstance(output, torch.Tensor)]
        return result

    @property
    def largest(self):
        return max(torch.Size(shape).numel() for shape in self.shapes)


@pytest.fixture
def recorder():
    return _Recorder()
