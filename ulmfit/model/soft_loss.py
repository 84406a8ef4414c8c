"""The classifier's loss where a document has a probability for each class instead of a label."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy (nats) of class probabilities as targets. One-hot rows give the bits of `F.cross_entropy`.

    Args:
        logits, targets: [n, C]; the targets of a row sum to 1.
        weight: [C]; a row counts by the mean weight of its classes.
        reduction: "mean" divides by the sum of the rows' weights.
    """
    if weight is not None:
        targets = targets * weight
    total = _total(-(targets * logits.log_softmax(1)).sum(1))
    return total if reduction == "sum" else total / _total(targets.sum(1))


def _total(values: Tensor) -> Tensor:
    """The sum of [n], in the order in which `F.cross_entropy` sums its rows."""
    return F.nll_loss(-values.unsqueeze(1), values.new_zeros(len(values), dtype=torch.int64), reduction="sum")
