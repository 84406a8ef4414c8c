"""Soft targets: splits whose rows have a probability for each class, as `predict` writes them.

The class of such a row is the most probable one, the first of equals. Its probabilities are read in a second pass
(`SoftSplit.probabilities`). predict's .jsonl files hold probabilities and input in nested objects; `flattened` gives them
the columns of its .csv files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ulmfit.data.fingerprint import hash_of
from ulmfit.data.shards import Columns
from ulmfit.data.source import Batches, Source
from ulmfit.data.splits import MARKS, Share, Split
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt

TOLERANCE = 1e-3  # of the sum of a row's probabilities; files hold rounded numbers
CLASS = "class of the probabilities"  # the column that stands for a label column
_PROBABILITIES, _INPUT = "probabilities.", "input."  # columns of nested objects in predict's .jsonl


class SoftSplit(Split):
    """A split whose labels are probabilities. A row without any is unlabelled.

    Args:
        columns: those of the probabilities, which are named like the classes, in the order of the classes.

    Raises:
        UserError: (while it is read) a row's probabilities are no numbers from 0 to 1, or do not sum to 1.
    """

    def __init__(
        self, name: str, parts: list[Source], text_columns: list[str], columns: Sequence[str], **options: Any
    ) -> None:
        super().__init__(name, parts, text_columns, label_column=CLASS, **options)
        self.probability_columns = list(columns)

    @property
    def fingerprint(self) -> str:
        identity = ("soft", super().fingerprint, self.probability_columns)
        return hash_of(identity)

    def shares(self, least_bytes: int, most: int) -> list[Share]:
        """None: messages about a row tell its number in the whole split."""
        return []

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """The probabilities of rows, float32 [n, C], each row with the sum 1. It is another pass over the columns.

        Args:
            rows: row numbers as of `TextBatch.rows`, ascending, of rows that `batches` yields.
        """
        result = np.empty((len(rows), len(self.probability_columns)), dtype=np.float32)
        for part, columns, first, _ in super()._read(self.probability_columns, 10_000):
            values = self._rows(part, columns, first)
            start, stop = np.searchsorted(rows, [first, first + len(values)])
            for place in range(start, stop):
                row = values[rows[place] - first]
                assert row is not None, "the row has probabilities"
                result[place] = row
        return result

    def _read(self, text_columns: list[str], batch_size: int, start: dict[str, Any] | None = None,
              until: tuple[int, int] | None = None) -> Iterator[tuple[Source, Columns, int, dict[str, Any]]]:  # fmt: skip
        """As that of `Split`, with the name of the most probable class as the label."""
        names = self.probability_columns
        for part, columns, first, after in super()._read(text_columns + names, batch_size, start, until):
            rows = self._rows(part, columns, first)
            columns[CLASS] = [None if row is None else names[int(row.argmax())] for row in rows]
            yield part, columns, first, after

    def _rows(self, part: Source, columns: Columns, first: int) -> list[np.ndarray | None]:
        """The probabilities of each row, float64 [C]; None for a row without any."""
        values = zip(*(columns[name] for name in self.probability_columns), strict=True)
        return [_row(row, part, first + place) for place, row in enumerate(values)]


def _row(values: tuple[Any, ...], part: Source, number: int) -> np.ndarray | None:
    if all(_is_missing(value) for value in values) or any(
        isinstance(value, str) and value in MARKS for value in values
    ):
        return None  # a broken line is told as such
    try:
        row = np.array([float(value) for value in values])
        good = bool((row >= 0).all())  # false for nan
    except (TypeError, ValueError):
        good = False
    if not good:
        shown = ", ".join(excerpt(value) for value in values)
        raise UserError(f"row {number} of {part.what} has {shown} for probabilities; write a number from 0 to 1 for each "
                        "class, or leave all empty")  # fmt: skip
    total = row.sum()
    if abs(total - 1) > TOLERANCE:
        raise UserError(f"the probabilities of row {number} of {part.what} sum to {total:g}; make their sum 1")
    return row / total


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def flattened(source: Source) -> Source:
    """A source of predict's .jsonl with the columns of its .csv; any other source is returned as it is."""
    nested = (_PROBABILITIES, _INPUT)
    if not any(column.startswith(_PROBABILITIES) for column in source.columns):
        return source
    home = {column: column for column in source.columns if not column.startswith(nested)}
    for column in source.columns:
        prefix = next((prefix for prefix in nested if column.startswith(prefix)), None)
        if prefix is not None:
            key = column.removeprefix(prefix)
            home[f"{'input' if prefix == _INPUT else 'probability'}_{key}" if key in home else key] = column

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        own = [home.get(column, column) for column in wanted]
        for columns, after in source.read_from(place, own, batch_size):
            yield {column: columns[name] for column, name in zip(wanted, own, strict=True)}, after

    return replace(
        source,
        columns=list(home),
        types={column: source.types[name] for column, name in home.items() if name in source.types},
        _batches=batches,
        _has=lambda column: source.has(home.get(column, column)),
    )
