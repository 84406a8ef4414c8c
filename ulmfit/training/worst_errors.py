"""The documents that a classifier is most wrong about, found while it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit.distributed.runtime import Runtime
from ulmfit.excerpts import cut
from ulmfit.markdown import as_markdown

MOST = 10
LONGEST = 400  # characters of a text that are shown


@dataclass(frozen=True)
class WrongDocument:
    """A document whose prediction is wrong.

    Attributes:
        index: in the store.
        loss: its cross-entropy (nats; of several labels their mean, as in the evaluations).
        true: its classes, one unless a text may have several labels.
        predicted: likewise.
        probability: that the classifier gave to its prediction; of several labels that all of them are as predicted.
    """

    index: int
    loss: float
    true: tuple[int, ...]
    predicted: tuple[int, ...]
    probability: float


class WorstErrors:
    """Collects the wrong documents with the highest loss from the batches of one scoring.

    Args:
        number: of documents to keep.
    """

    def __init__(self, number: int = MOST) -> None:
        self._number = number
        self._found: list[WrongDocument] = []

    def add(self, indices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Take in a batch of this rank.

        Args:
            indices: in the store, int64 [n], on the CPU.
            labels: true classes, int64 [n], on the device of the logits.
            logits: float [n, C], divided by the temperature if there is one.
        """
        losses = F.cross_entropy(logits.double(), labels, reduction="none")
        probability, predicted = logits.double().softmax(1).max(1)
        wrong = losses.masked_fill(predicted == labels, -torch.inf)
        values, places = wrong.topk(min(self._number, len(wrong)))
        rows = zip(places.tolist(), values.tolist(), labels[places].tolist(), predicted[places].tolist(),
                   probability[places].tolist(), strict=True)  # fmt: skip
        self._keep(
            [
                WrongDocument(int(indices[place]), loss, (label,), (found,), chance)
                for place, loss, label, found, chance in rows
                if loss != -torch.inf
            ]
        )

    def add_sets(self, probabilities: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> None:
        """Take in all documents, each of which may have several labels.

        Args:
            probabilities: float64 [n, C].
            truth: 0 and 1, [n, C].
            thresholds: by label, the probability from which it is predicted.
        """
        truth, predicted = truth > 0.5, probabilities >= np.asarray(thresholds)
        clipped = probabilities.clip(1e-12, 1 - 1e-12)
        losses = -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean(1)
        chances = np.where(predicted, probabilities, 1 - probabilities).prod(1)
        wrong = np.flatnonzero((truth != predicted).any(1))
        self._keep(
            [
                WrongDocument(
                    int(index),
                    float(losses[index]),
                    tuple(np.flatnonzero(truth[index]).tolist()),
                    tuple(np.flatnonzero(predicted[index]).tolist()),
                    float(chances[index]),
                )
                for index in wrong[np.argsort(-losses[wrong], kind="stable")[: self._number]]
            ]
        )

    def merged(self, runtime: Runtime) -> list[WrongDocument]:
        """The worst documents of all ranks, the worst first (a collective)."""
        parts = runtime.gather_objects([self._found])
        self._found = []
        self._keep([document for part in parts for document in part])
        return self._found

    def _keep(self, more: list[WrongDocument]) -> None:
        # The index makes the order the same on any number of ranks.
        ordered = sorted([*self._found, *more], key=lambda document: (-document.loss, document.index))
        self._found = ordered[: self._number]


def as_list(documents: Sequence[WrongDocument], label_names: Sequence[str], text_of: Callable[[int], str]) -> str:
    """The documents as a list in markdown. A table would be too narrow for its words on TensorBoard's page.

    Args:
        text_of: gives the text of a document by its index.
    """

    def named(classes: tuple[int, ...]) -> str:
        return as_markdown(", ".join(label_names[number] for number in classes) or "no label")

    lines = []
    for number, document in enumerate(documents, 1):
        text = as_markdown(cut(" ".join(text_of(document.index).split()), LONGEST))
        lines.append(
            f"{number}. **{named(document.true)}**, predicted **{named(document.predicted)}** with probability "
            f"{document.probability:.3f}, loss {document.loss:.2f}: {text}"
        )
    return "\n".join(lines)
