"""The model.safetensors of a model folder, and weights in 8 bits."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ulmfit.errors import UserError
from ulmfit.model.stored_config import CURE

WEIGHTS = "model.safetensors"

#: Suffix of the tensor name for the scales of an 8-bit matrix, one per row.
SCALES = ".scales"


def to_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert matrices [n, m] to int8 with one float32 scale per row, `name + SCALES` [n], and vectors to float16.

    The scale is the row's largest absolute value / 127, so the rounding error of a weight is at most half the scale.
    """
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            scales = tensor.abs().amax(1).clamp(min=1e-12) / 127
            stored[name] = (tensor / scales[:, None]).round().to(torch.int8)
            stored[name + SCALES] = scales.float()
        else:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
    return stored


def _from_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the matrices of `to_8_bits` back to float32. Other tensors are unchanged.

    Raises:
        ValueError: the scales of a matrix do not fit it.
    """
    for name, scales in tensors.items():
        matrix = tensors.get(name.removesuffix(SCALES))
        if name.endswith(SCALES) and (
            matrix is None or matrix.dtype != torch.int8 or not scales.is_floating_point()
            or matrix.ndim != 2 or scales.shape != matrix.shape[:1]
        ):  # fmt: skip
            raise ValueError(f"{name} are no scales of a matrix in 8 bits")
    return {
        name: tensor.float() * tensors[name + SCALES][:, None] if name + SCALES in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALES)
    }


def read_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of model.safetensors on the CPU. Half precision and 8 bits become float32, as the CPU's LSTM needs.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(folder) / WEIGHTS
    half = (torch.float16, torch.bfloat16)
    try:
        tensors = safetensors.torch.load_file(path)
        # A copy, because safetensors maps the file: if the file were overwritten, the model would change.
        return _from_8_bits(
            {
                name: tensor.to(torch.float32 if tensor.dtype in half else tensor.dtype, copy=True)
                for name, tensor in tensors.items()
            }
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise UserError(f"{path} cannot be read ({error}); {CURE}") from error
