"""What a classifier says of a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predicted class of a text. It unpacks as `label, index, probabilities` and compares by these three.

    A row without a text (None, NaN, an empty or blank string) has a prediction too, so that predictions keep the places
    of their rows: the label is empty, the index -1, and the probabilities are NaN.

    Attributes:
        label: name of the most probable class; "" without a text. Where a text may have several labels, the most
            probable of those that it has; "" if it has none.
        index: index of this class; -1 if there is none.
        probabilities: float32 [C], in the order of the classes.
        reason: why there is no label: "no text", "empty" or "undecodable"; else "".
        labels: names of all labels that the text has, in the order of the classes. With one label a text, that one.
        indices: their indices.
    """

    label: str
    index: int
    probabilities: np.ndarray
    reason: str = ""
    labels: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.indices and self.index >= 0:
            object.__setattr__(self, "labels", (self.label,))
            object.__setattr__(self, "indices", (self.index,))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.index, self.probabilities))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        mine, theirs = ((one.label, one.index, one.indices) for one in (self, other))
        return mine == theirs and np.array_equal(self.probabilities, other.probabilities, equal_nan=True)

    def __hash__(self) -> int:
        known = tuple(self.probabilities.tolist()) if self.index >= 0 else ()  # NaNs have different hashes
        return hash((self.label, self.index, known))
