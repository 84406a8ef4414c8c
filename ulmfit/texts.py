"""What may be given to a function that takes texts: a text, or an iterable of texts.

A data frame, a dict or a data set is iterable too, but over the names of its columns. These are refused, or read as
tables by callers that can choose a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ulmfit.errors import UserError
from ulmfit.excerpts import listed


def is_table(given: Any) -> bool:
    """Whether it has named columns: a dict, a data frame, a data set."""
    return isinstance(given, Mapping) or hasattr(given, "columns") or hasattr(given, "column_names")


def is_missing(value: Any) -> bool:
    """Whether it is a missing value: None, NaN, or the NA of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or isinstance(value, float) and value != value


def items_of(given: Any) -> list[Any]:
    """A text, or the items of an iterable that is no table, as a list.

    Raises:
        UserError: it is a table, bytes, or not iterable.
    """
    if isinstance(given, str):
        return [given]
    if is_table(given):
        columns = list(given) if isinstance(given, Mapping) else getattr(given, "columns", None)
        columns = getattr(given, "column_names", None) if columns is None else columns
        columns = () if columns is None else columns  # an IterableDataset may not know them
        raise UserError(
            f"texts are expected and not a {type(given).__name__}; give one of its columns ({listed(columns)}) "
            "as a list"
        )
    scalar = getattr(given, "ndim", 1) == 0  # an array of no dimension says that it can be iterated over
    if isinstance(given, bytes | bytearray | set | frozenset) or scalar or not isinstance(given, Iterable):
        raise UserError(f"texts are expected and not {type(given).__name__}; give a str or a list of them")
    return list(given)


def texts_of(given: Any) -> list[str]:
    """A text or an iterable of texts as a list.

    Raises:
        UserError: as `items_of`, or an item is no str.
    """
    texts = items_of(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {place} is of type {type(text).__name__}; give a str")
    return texts


def is_utf_8(text: str) -> bool:
    """Whether it can be written in UTF-8: without halves of surrogate pairs, as JSON, pickles and file names may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
