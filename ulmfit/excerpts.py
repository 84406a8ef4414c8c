"""How messages show values of the user's data: cut to 40 characters, and not at all under --no-samples.

Texts may be private (clinical notes, tickets), and logs are read by others. A wrong column makes any value a whole
document, also a label or the name of a column. So every message takes values through `excerpt` or `listed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ulmfit.errors import one_line, without_keys

LONGEST = 40  # characters of a value
MOST_NAMES = 20  # names in a list
_MOST_WORDS = 3  # more words than this are hardly a name
_HIDDEN = "(hidden by --no-samples)"
_values_shown = True


@contextmanager
def values_shown(shown: bool = True) -> Iterator[None]:
    """Context in which messages of this process show values, or none. At its end the former state returns."""
    global _values_shown
    before, _values_shown = _values_shown, shown
    try:
        yield
    finally:
        _values_shown = before


def hide_values() -> None:
    """Show no values until the end of the surrounding `values_shown`, so that also the report of a failure has none."""
    global _values_shown
    _values_shown = False


def excerpt(value: Any) -> str:
    """A value in quotation marks, cut to `LONGEST` characters."""
    if not _values_shown:
        return _HIDDEN
    if isinstance(value, str):
        return repr(cut(value))
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):  # Python refuses to write an integer of thousands of digits
        return f"(a very large {type(value).__name__})"


def listed(names: Iterable[Any]) -> str:
    """Names of columns or classes, separated by commas. Each is cut, and only the first `MOST_NAMES` are listed.

    Under --no-samples a name that looks like a text is hidden: a table without a header has texts as column names.
    """
    names = [str(name) for name in names]
    shown = [_HIDDEN if not _values_shown and _is_text(name) else one_line(cut(name)) for name in names[:MOST_NAMES]]
    more = [f"... ({len(names):,} in all)"] if len(names) > MOST_NAMES else []
    return ", ".join([*shown, *more])


def listed_values(values: Iterable[Any]) -> str:
    """As `listed`, for values of the data such as classes. Under --no-samples only their number is told."""
    values = list(values)
    return listed(values) if _values_shown else f"{len(values):,} {_HIDDEN}"


def class_name(label: str, index: int, *, shown: bool | None = None) -> str:
    """A class in a message, on a page or on a terminal. Labels are values of the data: where these are hidden, its number.

    Args:
        shown: whether values are shown; by default as messages of this process show them.
    """
    return listed([label]) if (_values_shown if shown is None else shown) else f"no. {index}"


def failure(error: BaseException) -> str:
    """Type and message of an error. Messages of parsers and conversions may quote values: they are hidden too.

    Those of this package, of the operating system, and of torch (RuntimeError) are shown.
    """
    ours = type(error).__module__.partition(".")[0] == "ulmfit"
    if _values_shown or ours or isinstance(error, OSError | MemoryError | RuntimeError):
        return without_keys(f"{type(error).__name__}: {error}")
    return f"{type(error).__name__} {_HIDDEN}"


def are_shown() -> bool:
    """Whether messages of this process show values."""
    return _values_shown


def cut(text: str, longest: int = LONGEST) -> str:
    """A text, or its beginning of `longest` characters in all."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _is_text(name: str) -> bool:
    return len(name) > LONGEST or len(name.split()) > _MOST_WORDS
