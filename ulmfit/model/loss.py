"""The language model's loss: cross-entropy of a linear output layer in chunks of rows, and the sums for AR and TAR.

With 60,000 words the output layer takes half of the arithmetic and its logits nearly all of the memory. Here the
gradient of the softmax cross-entropy is computed in the forward pass, in chunks of rows that share one buffer. A tensor
[rows x vocabulary] never exists, in training or in evaluation.

This file is the reference, and the path on a CPU. On a GPU fused_loss.py computes the same in fewer passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit.model import fused_loss
from ulmfit.model.chunks import (
    HALF_SCALE,
    IGNORE,
    LossAndGradients,
    LossInputs,
    add_product,
    product,
    product_dtype,
    product_into,
    rows_of_a_chunk,
)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy (nats) of softmax(hidden @ weight.T + bias) over the counted rows.

    Args:
        hidden: [N, E]; weight: [V, E]; bias: [V] or None.
        targets: [N] int64; -100 marks rows that are not counted.
        chunk_size: rows of logits in memory at a time; default 512 on CPU, more on CUDA (`chunks.chunk_rows`).
        compute_dtype: of the operands of the matrix products (default: `chunks.product_dtype`). Softmax, sums and the
            stored gradients are always float32 or float64.

    Returns:
        The sum, 0-d, float32 (float64 for a float64 weight), and the number of rows whose target has the largest
        logit, 0-d int64.

    The backward pass multiplies the stored gradients by the incoming one, so a loss scaler's scale acts on
    float32 numbers. Gradients that are not required, and all under no_grad, are not computed.
    """
    chunk_size = chunk_size or rows_of_a_chunk(len(targets), weight.shape[0], weight)
    compute_dtype = compute_dtype or product_dtype(weight)
    assert hidden.shape[0] == targets.shape[0]
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias)):
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, chunk_size, compute_dtype)
    with torch.no_grad():
        result = _compute(hidden, weight, bias, targets, chunk_size, compute_dtype, (False, False, False))
    return result.loss, result.num_correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, chunk_size, compute_dtype):
        needs = ctx.needs_input_grad[:3]
        result = _compute(hidden, weight, bias, targets, chunk_size, compute_dtype, needs)
        # Saved tensors, not attributes of ctx: autograd frees them as soon as backward has used them.
        ctx.save_for_backward(result.grad_hidden, result.grad_weight, result.grad_bias)
        ctx.mark_non_differentiable(result.num_correct)
        return result.loss, result.num_correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _):
        grads = [None if grad is None else grad * grad_loss for grad in ctx.saved_tensors]
        return *grads, None, None, None


def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk_size: int,
    compute_dtype: torch.dtype,
    needs: tuple[bool, bool, bool],
) -> LossAndGradients:
    """Loss and gradients. Runs without autograd and autocast; dtypes are explicit."""
    num_rows, kept = hidden.shape[0], None
    if not targets.is_cuda:
        # Skip rows that are not counted. Not on a GPU: to find them the host would wait for the device, so there
        # they are computed and weighted by zero.
        kept = (targets != IGNORE).nonzero().squeeze(1)
        if len(kept) == num_rows:
            kept = None
        else:
            hidden, targets = hidden[kept], targets[kept]
    with torch.autocast(weight.device.type, enabled=False):
        result = _fused_or_plain(LossInputs(hidden, weight, bias, targets, chunk_size, compute_dtype, needs))
    if kept is not None and result.grad_hidden is not None:
        grad_hidden = result.grad_hidden.new_zeros(num_rows, hidden.shape[1])
        result = result._replace(grad_hidden=grad_hidden.index_copy_(0, kept, result.grad_hidden))
    return result


def _fused_or_plain(given: LossInputs) -> LossAndGradients:
    if fused_loss.in_use(given.weight.device):
        try:
            return fused_loss.compute_chunks(given)
        except fused_loss.KernelFailed as error:
            fused_loss.give_up(error)
    return _compute_chunks(given)


def _compute_chunks(given: LossInputs) -> LossAndGradients:
    hidden, weight, bias, targets, _, compute_dtype, needs = given
    num_rows, vocab_size = len(targets), weight.shape[0]
    full = torch.promote_types(weight.dtype, torch.float32)  # float32, or float64 for a float64 model
    half = compute_dtype.itemsize < 4
    hidden, operand = hidden.to(compute_dtype), weight.to(compute_dtype)
    bias_full = None if bias is None else bias.to(full)
    grad_hidden = hidden.new_empty(hidden.shape, dtype=full) if needs[0] else None
    grad_weight = weight.new_zeros(weight.shape, dtype=full) if needs[1] else None
    grad_bias = weight.new_zeros(vocab_size, dtype=full) if needs[2] else None
    losses = hidden.new_zeros(num_rows, dtype=full)
    correct = torch.zeros(num_rows, dtype=torch.bool, device=hidden.device)

    size = given.rows_at_a_time()
    buffer = hidden.new_empty((size, vocab_size), dtype=full)
    index = torch.arange(size, device=hidden.device)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        h, target = hidden[rows], targets[rows]
        logits, at = buffer[: len(target)], index[: len(target)]
        counted = target != IGNORE
        target = target.clamp(min=0)
        logits_into(logits, h, operand, bias_full)
        top = logits.amax(1, keepdim=True)
        target_logit = logits[at, target]
        correct[rows] = (target_logit == top.squeeze(1)) & counted
        exp = logits.sub_(top).exp_()
        total = exp.sum(1)
        losses[rows] = (total.log() + top.squeeze(1) - target_logit) * counted
        if not any(needs):
            continue
        # With p = exp / total, the gradient of the logits is p - one_hot = (exp - total * one_hot) / total. The
        # division is applied to the smaller operands of the products, which saves a pass over [chunk, V].
        exp[at, target] -= total
        factor = (counted / total).unsqueeze(1)
        if grad_bias is not None:
            grad_bias += torch.mv(exp.t(), factor.squeeze(1))
        if half:
            scaled = torch.mul(exp, factor * HALF_SCALE, out=torch.empty_like(exp, dtype=compute_dtype))
            if grad_hidden is not None:
                grad_hidden[rows] = product(scaled, operand, full).div_(HALF_SCALE)
            if grad_weight is not None:
                add_product(grad_weight, scaled.t(), h, 1 / HALF_SCALE)
        else:
            if grad_hidden is not None:
                torch.mm(exp, operand, out=grad_hidden[rows]).mul_(factor)
            if grad_weight is not None:
                grad_weight.addmm_(exp.t(), h * factor)
    return LossAndGradients(losses.sum(), correct.sum(), grad_hidden, grad_weight, grad_bias)


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out = hidden @ weight.T + bias, in the dtype of out, which may be wider than that of the operands."""
    product_into(out, hidden, weight.t())
    if bias is not None:
        out.add_(bias)  # on CPU much cheaper than addmm, which first expands the bias to [chunk, V]


def activation_regularization(dropped: Tensor, raw: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The sums for AR and TAR (Merity, McCann, Socher 2017, arXiv 1708.01009).

    Args:
        dropped: [B, T, E], the last layer's output after output dropout; raw: the same before dropout.
        counted: [B, T] bool, the positions that are counted.

    Returns:
        (sum of dropped^2 over counted positions, sum of (raw[t+1] - raw[t])^2 over neighbours that are both
        counted), 0-d, float32 or float64. AR is alpha, TAR beta, times the sum divided by the number of its entries.
    """
    dtype = torch.promote_types(raw.dtype, torch.float32)
    dropped, raw, weight = dropped.to(dtype), raw.to(dtype), counted.to(dtype).unsqueeze(2)
    ar_sum = (dropped.square() * weight).sum()
    pairs = weight[:, 1:] * weight[:, :-1]
    return ar_sum, ((raw[:, 1:] - raw[:, :-1]).square() * pairs).sum()
