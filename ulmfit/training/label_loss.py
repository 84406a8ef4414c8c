"""The classifier's loss: the one interface between a step and what a document's labels are.

`mean` is what is trained on, `sums` what is logged. Both see the logits of the whole global batch, so the loss does not
depend on the number of processes or micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit.model.soft_loss import soft_cross_entropy


class LabelLoss(Protocol):
    """A loss of logits [n, C]. `labels` are class numbers, int64 [n]; `targets` are numbers by class, [n, C], or None."""

    def mean(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """The loss of the batch, 0-d, with gradient."""
        ...

    def sums(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """float64 [2]: the summed loss of the documents, without weights and smoothing, and how many are right."""
        ...


@dataclass
class OneLabel:
    """Softmax cross-entropy (nats) of one class a document, or of class probabilities.

    Attributes:
        weight: of the classes, [C]; None for equal ones.
        smoothing: label smoothing, for classes only.
    """

    weight: Tensor | None = None
    smoothing: float = 0.0

    def mean(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            return F.cross_entropy(logits, labels, weight=self.weight, label_smoothing=self.smoothing)
        return soft_cross_entropy(logits, targets.to(logits.dtype), weight=self.weight)

    def sums(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            loss_sum = F.cross_entropy(logits, labels, reduction="sum")
        else:
            loss_sum = soft_cross_entropy(logits, targets.to(logits.dtype), reduction="sum")
        return torch.stack([loss_sum.double(), (logits.argmax(1) == labels).sum().double()])


@dataclass
class SeveralLabels:
    """Binary cross-entropy (nats) of each label. A document is right if all its labels are, at 0.5.

    What is trained on is the sum over labels: a document's loss is then as large as with one label, and so are its parts
    beside AR and TAR and under clipping, however many labels there are. What is logged is their mean.

    Attributes:
        weight: [2, C], of documents without and with a label; None for equal ones.
        smoothing: moves the targets 0 and 1 towards a half.
    """

    weight: Tensor | None = None
    smoothing: float = 0.0

    def mean(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        targets = targets.to(logits.dtype)
        weight = None if self.weight is None else torch.lerp(self.weight[0], self.weight[1], targets)
        smooth = targets * (1 - self.smoothing) + self.smoothing / 2 if self.smoothing else targets
        loss_sum = F.binary_cross_entropy_with_logits(logits, smooth, weight=weight, reduction="sum")
        return loss_sum / len(logits)

    def sums(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        targets = targets.to(logits.dtype)
        loss_sum = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / logits.shape[1]
        right = ((logits > 0) == (targets > 0.5)).all(1).sum()
        return torch.stack([loss_sum.double(), right.double()])


def balanced_weights(counts: np.ndarray, num_documents: int, *, several: bool) -> np.ndarray:
    """The weights of --class-weights balanced: [C] for one label, [2, C] for several. Their mean over documents is 1.

    Args:
        counts: documents of each class, or their summed probabilities.
    """
    if not several:
        return num_documents / (len(counts) * np.maximum(counts, 1))
    return num_documents / (2 * np.maximum([num_documents - counts, counts], 1))
