"""Which tokens of a document speak for a class: gradient times input (Shrikumar et al. 2016, arXiv 1605.01713).

The gradient is the mean of those at four scalings of all embeddings, between a half and one. A classifier that is sure
is flat at the embeddings themselves, so its gradient there tells little: with the mean, the five strongest words are
twice as often those whose removal changes the prediction most (benchmarks/explanations.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.ngrams import NGramNet

SCALES = (0.5625, 0.6875, 0.8125, 0.9375)
#: Tokens that gradients pass through at a time, which bounds the memory. Those before are told without what comes after.
LONGEST = 4_000


def token_contributions(
    net: ClassifierNet | NGramNet,
    ids: np.ndarray,
    index: int,
    *,
    backwards: bool = False,
    temperature: float | None = None,
    scales: tuple[float, ...] | None = None,
) -> np.ndarray:
    """What each token adds to the log-odds of a class, float64 [tokens], in nats.

    The log-odds are log(p / (1 - p)) of the class's probability p. The contribution of a token is the scalar product
    of its embedding and the gradient of the log-odds by it: to first order, what they would lose with the embedding
    set to zero. Unlike in training the gradient passes through the whole document. A net of n-grams has no embeddings;
    what it tells is by its weights.

    Args:
        ids: of one document, int [tokens], as encoded.
        index: of the class.
        backwards: the net reads from the end.
        temperature: divides the logits.
        scales: factors of the embeddings at which the gradient is taken; SCALES by default.
    """
    assert len(ids) > 0
    if isinstance(net, NGramNet):
        tokens = torch.from_numpy(ids.astype(np.int64)).to(net.weight.device)
        return net.contributions(tokens, index, temperature or 1.0).cpu().numpy()
    scales = scales or SCALES
    whole = copy.copy(net)  # shares the weights
    whole.bptt = max(net.bptt, min(len(ids), LONGEST))
    weight = net.encoder.embedding.weight
    row = torch.from_numpy((ids[::-1] if backwards else ids).astype(np.int64)).to(weight.device)
    factors = torch.tensor(scales, dtype=weight.dtype, device=weight.device)[:, None, None]
    with torch.enable_grad(), _scaled(net.encoder.embedding, factors) as embedded:
        logits = whole(row.expand(len(scales), -1), [len(ids)] * len(scales)).logits
        logits = logits.double() / (temperature or 1.0)
        odds = logits[:, index]
        if not net.multi_label and net.num_classes > 1:
            others = torch.cat([logits[:, :index], logits[:, index + 1 :]], 1)
            odds = odds - others.logsumexp(1)
        gradients = torch.autograd.grad(odds.sum(), embedded, allow_unused=True)
    found = [
        torch.zeros_like(x[0, :, 0]) if gradient is None else (gradient * (x / factors)).sum(-1).mean(0)
        for x, gradient in zip(embedded, gradients, strict=True)
    ]
    result = torch.cat(found).detach().double().cpu().numpy()
    return result[::-1].copy() if backwards else result


@contextmanager
def _scaled(embedding: nn.Embedding, factors: Tensor) -> Iterator[list[Tensor]]:
    """Context in which a look-up of embeddings gives them times `factors`, [rows, 1, 1]. It yields the list of what was
    given, each a leaf of the graph."""
    found: list[Tensor] = []

    def scale(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found.append((output.detach() * factors).requires_grad_())
        return found[-1]

    handle = embedding.register_forward_hook(scale)
    try:
        yield found
    finally:
        handle.remove()
