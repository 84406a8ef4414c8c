"""Global settings that a run chooses: torch's TF32 and threads, seeds, and what is put back at its end."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import torch

_backends: Any = torch.backends  # whose switches by precision mypy does not know


def allowed_tf32(precision: str, *, deterministic: bool, in_cudnn: bool) -> tuple[bool, bool]:
    """Whether a run on a GPU rounds the operands of float32 products to TF32: (in cuDNN's LSTM, in matrix products).

    In fp32 both are alike, because the slower of the two would decide how fast a step is. With `deterministic` neither
    rounds. In half precision cuDNN's switch must stay on: without it torch asks cuDNN for FMA arithmetic in bfloat16
    too (aten/src/ATen/cudnn/Descriptors.h), that is without tensor cores. Half-precision products do not use TF32.

    Args:
        precision: fp32, fp64, fp16 or bf16.
        in_cudnn: the present setting of cuDNN, on by default in torch.
    """
    if precision in ("fp16", "bf16"):
        return True, False
    allowed = in_cudnn and not deterministic
    return allowed, allowed


class TorchSettings:
    """Global settings of torch that a run may change, and the states of the random generators that it seeds.

    Attributes:
        tf32_in_cudnn: whether cuDNN may use TF32.
    """

    def __init__(self) -> None:
        self._threads, self._deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        self._benchmark = torch.backends.cudnn.benchmark
        cudnn, matmul = _backends.cudnn, _backends.cuda.matmul
        self._precisions = cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision, matmul.fp32_precision
        self.tf32_in_cudnn = self._precisions[0] == "tf32"
        self._allow: tuple[bool, bool] | None = None
        with suppress(RuntimeError):  # torch refuses to read these where the program has set the others
            self._allow = cudnn.allow_tf32, matmul.allow_tf32
        # A program's own draws go on after a training: else every fold of a cross-validation would be drawn alike.
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._random_on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def allow_tf32(self, in_cudnn: bool, in_products: bool) -> None:
        """Let cuDNN, and matrix products, round the operands of float32 products to TF32, or not."""
        if self._allow is not None:
            _backends.cudnn.allow_tf32, _backends.cuda.matmul.allow_tf32 = in_cudnn, in_products
        else:
            lstm, products = ("tf32" if allowed else "ieee" for allowed in (in_cudnn, in_products))
            self._set((lstm, lstm, products))

    def _set(self, precisions: tuple[str, str, str]) -> None:
        cudnn, matmul = _backends.cudnn, _backends.cuda.matmul
        cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision, matmul.fp32_precision = precisions

    def restore(self) -> None:
        torch.set_num_threads(self._threads)
        if torch.are_deterministic_algorithms_enabled() != self._deterministic:
            torch.use_deterministic_algorithms(self._deterministic)  # imports torch's compiler, which takes seconds
        _backends.cudnn.benchmark = self._benchmark
        if self._allow is not None:
            self.allow_tf32(*self._allow)
        else:
            self._set(self._precisions)
        python, numpys, torchs = self._random
        random.setstate(python)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)
        if self._random_on_gpus is not None:
            torch.cuda.set_rng_state_all(self._random_on_gpus)


def seed_everything(seed: int) -> None:
    """Seed the global random generators. They only determine initial weights. Data order and dropout have their own
    seeds (batches/order.py, training/masks.py)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
