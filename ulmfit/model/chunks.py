"""What the losses over words share: chunks of rows, and matrix products of half-precision operands."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ulmfit.device import cpu_multiplies_bf16

#: A target that is not counted.
IGNORE = -100

#: Rows of logits in memory at a time. On the CPU 128 to 512 are equally fast (measured).
CHUNK_CPU = 512

#: The same on a GPU, at most. Each chunk adds to the gradient of the weight, reading and writing all of it.
CHUNK_CUDA = 8192

#: Memory of a chunk of logits on a GPU: at most so many bytes, and this share of its memory.
CHUNK_BYTES, CHUNK_SHARE = 2 * 2**30, 1 / 16

#: Half-precision gradients are multiplied by this power of two before the matrix products and divided by it after.
#: Otherwise probabilities of rare words would underflow in float16, whose smallest number is 2^-24.
HALF_SCALE = 2.0**15


class LossInputs(NamedTuple):
    """What a loss over all words is computed from, and how; by both paths, loss.py and fused_loss.py.

    Attributes:
        hidden, weight, bias, targets: as of `loss.linear_cross_entropy`.
        chunk_size: rows of logits in memory at a time, at most.
        compute_dtype: of the operands of the matrix products.
        needs: which gradients are needed: of hidden, weight and bias.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    chunk_size: int
    compute_dtype: torch.dtype
    needs: tuple[bool, bool, bool]

    def rows_at_a_time(self) -> int:
        """Chunks have equal sizes, because a small last product would be slow."""
        num_chunks = -(-len(self.targets) // self.chunk_size)
        return max(1, -(-len(self.targets) // max(num_chunks, 1)))


class LossAndGradients(NamedTuple):
    """Sum of the losses and number of correct rows, both 0-d; gradients of the sum, None where not needed."""

    loss: Tensor
    num_correct: Tensor
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def rows_of_a_chunk(num_rows: int, num_columns: int, weight: Tensor) -> int:
    """The default number of rows of logits in memory at a time, for `num_rows` rows of `num_columns` logits each."""
    memory = torch.cuda.get_device_properties(weight.device).total_memory if weight.is_cuda else None
    return chunk_rows(num_rows, num_columns, max(4, weight.itemsize), memory)


def chunk_rows(num_rows: int, num_columns: int, itemsize: int, memory: int | None) -> int:
    """The rule of `rows_of_a_chunk`.

    On a GPU a large chunk is faster, but it is never the whole of a step: at least two chunks share the rows.

    Args:
        itemsize: bytes of a logit.
        memory: bytes of the GPU's memory; None on a CPU.
    """
    if memory is None:
        return CHUNK_CPU
    fit = int(min(CHUNK_BYTES, CHUNK_SHARE * memory)) // (num_columns * itemsize)
    return max(1, min(CHUNK_CUDA, fit, -(-num_rows // 2)))


def product_dtype(weight: Tensor) -> torch.dtype:
    """The default dtype of the operands of matrix products: autocast's where the device multiplies it, else the weight's."""
    device = weight.device.type
    autocast = torch.is_autocast_enabled(device) and (weight.is_cuda or cpu_multiplies_bf16())
    return torch.get_autocast_dtype(device) if autocast else weight.dtype


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix product of half-precision operands in a wider dtype.

    The accumulator is rounded only by the matrix units of a CPU: torch has no product of theirs with a wider result.
    """
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    if a.dtype == torch.bfloat16 and cpu_multiplies_bf16():
        return torch.mm(a, b).to(dtype)
    return torch.mm(a.to(dtype), b.to(dtype))


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b, in the dtype of out, which may be wider than that of the operands."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif out.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(product(a, b, out.dtype))


def add_product(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
    """total += alpha * (a @ b), in the dtype of total, which may be wider than that of the operands."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, alpha=alpha)
    elif total.is_cuda and _adds_in_float32(total.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, alpha=alpha, out=total)
    else:
        total.add_(product(a, b, total.dtype), alpha=alpha)


@cache
def _adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's addmm of half-precision matrices adds to a float32 one in place.

    The first release whose addmm takes `out_dtype` demands that the summand has the dtype of the matrices. Asked once,
    of a small product; the host waits for its result.
    """
    a, total = torch.ones(16, 16, dtype=dtype, device=device), torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, alpha=0.5, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 9).all())
