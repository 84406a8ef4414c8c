"""Splits the text of a table into records, also where quotation marks do not pair.

The parser is Python's csv in its strict mode. Where a quotation mark has no partner, or its partner would swallow lines
that are records themselves, the line is split as if quotation marks had no meaning, and reading goes on with the next
line. So a stray mark costs no row. The search for a partner is bounded, so any file takes linear time.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any

from ulmfit.data import dialect as dialects
from ulmfit.data import shards
from ulmfit.data.dialect import Column, Dialect
from ulmfit.data.encoding import TORN, UTF8

MANY = 16  # lines in one record: then it is enough if most of them look like records, and fields are counted
LONGEST_RECORD = 2**28  # characters that are searched for the end of a field
MOST_LINES_OF_NAMES = 1000  # of the first record
csv.field_size_limit(2**31 - 1)
Cells = list[Any]


@dataclass(frozen=True)
class Form:
    """How one file is written.

    Attributes:
        start: bytes before the first record of data.
        header: the cells of the header, as they stand there; () without one.
        old_ends: lines end with a carriage return alone.
        quotes: a program wrote it that quotes what has to be (`dialect.is_quoted_well`), so that no mark is a stray one.
    """

    encoding: str
    dialect: Dialect
    names: list[str]
    start: int
    header: tuple[str, ...]
    old_ends: bool
    columns: tuple[Column, ...]
    quotes: bool = False


class _Stray(Exception):
    """The lines of one field are too many, or look like records."""


def split_lines(content: bytes, old_ends: bool, *, first: bool) -> list[str]:
    """Lines with their ends."""
    if old_ends:
        content = content.replace(b"\r", b"\n")
    text = content.decode(UTF8, "ulmfit-mark")
    if first:
        text = text.removeprefix("\ufeff")
    lines = text.split("\n")
    rest = lines.pop()
    return [f"{line}\n" for line in lines] + ([rest] if rest else [])


class Records:
    """The records of a file from a place on.

    `waiting` are the decoded lines of the bytes `raw`, which begin at `base`; those before `at` are consumed.
    """

    def __init__(self, file: IO[bytes], form: Form, beat: Callable[[], None] | None, start: int = 0) -> None:
        self._file, self._form, self._beat = file, form, beat
        self._dialect = form.dialect
        self._size = len(form.names)
        self._most = self._size  # fields of a record; 0: not known yet
        self._base = max(0, start)
        self._raw: list[bytes] = []
        self._waiting: list[str] = []
        self._at = 0
        self._record = 0  # the line at which the current record begins
        self._alike = 0  # lines of it that look like records
        self._length = 0  # characters of it
        self._closed = 0  # fields that end in a line after the first ones, at least
        # In a field in quotation marks those of the text are doubled, so a single one before a separator ends it.
        self._closing = f'"{form.dialect.separator}'
        self.irregular = False
        self.after_first = 0

    # Lines

    def _fill(self) -> bool:
        """Read some more lines."""
        chunk = self._file.read(shards.CHUNK)
        if not chunk:
            return False
        if self._beat is not None:
            self._beat()
        end = b"\r" if self._form.old_ends else b"\n"
        if not chunk.endswith(end):
            chunk += self._rest_of_line(end)
        lines = split_lines(chunk, self._form.old_ends, first=self._base == 0 and not self._raw)
        if self._dialect.escaped:
            lines = [dialects.hide_escapes(line) for line in lines]
        self._raw.append(chunk)
        self._waiting += lines
        return True

    def _rest_of_line(self, end: bytes) -> bytes:
        if end == b"\n":
            return self._file.readline()
        parts = []
        while byte := self._file.read(1):
            parts.append(byte)
            if byte == end:
                break
        return b"".join(parts)

    def _drop(self) -> None:
        """Forget the lines that are consumed."""
        if self._at == len(self._waiting):
            self._base += sum(map(len, self._raw))
            self._raw, self._waiting, self._at = [], [], 0
        elif self._at:
            size = self._ends()[self._at - 1]
            self._base += size
            self._raw, self._waiting, self._at = [b"".join(self._raw)[size:]], self._waiting[self._at :], 0

    def _place(self, ends: list[int]) -> int:
        return self._base + (ends[self._at - 1] if self._at else 0)

    def _ends(self) -> list[int]:
        """Where each waiting line ends, in bytes from `base`."""
        end = b"\r" if self._form.old_ends else b"\n"
        *lines, rest = b"".join(self._raw).split(end)
        return list(accumulate([len(line) + 1 for line in lines] + ([len(rest)] if rest else [])))

    def __iter__(self) -> Records:
        return self

    def __next__(self) -> str:
        """The next line, for the csv module.

        Raises:
            _Stray: the record so far is too long, has too many fields, or is many lines that look like records.
        """
        if self._at == len(self._waiting) and not self._fill():
            raise StopIteration
        line = self._waiting[self._at]
        inside = self._at - self._record
        self._length += len(line)
        if inside > MANY and self._most:
            self._closed += line.count(self._closing) - line.count(f'"{self._closing}')
            if self._closed > self._most:
                raise _Stray
        if inside and (self._length > LONGEST_RECORD or inside > MOST_LINES_OF_NAMES and not self._size):
            raise _Stray
        if inside and self._size > 1:
            self._alike += self._looks_like_record(line)
            if inside >= MANY and self._alike >= 0.8 * inside:
                raise _Stray
        self._at += 1
        return line

    # Records

    def skip(self, lines: int) -> None:
        while len(self._waiting) < lines and self._fill():
            pass
        self._at = min(lines, len(self._waiting))

    def skip_preamble(self) -> None:
        while self._at == len(self._waiting) and self._fill():
            self._at, _ = dialects.preamble(self._waiting, named=False)

    def first(self) -> list[str]:
        """The first record, before names and number of the columns are known."""
        self._record = self._at
        row = self._next(self._dialect.reader(self)) if self._dialect.quoted else self._alone()
        self.after_first = self._place(self._ends())
        self._most = len(row or []) + 1  # row names have no name
        return row or []

    def sample(self, *, one_column: bool, most: int = 500) -> list[list[str]]:
        """Other records, as they are split: those of one line, which no stray mark has joined, if there are enough."""
        reader = self._dialect.reader(self)
        rows: list[list[str]] = []
        single: list[list[str]] = []
        while len(rows) < most and (row := self._next(reader)) is not None:
            if row and (one_column or len(row) > 1 or row[0].strip()):
                rows.append(row)
                if self._at - self._record == 1:
                    single.append(row)
        return single if len(single) >= 10 else rows

    def batches(self, batch_size: int) -> Iterator[tuple[list[Cells], int]]:
        """Yield (rows of as many cells as there are columns, place after them)."""
        reader = self._dialect.reader(self)
        while self._at < len(self._waiting) or self._fill():
            ends: list[int] | None = None
            if (rows := self._each_line_a_record()) is not None:
                ends, first = self._ends(), self._at
                for start in range(0, len(rows), batch_size):
                    part = rows[start : start + batch_size]
                    self._at = first + start + len(part)
                    yield part, self._place(ends)
                self._drop()
                continue
            part, length = [], 0
            while self._at < len(self._waiting):
                row = self._next(reader)
                if row is not None and (cells := self._cells(row)) is not None:
                    part.append(cells)
                    length += sum(map(len, row))
                if (len(part) == batch_size or length > shards.SLICE_BYTES) and self._at < len(self._waiting):
                    if ends is None or len(ends) < len(self._waiting):
                        ends = self._ends()
                    yield part, self._place(ends)
                    part, length = [], 0
                    if len(self._raw) > 1:  # a record went on into another chunk, so that not all lines were consumed
                        self._drop()
                        ends = None
            place = self._base + sum(map(len, self._raw))
            self._drop()
            if part:
                yield part, place

    def _each_line_a_record(self) -> list[Cells] | None:
        """The waiting lines as rows if each is a record with the right number of fields; the usual and fast case."""
        lines = self._waiting[self._at :] if self._at else self._waiting
        try:
            rows = self._dialect.rows(lines)
        except csv.Error:
            return None
        if len(rows) != len(lines) or set(map(len, rows)) != {self._size}:
            return None
        return None if self._size > 1 and list(self._form.header) in rows else rows

    def _next(self, reader: Any) -> list[str] | None:
        """The next record as it is split; None at the end."""
        self._record, self._alike, self._length, self._closed = self._at, 0, 0, 0
        if not self._dialect.quoted:
            return self._alone() if self._at < len(self._waiting) or self._fill() else None
        try:
            row = next(reader)
        except StopIteration:
            return None
        except (csv.Error, _Stray):
            row = None
        if row is not None and (self._at - self._record == 1 or self._is_plausible(row)):
            return row
        self._at = self._record
        self.irregular = True
        return self._alone()

    def _alone(self) -> list[str]:
        """The next line as a record without quotation marks."""
        if self._at == len(self._waiting) and not self._fill():
            return []
        self._at += 1
        return self._dialect.raw(self._waiting[self._at - 1])

    def _is_plausible(self, row: Sequence[str]) -> bool:
        """Whether a record of several lines is one, and not several that a stray quotation mark has joined."""
        if self._size < 2:
            return True
        inside = self._at - self._record - 1
        if len(row) > self._size and any(cell.strip() for cell in row[self._size :]):
            return False
        if self._form.quotes and len(row) == self._size:
            return True
        certain = self._dialect.separator == "\t" or any(not column.is_text for column in self._form.columns)
        if self._alike < inside or not certain:
            return True
        # The last line of a field in the first column looks like a record: the rest of the field, and the other columns. But
        # then the first line is none, for it has nothing but the beginning of the field.
        return not self._looks_like_record(self._waiting[self._record])

    def _looks_like_record(self, line: str) -> bool:
        cells = self._dialect.raw(line)
        return len(cells) == self._size and all(
            column.fits(cell) for column, cell in zip(self._form.columns, cells, strict=True)
        )

    def _cells(self, row: list[str]) -> Cells | None:
        """A record as a row; None for a blank line between records of several fields."""
        size = self._size
        if len(row) == size:
            if size > 1 and tuple(row) == self._form.header:  # files were joined with their headers
                self.irregular = True
                return [TORN] * size
            return row
        if size > 1 and (not row or len(row) == 1 and not row[0].strip()):
            return None
        if len(row) > size:
            return [TORN] * size if any(cell.strip() for cell in row[size:]) else row[:size]
        if not row:
            return [""]
        return [*row, *[TORN] * (size - len(row))]
