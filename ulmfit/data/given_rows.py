"""Rows that Python code gives to a trained model: texts, or a table whose text columns are chosen as for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulmfit.data.corpus import open_rows
from ulmfit.data.in_memory import InMemory
from ulmfit.errors import UserError
from ulmfit.excerpts import listed
from ulmfit.texts import is_missing, is_table, items_of


def given_rows(
    given: Any, *, text_column: str | None = None, trained_columns: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The texts of all rows, and for each row the reason why it has none ("" if it has a text).

    Args:
        given: a text; an iterable of texts, in which missing values (None, NaN) are rows without a text; or a table:
            a data frame, a data set, a dict of columns, an iterable of dicts.
        text_column: of a table, as in `open_corpus`.
        trained_columns: the columns that the model was trained on.

    Raises:
        UserError: it is of another type, or a table without a text column.
    """
    if _is_stream(given):
        given = list(given)
    if not is_table(given):
        items = items_of(given)
        if not any(isinstance(item, Mapping) for item in items):
            return _texts(items)
        given = _as_columns(items)
    if _is_empty(given):
        return [], []
    table = InMemory(given)
    if len(table.sources) > 1:
        raise UserError(f"rows are expected and not the splits {listed(table.sources)}; give one of them")
    texts: list[str] = []
    reasons: list[str] = []
    for batch in open_rows(table, text_column, trained_columns=trained_columns).every_row():
        texts += batch.texts
        reasons += batch.reasons
    return texts, reasons


def _texts(items: list[Any]) -> tuple[list[str], list[str]]:
    texts, reasons = [], []
    for place, item in enumerate(items):
        if not isinstance(item, str) and not is_missing(item):
            raise UserError(f"text {place} is of type {type(item).__name__}; give a str")
        text = item if isinstance(item, str) else ""
        texts.append(text)
        reasons.append("no text" if text is not item else "" if text.strip() else "empty")
    return texts, reasons


def _as_columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Rows as a dict of columns. A row without a column has None there."""
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"row {place} is of type {type(row).__name__} and others are dicts; give rows of one kind")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _is_stream(given: Any) -> bool:
    """Whether it is an IterableDataset of `datasets`, which yields dicts."""
    return type(given).__module__.partition(".")[0] == "datasets" and not hasattr(given, "__len__")


def _is_empty(table: Any) -> bool:
    if not isinstance(table, Mapping):
        return hasattr(table, "__len__") and len(table) == 0
    return bool(table) and all(isinstance(column, Sequence) and len(column) == 0 for column in table.values())
