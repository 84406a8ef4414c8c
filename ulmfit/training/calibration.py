"""How far a classifier's probabilities can be trusted: the expected calibration error, and temperature scaling.

Both are those of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15  # as in the paper
LOWEST, HIGHEST = 0.05, 20.0  # temperatures; a better one outside would come from very few documents
_HALVINGS = 60  # of the interval: to the last bits of a double


def bin_sums(probabilities: Tensor, labels: Tensor) -> Tensor:
    """As `sums_by_bin`, of the predicted classes. The confidence of a document is the probability of that class.

    Args:
        probabilities: float [n, C].
        labels: the true classes, int64 [n], on the same device.
    """
    confidence, predicted = probabilities.max(1)
    return sums_by_bin(confidence, predicted == labels)


def sums_by_bin(confidence: Tensor, right: Tensor) -> Tensor:
    """What the calibration error is computed from, float64 [3 * BINS]. Sums of several batches or ranks may be added.

    By bin: the number of decisions, the sum of their confidences, the number of right ones. Bin m, from 1, holds
    confidences in ((m - 1) / BINS, m / BINS].

    Args:
        confidence: float [n], the probability of each decision.
        right: bool [n], on the same device.
    """
    confidence = confidence.double()
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    values = torch.stack([torch.ones_like(confidence), confidence, right.double()])
    inside = places[:, None] == torch.arange(BINS, device=places.device)
    return (values @ inside.double()).flatten()  # unlike index_add_ in the same order every time, on a GPU too


def calibration_error(sums: Tensor) -> float:
    """The expected calibration error (ECE) in [0, 1], 0 is best: how far confidence and accuracy are apart.

    ECE = sum over bins of |B| / n * |acc(B) - conf(B)|, with n documents, |B| of them in bin B, the share acc(B) of
    right predictions among these, and their mean confidence conf(B) (equation 3 of the paper), over 15 bins of equal
    width. It is the same as sum |right(B) - confidences(B)| / n, which divides by no empty bin. Of few documents it is
    larger than of many: noise does not cancel. NaN without documents.

    Args:
        sums: of `bin_sums`, float64 [3 * BINS].
    """
    number, confidence, right = sums.view(3, BINS)
    return ((right - confidence).abs().sum() / number.sum()).item()


def bin_table(sums: Tensor) -> list[dict[str, Any]]:
    """The bins of a calibration curve, from low to high confidence, JSON-able.

    Args:
        sums: of `bin_sums`, float64 [3 * BINS].

    Returns:
        For each of BINS bins `number` (documents), `confidence` (their mean) and `accuracy` (the share of right
        predictions); these two are None in an empty bin.
    """
    return [
        {
            "number": int(number),
            "confidence": confidence / number if number else None,
            "accuracy": right / number if number else None,
        }
        for number, confidence, right in zip(*sums.view(3, BINS).tolist(), strict=True)
    ]


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T > 0 for which the cross-entropy of softmax(logits / T) is lowest; T > 1 lowers confidences.

    The cross-entropy is convex in b = 1 / T, and its derivative is the mean of E[z] - z_y, with E the mean of a
    document's logits z under softmax(b * z) and y its class. So its zero is found by bisection of log b. Predictions
    stay the same, because the order of a document's logits does.

    Args:
        logits: float64 [n, C].
        labels: the true classes, int64 [n].

    Returns:
        The temperature between LOWEST and HIGHEST; None if every document is predicted right (or there is none): then
        lower temperatures are better without end, and these documents tell nothing about wrong predictions.
    """
    assert logits.dtype == torch.float64
    true = logits.gather(1, labels[:, None]).squeeze(1)
    if bool((true >= logits.amax(1)).all()):
        return None

    def falls(temperature: float) -> bool:
        """Whether the cross-entropy falls where the temperature gets lower."""
        expected = ((logits / temperature).softmax(1) * logits).sum(1)
        return (expected - true).mean().item() < 0

    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if falls(math.exp(middle)):
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def calibration(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The temperature for these documents and what it does to them. Arguments as of `fit_temperature`.

    Returns:
        temperature: 1 if `fit_temperature` finds none.
        loss: the mean cross-entropy (nats) with it.
        ece, ece_before: the calibration error with and without it.
    """
    found = fit_temperature(logits, labels)
    temperature = 1.0 if found is None else found
    return {
        "temperature": temperature,
        "loss": F.cross_entropy(logits / temperature, labels).item(),
        "ece": calibration_error(bin_sums((logits / temperature).softmax(1), labels)),
        "ece_before": calibration_error(bin_sums(logits.softmax(1), labels)),
    }
