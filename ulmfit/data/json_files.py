"""Rows of JSON: one object a line (.jsonl), or one array of objects (.json).

A line or an element that is no object is a torn row. Keys inside objects are named with dots, as `review.text`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from ulmfit.data import shards
from ulmfit.data.encoding import TORN, UTF8, open_bytes
from ulmfit.errors import UserError

_BLANK = " \t\r\n\ufeff"
_ROWS = ("data", "rows", "records", "examples", "items", "documents", "results")  # keys that usually hold the rows
Row = dict[str, Any]


def parse(line: str) -> Row | None:
    """The object in a line; None if there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def cell(row: Row | None, name: str) -> Any:
    """The value of a column in a row; None if the row lacks it."""
    if row is None:
        return TORN
    if name in row:
        return row[name]
    for key, value in row.items():
        if isinstance(value, dict) and name.startswith(f"{key}."):
            return cell(value, name.removeprefix(f"{key}."))
    return None


def names(rows: list[Row | None]) -> dict[str, str]:
    """The columns of rows with the types of their values: "string" unless all have another one."""
    found: dict[str, set[str]] = {}

    def add(prefix: str, row: Row, depth: int) -> None:
        for key, value in row.items():
            if isinstance(value, dict) and value and depth < 5:
                add(f"{prefix}{key}.", value, depth + 1)
            else:
                types = found.setdefault(prefix + key, set())
                if value is not None and value == value:
                    types.add("string" if isinstance(value, str) else type(value).__name__)

    for row in rows:
        add("", row or {}, 0)
    return {name: types.pop() if len(types) == 1 else "string" for name, types in found.items()}


def is_lines(path: str, encoding: str) -> bool:
    """Whether a file has one object a line, and is not one JSON value as a whole."""
    with open_bytes(path, encoding) as file:
        sign = _first_sign(file)
        if sign != b"{":
            return sign != b"["
        lines = filter(None, (line.strip(_BLANK.encode()) for line in file))
        first = sign + next(lines, b"")
        if parse(first.decode(UTF8, "replace")) is not None:
            return not _one_object(first) or next(lines, None) is not None
        return any(parse(line.decode(UTF8, "replace")) is not None for line in islice(lines, 20))


def _first_sign(file: Any) -> bytes:
    """The first byte that is no blank; reading goes on after it."""
    while (sign := file.read(1)) and sign in _BLANK.encode():
        pass
    return sign


def _one_object(line: bytes) -> bool:
    """Whether an object that stands alone in its file holds rows, as pandas and APIs write them."""
    return _table(json.loads(line.decode(UTF8, "replace"))) is not None


def read_array(
    path: str, encoding: str, batch_size: int, place: int | None, beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[list[Row | None], int]]:
    """Yield the rows of a .json file that is one value; a place is the number of rows before it.

    An array of objects, texts or lists is read piece by piece. Of an object that contains the rows (under a key such as "data", or as
    columns, as pandas writes it) all is in memory.

    Raises:
        UserError: it is no JSON, or holds no rows.
    """
    number = 0
    part: list[Row | None] = []
    of_lists = False
    for value in _elements(path, encoding, beat):
        of_lists = of_lists or not number and isinstance(value, list)
        number += 1
        if number <= (place or 0):
            continue
        part.append(_row(value, of_lists))
        if len(part) == batch_size:
            yield part, number
            part = []
    if part:
        yield part, number


def _row(value: Any, of_lists: bool) -> Row | None:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and of_lists:  # rows without names
        return {str(place): cell for place, cell in enumerate(value)}
    return value if isinstance(value, dict) else None


def _elements(path: str, encoding: str, beat: Callable[[], None]) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with open_bytes(path, encoding) as file:
        reader = _Text(file, beat)
        if reader.peek() != "[":
            yield from _rows_of(path, reader.rest())
            return
        reader.take()
        number = 0
        while True:
            sign = reader.peek()
            if sign == ",":
                reader.take()
                sign = reader.peek()
            if sign in ("]", ""):
                if sign == "":
                    raise _wrong(path, f"it ends after row {number} without ]")
                reader.take()
                if reader.peek():
                    raise _wrong(path, "it goes on after its ]")
                return
            value = reader.value(decoder)
            if value is reader:
                raise _wrong(path, f"row {number} is no JSON")
            yield value
            number += 1


class _Text:
    """The text of a file, read as far as it is needed."""

    def __init__(self, file: Any, beat: Callable[[], None]) -> None:
        self._file, self._beat = file, beat
        self._text, self._at, self._left = "", 0, b""

    def _more(self, size: int) -> bool:
        block = self._file.read(size)
        if not block and not self._left:
            return False
        self._beat()
        block, ended = self._left + block, not block
        # A character of several bytes may be cut at the end.
        cut = 0 if ended else next((n for n in range(1, 5) if len(block) >= n and block[-n] >= 0xC0), 0)
        self._left = block[len(block) - cut :]
        self._text = self._text[self._at :] + block[: len(block) - cut].decode(UTF8, "ulmfit-mark")
        self._at = 0
        return True

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(shards.CHUNK):
                return ""

    def take(self) -> None:
        self._at += 1

    def rest(self) -> str:
        while self._more(shards.CHUNK):
            pass
        return self._text[self._at :]

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The next value; this object itself if there is none."""
        size = shards.CHUNK
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more(size):  # a number may go on
                    self._at = end
                    return value
            except RecursionError:
                return self
            except ValueError:
                if not self._more(size):
                    return self
                size = max(size, len(self._text))  # twice as much each time, so that the tries take linear time


def _wrong(path: str, what: str) -> UserError:
    return UserError(f"{path} is no whole JSON array ({what}); write it again, best as JSON lines (.jsonl)")


def _rows_of(path: str, text: str) -> list[Any]:
    try:
        table = _table(json.loads(text))
    except (ValueError, RecursionError):
        table = None
    if table is None:
        raise UserError(
            f"{path} holds neither an array of objects nor one object a line; write it as JSON lines (.jsonl)"
        )
    return table


def _table(value: Any) -> list[Any] | None:
    """The rows in one value, as pandas and APIs write them; None if it does not look like rows."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    lists = {key: part for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)}
    named = next((key for key in _ROWS if key in lists), None)
    if named is not None or len(lists) == 1:
        return lists[named] if named is not None else next(iter(lists.values()))
    columns, data = value.get("columns"), value.get("data")  # pandas: orient="split"
    if isinstance(columns, list) and isinstance(data, list):
        return [dict(zip(map(str, columns), row, strict=False)) if isinstance(row, list) else row for row in data]
    if not value or not all(isinstance(part, type(next(iter(value.values())))) for part in value.values()):
        return None
    if all(isinstance(part, dict) and part for part in value.values()):
        keys = [list(part) for part in value.values()]
        if any(isinstance(inner, dict) for part in value.values() for inner in part.values()):
            return None
        if all(other == keys[0] for other in keys):
            first = next(iter(value.values()))
            if all(key.isdecimal() for key in keys[0]) or len(value) < len(first):  # columns of {index: value}
                return [{name: part[key] for name, part in value.items()} for key in keys[0]]
            return list(value.values())  # orient="index"
        return None
    if all(isinstance(part, list) for part in value.values()):
        sizes = {len(part) for part in value.values()}
        if len(sizes) == 1 and sizes != {0}:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return None
