"""The Triton kernel of the fused loss: from a chunk of logits to losses, correct rows and the gradient, in one launch.

Only fused_loss.py imports this file, because it needs triton.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

#: Most logits that a program reads at a time, and its warps then; a thread has 16 logits, and 51 registers on an H100.
#: So one program fills a multiprocessor, and the rows that are read a second time may still be in the L2 cache: 132
#: rows of 60,000 float32 logits are 32 MB. Not measured: benchmarks/loss_kernel.py tries others.
BLOCK, WARPS = 16_384, 32


@triton.jit
def _loss_and_gradient(
    logits,
    gradient,
    targets,
    losses,
    correct,
    vocab_size,
    logits_stride,
    gradient_stride,
    scale,
    IGNORE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # a chunk may have more elements than an int32 counts
    logits += row * logits_stride
    target = tl.load(targets + row)
    counted = target != IGNORE
    index = tl.where(counted, target, 0).to(tl.int32)
    columns = tl.arange(0, BLOCK)

    # First pass: the largest logit and the sum of exp(logit - largest), for each lane by itself. The larger of old
    # maximum and logit becomes the new one, so one exponential serves both cases.
    largest = tl.full([BLOCK], -3.0e38, ACCUMULATOR)
    sums = tl.zeros([BLOCK], ACCUMULATOR)
    for start in range(0, vocab_size, BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=at < vocab_size, other=-float("inf")).to(ACCUMULATOR)
        difference = x - largest
        smaller = tl.exp(-tl.abs(difference))
        sums = tl.where(difference > 0, sums * smaller + 1, sums + smaller)
        largest = tl.maximum(largest, x)
    top = tl.max(largest, 0)
    total = tl.sum(sums * tl.exp(largest - top), 0)
    chosen = tl.load(logits + index).to(ACCUMULATOR)
    loss = tl.log(total) + (top - chosen)
    tl.store(losses + row, tl.where(counted, loss, 0.0))
    tl.store(correct + row, ((chosen == top) & counted).to(tl.int8))

    # Second pass: scale * (softmax - one_hot).
    if WITH_GRADIENT:
        gradient += row * gradient_stride
        factor = scale / total
        for start in range(0, vocab_size, BLOCK):
            at = start + columns
            x = tl.load(logits + at, mask=at < vocab_size, other=-float("inf")).to(ACCUMULATOR)
            value = tl.exp(x - top) * factor
            value = tl.where(at == index, value - scale, value)
            value = tl.where(counted, value, 0.0)
            # The gradient lies in the memory of the logits, at the row's start. A block is written over logits that
            # this program has read: those of this block (half precision: of an earlier one). All warps have read them
            # before one writes.
            tl.debug_barrier()
            tl.store(gradient + at, value.to(gradient.dtype.element_ty), mask=at < vocab_size)


def launch(
    logits: Any, gradient: Any, targets: Any, losses: Any, correct: Any, *, scale: float, ignore: int, double: bool
) -> None:
    """Run the kernel on logits [n, V]; arguments as in `fused_loss.loss_and_gradient`. `gradient` may be None."""
    num_rows, vocab_size = logits.shape
    block = max(128, min(BLOCK, triton.next_power_of_2(vocab_size)))
    out = logits if gradient is None else gradient
    _loss_and_gradient[(num_rows,)](
        logits,
        out,
        targets,
        losses,
        correct,
        vocab_size,
        logits.stride(0),
        out.stride(0),
        scale,
        IGNORE=ignore,
        WITH_GRADIENT=gradient is not None,
        ACCUMULATOR=tl.float64 if double else tl.float32,
        BLOCK=block,
        num_warps=max(4, min(WARPS, block // 512)),
    )
