"""Fixtures: golden values of the peers, and a recorder of the tensors that operations make."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import golden as reference


@pytest.fixture(scope="session")
def golden():
    """json and arrays of fastai 1 and 2, and the token ids and documents behind them."""
    random = np.random.RandomState
    return SimpleNamespace(
        v1=reference.arrays(1),
        v2=reference.arrays(2),
        json1=reference.table(1),
        json2=reference.table(2),
        tokens=torch.tensor(random(7).randint(2, 50, (2, 14))),
        documents=[torch.tensor(random(20 + i).randint(2, 50, n)) for i, n in enumerate((30, 20, 9))],
    )


class _Recorder(TorchDispatchMode):
    """The shapes of all tensors that operations return; `made`: of those that are no views of earlier ones."""

    def __init__(self):
        super().__init__()
        self.shapes, self.made, self._memory = [], [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for output in outputs:
            if isinstance(output, torch.Tensor):
                self.shapes.append(tuple(output.shape))
                storage = output.untyped_storage()
                if storage.data_ptr() not in self._memory:
                    self.made.append(tuple(output.shape))
                    self._memory[storage.data_ptr()] = storage  # kept, so that no other tensor gets its address
        return result

    @property
    def largest(self):
        return max(torch.Size(shape).numel() for shape in self.shapes)


@pytest.fixture
def recorder():
    return _Recorder()
