"""Scores where a document may have several labels, and the thresholds that decide which it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.documents import collate
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.classifier import ClassifierNet
from ulmfit.parallel_inference import read_side_by_side, reading_batches
from ulmfit.training.class_scores import class_scores

FEW = 10  # documents with a label in validation, below which it has the threshold that all share
DEFAULT = 0.5


@torch.inference_mode()
def score_labels(
    net: ClassifierNet,
    store: TokenStore,
    runtime: Runtime,
    *,
    label_names: Sequence[str],
    matrix: np.ndarray,
    thresholds: Sequence[float] | None,
    pad_id: int,
    backwards: bool = False,
) -> dict[str, Any]:
    """The scores of `label_metrics` over a labelled store (a collective).

    Args:
        matrix: float32 [sets, labels], the labels of each class number of the store.
        thresholds: by label; None to choose them on this store.
    """
    assert store.labels is not None, "a store with labels"
    logits = _logits(net, store, runtime, pad_id=pad_id, backwards=backwards)
    return label_metrics(_sigmoid(logits), matrix[store.labels], label_names, thresholds)


def _logits(net: ClassifierNet, store: TokenStore, runtime: Runtime, *, pad_id: int, backwards: bool) -> np.ndarray:
    """float64 [n, C] of all documents, on every rank. Each rank reads its share."""
    device, training = runtime.device, net.training
    net.eval()
    own = np.argsort(-store.lengths, kind="stable")[runtime.rank :: runtime.world_size]
    batches = [own[places] for places in reading_batches(store.lengths[own], net, device)]

    def read(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        part = collate(store, indices, np.arange(len(indices)), pad_id=pad_id, backwards=backwards)
        with runtime.accelerator.autocast():
            logits = net(to_device(part.tokens, device), part.lengths).logits
        return part.indices, logits.double()

    whole = torch.zeros(len(store.lengths), net.num_classes, dtype=torch.float64, device=device)
    for indices, logits in read_side_by_side(read, batches, device):
        runtime.progress.now("evaluating")
        whole[to_device(indices, device)] = logits
    net.train(training)
    return runtime.sum(whole).cpu().numpy()  # the other ranks' rows are zero, so the sum is exact


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()


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
