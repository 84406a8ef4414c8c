"""The value of a label column as the name of a class."""

from __future__ import annotations

import math
from typing import Any

from ulmfit.data.encoding import UNDECODABLE
from ulmfit.data.source import Source
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed_values
from ulmfit.texts import is_utf_8

NO_LABEL = "-1"  # the integer label of rows without one, if no other is negative


def unseen_label(part: Source, split: str, name: str, names: list[str]) -> UserError:
    which = "rows" if split == "whole" else f"{split} rows"
    return UserError(f"label {excerpt(name)} in the {which} of {part.what} was not seen in training, which has "
                     f"{listed_values(names)}; correct it or leave these rows out")  # fmt: skip


def label_name(part: Source, column: str | None, value: Any) -> str | None:
    """A label as text; None if there is none. 1, 1.0 and "1" are the same class."""
    names = part.classes.get(str(column))
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, list | dict):
        raise UserError(f"column {column} of {part.what} holds {type(value).__name__}s, no single labels; "
                        "choose another by --label-column")  # fmt: skip
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = as_label(str(value))
    return None if not text or is_broken(text) else text


def as_label(text: str | None) -> str | None:
    """The name of the class that is written so: without blanks, and 1 for 1.0."""
    text = text and text.strip()
    # pandas writes integers so if a column has missing values
    return text[:-2] if text and text.endswith(".0") and is_integer(text[:-2]) else text


def is_broken(label: Any) -> bool:
    """Whether a label was not readable, or holds half of a surrogate pair, as JSON may."""
    return isinstance(label, str) and (UNDECODABLE in label or not is_utf_8(label))


def is_integer(text: str) -> bool:
    """Whether a label is written as a whole number."""
    return text.removeprefix("-").isdecimal()
