"""Sampled softmax: a training loss over some of the words, for large vocabularies and for training on the CPU.

In each step every word is drawn as a candidate independently, with its own probability: frequent words always, rare
words sometimes. The loss of a position is the cross-entropy of its target among the candidates and the target itself.
First the logarithm of the word's probability is subtracted from each logit (Bengio & Senecal 2008; Jean et al. 2015,
arXiv 1412.2007). The loss differs from the full softmax (mostly it is smaller) but leads to the same model: as words
are drawn independently, the expected gradient is zero where the model has the true distribution, for any number of
candidates (Ma & Collins 2018, arXiv 1809.01812). With all words as candidates it equals the full softmax.

As in loss.py, the gradient is computed in the forward pass, in chunks of rows. Neither [rows x vocabulary] nor
[rows x candidates] exists. Before the backward pass, gradient rows exist only for candidates and targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ulmfit.model.chunks import HALF_SCALE, IGNORE, add_product, product, product_dtype, rows_of_a_chunk
from ulmfit.model.loss import logits_into


class Candidates(NamedTuple):
    """The candidates of one step, the same for every row of the global batch.

    Attributes:
        words: [n] int64, without duplicates.
        log_probability: [V], the logarithm of each word's probability to be a candidate, at most 0.
    """

    words: Tensor
    log_probability: Tensor


def inclusion_probabilities(vocab_size: int, number: int) -> Tensor:
    """The probability of each word to be a candidate: [V] float64 in (0, 1]. The sum is `number` (at most V).

    It is proportional to log((id + 2) / (id + 1)), the frequency by Zipf's law if ids are sorted by descending
    frequency. For the most frequent words, where this would exceed 1, it is 1.
    """
    ids = torch.arange(vocab_size, dtype=torch.float64)
    frequency = torch.log((ids + 2) / (ids + 1))
    # Words before index k have probability 1, the others divide the rest. Take the first k with no value above 1.
    rest = frequency.flip(0).cumsum(0).flip(0)
    factor = (number - ids) / rest
    sure = int((factor * frequency <= 1).nonzero()[0]) if number < vocab_size else vocab_size
    probabilities = torch.ones(vocab_size, dtype=torch.float64)
    if sure < vocab_size:
        probabilities[sure:] = frequency[sure:] * factor[sure]
    return probabilities


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    candidates: Candidates,
    *,
    chunk_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the sampled cross-entropy (nats) over the counted rows. For training: all gradients are computed.

    Args:
        hidden: [N, E]; weight: [V, E]; bias: [V].
        targets: [N] int64; -100 marks rows that are not counted.
        candidates: of this step.
        chunk_size, compute_dtype: as in `linear_cross_entropy`.

    Returns:
        The sum, 0-d, float32 (float64 for a float64 weight), and the number of rows whose target has the largest
        corrected logit, 0-d int64. Neither is comparable with that of the full softmax.
    """
    chunk_size = chunk_size or rows_of_a_chunk(len(targets), len(candidates.words), weight)
    compute_dtype = compute_dtype or product_dtype(weight)
    assert hidden.shape[0] == targets.shape[0]
    return _SampledCrossEntropy.apply(hidden, weight, bias, targets, *candidates, chunk_size, compute_dtype)


class _SampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, words, log_probability, chunk_size, compute_dtype):
        with torch.autocast(weight.device.type, enabled=False):
            result = _compute(hidden, weight, bias, targets, words, log_probability, chunk_size, compute_dtype)
        ctx.vocab_size = weight.shape[0]
        ctx.save_for_backward(targets, words, *result.gradients)
        ctx.mark_non_differentiable(result.num_correct)
        return result.loss, result.num_correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _):
        targets, words, grad_hidden, *compact = ctx.saved_tensors
        of_words, of_targets, bias_of_words, bias_of_targets = (grad * grad_loss for grad in compact)
        # The gradient of the tied weight becomes dense only here. It must, because the embedding's part is dense,
        # and the all-reduce and the optimizer need dense gradients.
        targets = targets.clamp(min=0)
        grad_weight = of_words.new_zeros(ctx.vocab_size, of_words.shape[1])
        grad_weight.index_copy_(0, words, of_words).index_add_(0, targets, of_targets)
        grad_bias = bias_of_words.new_zeros(ctx.vocab_size)
        grad_bias.index_copy_(0, words, bias_of_words).index_add_(0, targets, bias_of_targets)
        return grad_hidden * grad_loss, grad_weight, grad_bias, *[None] * 5


class _Result(NamedTuple):
    loss: Tensor
    num_correct: Tensor
    gradients: tuple[Tensor, ...]
    """Gradients of hidden [N, E]; of the candidates' weights [n, E]; of the targets' weights [N, E], zero for targets
    that are candidates; of the candidates' biases [n] and the targets' biases [N]."""


def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    words: Tensor,
    log_probability: Tensor,
    chunk_size: int,
    compute_dtype: torch.dtype,
) -> _Result:
    """Loss and gradients. Runs without autograd and autocast; dtypes are explicit."""
    num_rows, size = len(targets), max(1, min(chunk_size, len(targets)))
    full = torch.promote_types(weight.dtype, torch.float32)  # float32, or float64 for a float64 model
    half = compute_dtype.itemsize < 4
    scale = HALF_SCALE if half else 1.0
    offset = bias.to(full) - log_probability.to(full)  # subtracting the correction from the bias corrects the logits
    operand, offset_of_words = weight[words].to(compute_dtype), offset[words]
    if half and not weight.is_cuda:
        operand, offset_of_words = _padded(operand, offset_of_words)
    column_of = words.new_full((weight.shape[0],), -1)
    column_of[words] = torch.arange(len(words), device=words.device)

    grad_hidden = hidden.new_empty(hidden.shape, dtype=full)
    of_words, bias_of_words = hidden.new_zeros(operand.shape, dtype=full), offset.new_zeros(len(operand))
    of_targets, bias_of_targets = torch.empty_like(grad_hidden), offset.new_empty(num_rows)
    losses, correct = offset.new_zeros(num_rows), torch.zeros_like(targets, dtype=torch.bool)
    buffer = hidden.new_empty((size, len(operand)), dtype=full)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        h, target = hidden[rows].to(compute_dtype), targets[rows]
        counted, target = target != IGNORE, target.clamp(min=0)
        at = torch.arange(len(target), device=target.device)
        logits = buffer[: len(target)]
        logits_into(logits, h, operand, offset_of_words)
        # The target's logit: in a candidate's column, or in an extra column for this row only.
        column, own_weight = column_of[target], weight[target].to(full)
        among, column = column >= 0, column.clamp(min=0)
        own = (h.to(full) * own_weight).sum(1) + offset[target]
        own = torch.where(among, logits[at, column], own)
        top = torch.maximum(logits.amax(1), own)
        correct[rows] = (own == top) & counted
        exp = logits.sub_(top.unsqueeze(1)).exp_()
        extra = (own - top).exp() * ~among
        total = exp.sum(1) + extra
        losses[rows] = (total.log() + top - own) * counted
        # The gradient of the logits is p - one_hot = (exp - total * one_hot) / total, as in loss.py.
        exp[at, column] -= total * among
        factor = (counted / total).unsqueeze(1)
        of_extra = (extra - total * ~among).unsqueeze(1) * factor
        bias_of_words += torch.mv(exp.t(), factor.squeeze(1))
        bias_of_targets[rows] = of_extra.squeeze(1)
        torch.mul(of_extra, h, out=of_targets[rows])
        if half:
            exp = torch.mul(exp, factor * scale, out=torch.empty_like(exp, dtype=compute_dtype))
            grad_hidden[rows] = product(exp, operand, full).div_(scale)
            add_product(of_words, exp.t(), h, 1 / scale)
        else:
            torch.mm(exp, operand, out=grad_hidden[rows]).mul_(factor)
            of_words.addmm_(exp.t(), h * factor)
        grad_hidden[rows] += of_extra * own_weight
    of_words, bias_of_words = of_words[: len(words)], bias_of_words[: len(words)]
    return _Result(losses.sum(), correct.sum(), (grad_hidden, of_words, of_targets, bias_of_words, bias_of_targets))


def _padded(operand: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Add candidates of probability zero up to a multiple of 256.

    oneDNN compiles a product anew for each shape, for longer than a product takes, and no two steps have the same
    number of candidates.
    """
    missing = -len(operand) % 256
    return F.pad(operand, (0, 0, 0, missing)), F.pad(offset, (0, missing), value=-torch.inf)
