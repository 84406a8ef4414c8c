"""The chunked loss on a GPU: everything between the matrix products is one Triton kernel.

The plain path (loss.py) passes over a chunk's logits about 12 times, in 33 launches; on a GPU that is most of a step.
Here, in passes over [chunk, V] in float32, and with half-precision operands:

    product of hidden and weight        1 written
    kernel, first pass                  1 read
    kernel, second pass                 1 read, from the L2 cache where a row is still there; 1/2 written
    two products with the gradient      1/2 read each

That is 3.5 to 4.5 passes (float32 operands: 5 to 6) and 4 launches a chunk. The gradient lies in the memory of the
logits, so a chunk holds 4 bytes a logit, where the plain path holds 6 with half-precision operands.

The bias takes no pass: it rides in columns of the weight, on columns of ones of hidden, and its gradient comes with
the weight's. Three columns hold it exactly, because each holds 8 bits more, whatever the operands are rounded to.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ulmfit.console import say
from ulmfit.model.chunks import HALF_SCALE, IGNORE, LossAndGradients, LossInputs, add_product, product_into

#: Environment variable that switches the kernel off: ULMFIT_LOSS=plain.
SWITCH = "ULMFIT_LOSS"

_BIAS_COLUMNS = 3
_ALIGNMENT = 8  # columns of the operands: 16 bytes in half precision, which tensor cores want

#: Why the kernel is not used any more in this process, once it has failed.
_failure: str | None = None


class KernelFailed(RuntimeError):
    """The kernel cannot be imported, compiled or run here, or computes something else than torch."""


def in_use(device: torch.device) -> bool:
    """Whether the kernel is to be used on this device."""
    if not is_chosen(device.type, switch=os.environ.get(SWITCH), failure=_failure):
        return False
    if find_spec("triton") is None:
        give_up(KernelFailed("triton is not installed"))
        return False
    return True


def is_chosen(device: str, *, switch: str | None, failure: str | None) -> bool:
    """The rule of `in_use`: on CUDA, unless it is switched off or has failed."""
    return device == "cuda" and switch != "plain" and failure is None


def give_up(error: KernelFailed) -> None:
    """Use the plain path from now on, and say so in a line on standard error."""
    global _failure
    _failure = " ".join(str(error).split())[:300]
    say(f"the loss is computed without its Triton kernel, which is slower: {_failure}", sys.stderr)


def compute_chunks(given: LossInputs) -> LossAndGradients:
    """Loss and gradients.

    Raises:
        KernelFailed: the kernel cannot be used; nothing was changed.
    """
    hidden, weight, bias, targets, _, compute_dtype, needs = given
    num_rows, width, vocab_size = *hidden.shape, weight.shape[0]
    full = torch.promote_types(weight.dtype, torch.float32)
    scale = HALF_SCALE if compute_dtype.itemsize < 4 else 1.0
    check(hidden.device, full, compute_dtype)
    x, operand = _with_bias(hidden, weight, bias, compute_dtype)
    grad_hidden = hidden.new_empty(hidden.shape, dtype=full) if needs[0] else None
    first = 0 if needs[1] else width  # the first column of the operand that gets a gradient
    grad_operand = None
    if needs[1] or needs[2]:
        grad_operand = weight.new_zeros((vocab_size, operand.shape[1] - first), dtype=full)
    losses = hidden.new_empty(num_rows, dtype=full)
    correct = torch.empty(num_rows, dtype=torch.int8, device=hidden.device)

    size = given.rows_at_a_time()
    buffer = hidden.new_empty((size, vocab_size), dtype=full)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        logits = buffer[: rows.stop - start]
        product_into(logits, x[rows], operand.t())
        gradient = within(logits, compute_dtype) if any(needs) else None
        loss_and_gradient(logits, gradient, targets[rows], losses[rows], correct[rows], scale=scale)
        if gradient is None:
            continue
        if grad_hidden is not None:
            product_into(grad_hidden[rows], gradient, operand[:, :width])
        if grad_operand is not None:
            add_product(grad_operand, gradient.t(), x[rows, first:], 1 / scale)
    if grad_hidden is not None and scale != 1:
        grad_hidden.div_(scale)
    return LossAndGradients(
        losses.sum(),
        correct.sum(),
        grad_hidden,
        grad_operand[:, :width] if grad_operand is not None and needs[1] else None,
        grad_operand[:, width - first] if grad_operand is not None and needs[2] else None,
    )


def within(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the gradient of contiguous logits [n, V]: each row at the beginning of its row of logits.

    A tensor [n, V] of `dtype`, whose rows are not contiguous if `dtype` is narrower. If it is wider, new memory.
    """
    if dtype.itemsize > logits.itemsize:
        return torch.empty_like(logits, dtype=dtype)
    return logits.view(dtype)[:, : logits.shape[1]]


def loss_and_gradient(
    logits: Tensor, gradient: Tensor | None, targets: Tensor, losses: Tensor, correct: Tensor, *, scale: float
) -> None:
    """Run the kernel on a chunk.

    Args:
        logits: [n, V], contiguous, float64, float32, float16 or bfloat16.
        gradient: [n, V], is set to scale * (softmax - one_hot), and to zero in rows that are not counted; None if not
            needed. It may be `within` the logits, which it then overwrites.
        targets: [n] int64; -100 marks rows that are not counted.
        losses, correct: [n], are set to the cross-entropy (float32, or float64 for float64 logits) and to 1 (int8)
            where the target has the largest logit; both 0 in rows that are not counted.

    Raises:
        KernelFailed: triton raised.
        OutOfMemoryError: of torch, as elsewhere.
    """
    if not len(targets):
        return
    try:
        from ulmfit.model.softmax_kernel import launch

        with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():  # triton takes the current device
            launch(
                logits,
                gradient,
                targets,
                losses,
                correct,
                scale=scale,
                ignore=IGNORE,
                double=logits.dtype == torch.float64,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver, a cache folder: whatever it is, the plain path does without
        if "out of memory" in str(error):  # but the plain path would need more of it
            raise torch.OutOfMemoryError(str(error)) from error
        raise KernelFailed(f"{type(error).__name__}: {error}") from error


@cache
def check(device: torch.device, dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
    """Compare the kernel with torch on a few logits, once for each device and dtype. The host waits for the result.

    Raises:
        KernelFailed: it does not run, or the results differ.
    """
    shape = (4, 40_000)  # a row is more than the kernel reads at a time
    logits = (torch.arange(160_000, device=device, dtype=dtype) * 0.37).sin().mul_(8).view(shape)
    targets = torch.tensor([0, 39_999, IGNORE, 22_345], device=device)
    counted = (targets != IGNORE).unsqueeze(1)
    one_hot = torch.arange(shape[1], device=device) == targets.unsqueeze(1)
    expected = (logits.softmax(1) - one_hot.to(dtype)) * counted
    expected_losses = ((logits.logsumexp(1) - (logits * one_hot).sum(1)) * counted.squeeze(1)).sum()
    losses, correct = logits.new_empty(4), targets.new_empty(4, dtype=torch.int8)
    loss_and_gradient(logits, None, targets, losses, correct, scale=1.0)
    scale = HALF_SCALE if gradient_dtype.itemsize < 4 else 1.0
    gradient = within(logits, gradient_dtype)
    loss_and_gradient(logits, gradient, targets, losses, correct, scale=scale)
    far = (gradient.to(dtype) / scale - expected).norm() / expected.norm()
    if not (far < 4 * torch.finfo(gradient_dtype).eps + 1e-5 and abs(losses.sum() / expected_losses - 1) < 1e-4):
        raise KernelFailed(f"its gradient is off by {far.item():.1e}, its loss {losses.sum().item():.6g}")


def _with_bias(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The operands of the product hidden @ weight.T + bias, as [N, K] and [V, K] with K >= E, in `dtype`."""
    if bias is None:
        return hidden.to(dtype), weight.to(dtype)
    width = hidden.shape[1]
    columns = width + _BIAS_COLUMNS
    columns += -columns % _ALIGNMENT
    x, operand = (
        hidden.new_zeros((len(hidden), columns), dtype=dtype),
        weight.new_zeros((len(weight), columns), dtype=dtype),
    )
    x[:, :width], operand[:, :width] = hidden, weight
    x[:, width : width + _BIAS_COLUMNS] = 1
    rest = bias.to(torch.promote_types(bias.dtype, torch.float32))
    for column in range(width, width + _BIAS_COLUMNS):
        last = column == width + _BIAS_COLUMNS - 1
        part = rest if last else rest.bfloat16().to(rest.dtype)
        operand[:, column] = part
        rest = rest - part
    return x, operand
