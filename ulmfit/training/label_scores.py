"""Scores where a document may have several labels, and the thresholds that decide which it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ulmfit.training.class_scores import class_scores

FEW = 30  # documents with a label in validation, below which it has the threshold that all share (RESULTS, "Several labels")
DEFAULT = 0.5


def label_metrics(
    probabilities: np.ndarray, truth: np.ndarray, label_names: Sequence[str], thresholds: Sequence[float] | None
) -> dict[str, Any]:
    """Scores of probabilities [n, C] against truth [n, C] of 0 and 1.

    Returns:
        `loss` (nats, the mean over documents and labels), `accuracy` (documents all of whose labels are right),
        `micro_f1` (of all decisions together), `f1` and `recall` (means over the labels that occur), `labels`,
        `by_class` and `thresholds`. Where nothing is true or predicted, micro_f1 is 1.
    """
    truth = truth > 0.5
    if thresholds is None:
        thresholds = choose_thresholds(probabilities, truth)
    predicted = probabilities >= np.asarray(thresholds)
    clipped = probabilities.clip(1e-12, 1 - 1e-12)
    losses = -np.where(truth, np.log(clipped), np.log1p(-clipped))
    hits, true, found = (truth & predicted).sum(0), truth.sum(0), predicted.sum(0)
    by_class = class_scores(hits.tolist(), true.tolist(), found.tolist(), label_names)
    total = int(true.sum() + found.sum())
    means = {name: [row[name] for row in by_class if row[name] is not None] for name in ("f1", "recall")}
    return {
        "loss": float(losses.mean()),
        "accuracy": float((truth == predicted).all(1).mean()),
        "micro_f1": 2 * int(hits.sum()) / total if total else 1.0,
        **{name: float(np.mean(values)) if values else 1.0 for name, values in means.items()},
        "labels": list(label_names),
        "by_class": by_class,
        "thresholds": [float(value) for value in thresholds],
    }


def choose_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> list[float]:
    """By label, the probability from which it is predicted: the one with the highest F1 on these documents.

    A label with fewer than `FEW` documents has the threshold with the highest micro F1 of all labels together, because
    its own would fit chance.
    """
    common = best_threshold(probabilities.ravel(), truth.ravel())
    return [
        best_threshold(column, wanted) if wanted.sum() >= FEW else common
        for column, wanted in zip(probabilities.T, truth.T, strict=True)
    ]


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the highest F1, in the middle between two probabilities; `DEFAULT` if nothing is true.

    Of equal ones the highest.
    """
    if not truth.any():
        return DEFAULT
    order = np.argsort(-probabilities, kind="stable")
    sorted_p = probabilities[order]
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
    below = np.append(sorted_p[1:], 0.0)  # equal probabilities cannot be told apart
    f1[sorted_p == below] = -1
    best = int(f1.argmax())
    return float((sorted_p[best] + below[best]) / 2)
