"""Finds out how a table of text (.csv, .tsv) is written: separator, quotation marks, names of the columns.

The decision depends on the first `SAMPLE` bytes of a file alone, so it is the same wherever reading starts.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median

from ulmfit.errors import UserError

SAMPLE = 2**20  # bytes
_RECORDS = 500  # records of the sample that are compared
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
NO_SEPARATOR = "\ufdd4"  # of a table of one column; does not occur in texts
_ALIASES = {"\\t": "\t", "pipe": "|", "none": NO_SEPARATOR, "colon": ":", "space": " "}
_SEP_LINE = re.compile(r'"?sep=(.)"?[;,\t]*\r?\n?', re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?(\d[\d.,]*|\.\d+)([eE][-+]?\d+)?%?\s*")
_DATE = re.compile(r"\s*\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([ T]\d{1,2}:\d\d.*)?\s*")
_MOST_VALUES = 50  # of a column of classes
_LONGEST_VALUE = 40  # characters
_MOST_TITLES = 6  # lines above a table
# Stand for \" and \\ while a record is split.
QUOTE, BACKSLASH = "\ufdd2", "\ufdd3"
_ESCAPES = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Attributes:
        separator: one character; `NO_SEPARATOR` for a table of one column.
        quoted: a field that begins with a quotation mark ends with one, and may contain separators and line ends.
        escaped: within a field \\" is a quotation mark and \\\\ a backslash.
        spaced: blanks follow the separators.
        header: the first record has the names of the columns.
        row_names: the records have one field before those that are named (write.table of R).
    """

    separator: str
    quoted: bool = True
    escaped: bool = False
    spaced: bool = False
    header: bool = True
    row_names: bool = False

    def rows(self, lines: Sequence[str]) -> list[list[str]]:
        """Split lines that are one record each.

        Raises:
            csv.Error: quotation marks do not pair.
        """
        if not self.quoted:
            return [self.raw(line) for line in lines]
        return list(self.reader(lines))

    def reader(self, lines):
        """A csv.reader of lines (with `QUOTE` and `BACKSLASH`, see `hide_escapes`)."""
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=self.spaced, strict=True)

    def raw(self, line: str) -> list[str]:
        """Split a line in which quotation marks have no meaning. A blank line has no fields, as in csv."""
        line = line.rstrip("\r\n")
        return line.split(self.separator) if line else []


@dataclass(frozen=True)
class Column:
    """What the values of a column in the sample look like.

    Attributes:
        values: of a column of classes, those in the sample; else None.
        is_number: whether all are numbers or dates.
        length: their median length.
    """

    values: frozenset[str] | None
    is_number: bool
    length: float

    @property
    def is_text(self) -> bool:
        """Whether any value would do, so that the column cannot tell a row from other lines."""
        return self.values is None and not self.is_number

    def fits(self, cell: str) -> bool:
        """Whether a cell may be one of its values; True if the column is text."""
        cell = cell.strip().strip('"')
        if self.values is not None:
            return cell in self.values
        return not self.is_number or not cell or _is_number(cell)


def separator_of(option: str) -> str:
    """The separator that --separator names.

    Raises:
        UserError: it is neither a name nor one character.
    """
    found = SEPARATORS.get(option, _ALIASES.get(option, option))
    if len(found) != 1 or found in '"\r\n':
        raise UserError(f"--separator {option[:40]!r} is no separator; give one character, or one of "
                        f"{', '.join(SEPARATORS)}, space and none")  # fmt: skip
    return found


def character(name: str) -> str | None:
    """The separator with a name, such as comma or \\t; None if there is none."""
    found = (SEPARATORS | _ALIASES).get(name)
    return None if found == NO_SEPARATOR else found


def name_of(separator: str) -> str:
    """The name of a separator in messages."""
    names = {char: name for name, char in (_ALIASES | SEPARATORS).items()}
    return names.get(separator, repr(separator))


def hide_escapes(text: str) -> str:
    """Replace \\" and \\\\ by characters that do not end a field."""
    return _ESCAPES.sub(lambda match: QUOTE if match[1] == '"' else BACKSLASH, text) if "\\" in text else text


def show_escapes(cell: str) -> str:
    """The characters that `hide_escapes` has replaced, without their backslash."""
    return cell.replace(QUOTE, '"').replace(BACKSLASH, "\\")


def preamble(lines: Sequence[str], *, named: bool) -> tuple[int, str | None]:
    """(number of lines before the first record, separator of a `sep=` line among them).

    If the first record has the names of the columns (`named`), empty records before it are blank lines too: spreadsheets
    write an empty row as separators.
    """
    empty = " " + "".join(SEPARATORS.values()) if named else ""
    number, separator = 0, None
    while number < len(lines):
        match = _SEP_LINE.fullmatch(lines[number])
        if match and separator is None:
            separator = match[1]
        elif lines[number].strip().strip(empty or None):
            break
        number += 1
    return number, separator


def find_dialect(lines: Sequence[str], kind: str, separator: str | None, header: bool | None) -> Dialect:
    """The dialect of a table from its first lines, without the preamble.

    Args:
        kind: "csv" or "tsv"; decides between separators that fit equally well.
        separator, header: as given by the user; None: to be found.
    """
    default = "\t" if kind == "tsv" else ","
    if separator is not None:
        _, _, dialect = _best_of(lines, separator, header is False)
    else:
        found = []
        for char in SEPARATORS.values():
            share, size, dialect = _best_of(lines, char, header is False)
            if size > 1:
                found.append((share >= 0.5, round(share, 1), char == default, size, dialect))
        well = [entry for entry in found if entry[0]]
        # With a header of several names the table has several columns, however many of its rows are torn.
        if not well and header is not False:
            well = [entry for entry in found if entry[2]]
        dialect = max(well, key=lambda entry: entry[:4])[-1] if well else Dialect(NO_SEPARATOR)
    if dialect.separator == NO_SEPARATOR:
        dialect = _one_column(lines, dialect)
    return replace(dialect, header=header if header is not None else True)


def table_below(lines: Sequence[str], kind: str) -> tuple[int, int, Dialect] | None:
    """(lines above it, number of columns, dialect) of a table that begins below a title or remarks; None if there is none.

    For lines that look like one column. A table has names, nearly all of its records have as many fields, and in a column
    are classes, numbers or dates.
    """
    lines = lines[:_RECORDS]
    for start in range(1, min(_MOST_TITLES + 1, len(lines))):
        dialect = find_dialect(lines[start:], kind, None, None) if lines[start].strip() else Dialect(NO_SEPARATOR)
        rows = [row for row in _parsed(lines[start:], dialect)[0] if row]
        names, body = [cell.strip() for cell in rows[0]] if rows else [], rows[1:]
        size = len(names)
        fit = [row for row in body if len(row) == size]
        if dialect.separator == NO_SEPARATOR or len(body) < 4 or len(fit) < 0.95 * len(body) or "" in names:
            continue
        columns = columns_of(fit, size)
        told = any(not column.is_text for column in columns) and has_header(names, columns)
        if told and len(set(names)) == size and max(map(len, names)) <= _LONGEST_VALUE:
            return start, size, dialect
    return None


def _one_column(lines: Sequence[str], dialect: Dialect) -> Dialect:
    """Quotation marks count if any line is quoted as a whole, or no line contradicts it."""
    _, wrong = _parsed(lines, dialect)
    whole = any(len(line) > 1 and line[0] == line[-1] == '"' for line in (line.strip() for line in lines[:_RECORDS]))
    return replace(dialect, quoted=whole or not wrong)


def _best_of(lines: Sequence[str], separator: str, headless: bool) -> tuple[float, int, Dialect]:
    """(share of the sample's records with the right number of fields, that number, dialect) for a separator."""
    plain = Dialect(separator)
    share, size, wrong = _score(lines, plain, headless)
    best = share, size, plain
    for other in (replace(plain, spaced=True), replace(plain, escaped=True), replace(plain, escaped=True, spaced=True)):
        if best[0] < 1:
            share, size, others = _score(lines, other, headless)
            if share > best[0] and size > 1:
                best, wrong = (share, size, other), others
    if separator == "\t" and not best[2].escaped:
        # Most programs that write tabs do not quote: quotation marks are those of the texts. Where a writer quotes,
        # no mark is unpaired, and some fields contain a separator, a line end or a doubled mark.
        literal = Dialect(separator, quoted=False)
        share, size, _ = _score(lines, literal, headless)
        if (
            size > 1
            and share >= best[0]
            and (wrong or _has_inner_marks(lines, separator))
            and not _is_quoted(lines, plain)
        ):
            best = share, size, literal
    return best


def _has_inner_marks(lines: Sequence[str], separator: str) -> bool:
    return any(
        '"' in cell[1:-1].replace('""', "") for line in lines[:_RECORDS] for cell in line.strip("\r\n").split(separator)
    )


def _is_quoted(lines: Sequence[str], dialect: Dialect) -> bool:
    """Whether fields have what only a program that quotes can write: a separator, a doubled mark, all fields quoted."""
    rows, wrong = _parsed(lines, dialect)
    if any(dialect.separator in cell for row in rows for cell in row) and len(rows) > 10 * wrong:
        return True
    filled = [line.strip("\r\n") for line in lines[:_RECORDS] if line.strip()]
    whole = sum(line.startswith('"') and line.endswith('"') for line in filled)
    return whole > 0.9 * len(filled)


def is_quoted_well(lines: Sequence[str], dialect: Dialect, *, whole: bool) -> bool:
    """Whether quotation marks are those of a program that quotes: in the sample all pair, and in some line a quoted field has a
    separator in it, which a stray mark would not protect.

    Args:
        whole: the lines are all of the file, so that a field which they do not end is one of a stray mark.
    """
    if not dialect.quoted or dialect.escaped or dialect.separator == NO_SEPARATOR:
        return False
    try:
        for _ in dialect.reader(lines[: 20 * _RECORDS]):
            pass
    except csv.Error as error:
        if "unexpected end of data" not in str(error) or whole and len(lines) <= 20 * _RECORDS:
            return False
    for line in lines[:_RECORDS]:
        with suppress(csv.Error):
            if '"' in line and any(dialect.separator in cell for row in dialect.rows([line]) for cell in row):
                return True
    return False


def _score(lines: Sequence[str], dialect: Dialect, headless: bool) -> tuple[float, int, int]:
    rows, wrong = _parsed(lines, dialect)
    rows = [row for row in rows if row]
    if not rows:
        return 0.0, 1, wrong
    size = Counter(map(len, rows)).most_common(1)[0][0] if headless else len(rows[0])
    body = rows if headless or len(rows) == 1 else rows[1:]
    fits = sum(len(row) == size or len(row) > size and not any(cell.strip() for cell in row[size:]) for row in body)
    if has_row_names(rows[0], body):
        fits, size = sum(len(row) == size + 1 for row in body), size + 1
    return fits / (len(body) + wrong), size, wrong


def has_row_names(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether records have one field before those that are named, as write.table of R writes: 1, 2, 3 ..."""
    firsts = [row[0].strip() for row in rows if len(row) == len(names) + 1]
    counted = firsts == [str(number) for number in range(1, len(firsts) + 1)]
    return (
        len(firsts) >= 3
        and len(firsts) >= 0.9 * len(rows)
        and (counted or len(names) > 1 and len({*firsts}) == len(firsts))
    )


def _parsed(lines: Sequence[str], dialect: Dialect) -> tuple[list[list[str]], int]:
    """(the sample's first records, number of places where quotation marks do not pair)."""
    lines = lines[: 20 * _RECORDS]
    if dialect.escaped:
        lines = [hide_escapes(line) for line in lines]
    if not dialect.quoted:
        return dialect.rows(lines[:_RECORDS]), 0
    rows: list[list[str]] = []
    wrong = 0
    reader = dialect.reader(lines)
    while len(rows) + wrong < _RECORDS:
        try:
            rows.append(next(reader))
        except StopIteration:
            break
        except csv.Error as error:
            wrong += "unexpected end of data" not in str(error) or len(lines) < 20 * _RECORDS
    return rows, wrong


def columns_of(rows: Sequence[Sequence[str]], size: int) -> list[Column]:
    """What the columns of records with `size` fields look like."""
    return [_column([row[place].strip() for row in rows]) for place in range(size)]


def _column(cells: list[str]) -> Column:
    filled = [cell for cell in cells if cell]
    counts = Counter(filled)
    common = {value: number for value, number in counts.items() if number > 1 and len(value) <= _LONGEST_VALUE}
    is_class = 0 < len(counts) <= _MOST_VALUES and sum(common.values()) >= 0.9 * len(filled) >= 3.6
    return Column(
        frozenset([*common, *([""] if len(filled) < len(cells) else [])]) if is_class else None,
        bool(filled) and all(map(_is_number, filled)),
        median(map(len, filled)) if filled else 0.0,
    )


def has_header(first: Sequence[str], columns: Sequence[Column]) -> bool:
    """Whether the first record names the columns: unless each of its cells looks like a value of its column.

    At least one column must be able to tell, that is, be of numbers, dates or classes.
    """
    if all(column.is_text for column in columns):
        return True
    for cell, column in zip(first, columns, strict=True):
        cell = cell.strip()
        if column.is_text and column.length >= 20:
            if len(cell) < 20 and " " not in cell or _is_number(cell):
                return True
        elif column.is_number and (not _is_number(cell)) or column.values is not None and not (
            column.fits(cell) or column.is_number and _is_number(cell)):  # fmt: skip
            return True
    return False


def _is_number(cell: str) -> bool:
    return len(cell) <= _LONGEST_VALUE and bool(_NUMBER.fullmatch(cell) or _DATE.fullmatch(cell))
