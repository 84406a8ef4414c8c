"""Reads tables of text (.csv, .tsv) from any place: finds out how a file is written, and yields its rows.

A record with too many fields is torn (`TORN`); with too few, its missing cells are. Every record has its row: row numbers
are those of the file, counted from 0 without the header. How lines become records is in `records`.

A place is the number of bytes before a record, in the decompressed file as UTF-8.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

from ulmfit.data import dialect as dialects
from ulmfit.data import shards
from ulmfit.data.dialect import BACKSLASH, QUOTE, Dialect
from ulmfit.data.encoding import find_encoding, open_bytes
from ulmfit.data.records import Cells, Form, Records, split_lines
from ulmfit.data.shards import Columns
from ulmfit.errors import UserError
from ulmfit.excerpts import listed

MISSING = "\\N"  # what databases write for a missing value


def examine(path: str, kind: str, separator: str | None, header: bool | None, encoding: str | None,
            known: Dialect | None = None) -> Form:  # fmt: skip
    """Find out how a file is written.

    Args:
        separator, header, encoding: as given by the user; None: to be found.
        known: the dialect of the first file of several, which is that of all.

    Raises:
        UserError: it holds no table.
    """
    encoding = find_encoding(path, encoding)
    with open_bytes(path, encoding) as file:
        head = file.read(dialects.SAMPLE)
        while (
            head
            and not head.endswith(b"\n")
            and len(head) < 64 * dialects.SAMPLE
            and (more := file.read(dialects.SAMPLE // 16))
        ):
            head += more[: more.find(b"\n") + 1] if b"\n" in more else more
    if b"\n" not in head[:-1] and head.count(b"\r") > 1:
        head = head[: head.rfind(b"\r") + 1] if len(head) >= dialects.SAMPLE else head
    old_ends = b"\r" in head and b"\n" not in head
    lines = split_lines(head, old_ends, first=True)
    skipped, said = dialects.preamble(lines, named=header is not False)
    if not lines[skipped:]:
        raise UserError(f"{path} holds no rows; give a file with rows")
    dialect = known or dialects.find_dialect(lines[skipped:], kind, separator or said, header)
    quotes = dialects.is_quoted_well(lines[skipped:], dialect, whole=len(head) < dialects.SAMPLE)
    form = Form(encoding, dialect, [], 0, (), old_ends, (), quotes)
    if dialect.separator == dialects.NO_SEPARATOR and separator is None and header is None and known is None:
        _refuse_title(path, lines, skipped, kind)

    records = Records(io.BytesIO(head), form, None)
    records.skip(skipped)
    first = records.first()
    rows = records.sample(one_column=len(first) == 1)
    if not first or dialect.header and not rows:
        raise UserError(f"{path} holds no rows, only column names; give a file with rows")
    return _named(path, form, first, rows, records.after_first, header, known is None)


def _refuse_title(path: str, lines: list[str], skipped: int, kind: str) -> None:
    """Raise UserError if a table begins below a title, whose lines would be read as texts."""
    if below := dialects.table_below(lines[skipped:], kind):
        above, size, dialect = below
        raise UserError(
            f"{path} has other lines above the names of its columns (from line {skipped + above + 1} on it has {size} columns "
            f"separated by {dialects.name_of(dialect.separator)}); delete them, or add --separator none if each line is a text"
        )


def _named(path: str, form: Form, first: list[str], rows: list[list[str]], after_first: int, header: bool | None,
           is_first: bool) -> Form:  # fmt: skip
    """Complete the form of a file by the names of its columns."""
    dialect = form.dialect
    if dialect.header:
        if is_first:
            dialect = replace(dialect, row_names=dialects.has_row_names(first, rows))
        size = len(first) + dialect.row_names
        columns = tuple(dialects.columns_of(_of_size(rows, size), size))
        if (
            is_first
            and header is None
            and len(rows) >= 2
            and not dialect.row_names
            and not dialects.has_header(first, columns)
        ):
            dialect = replace(dialect, header=False)
    if not dialect.header:
        everything = [first, *rows]
        size = max(map(len, everything), key=[len(row) for row in everything].count)
        columns = tuple(dialects.columns_of(_of_size(everything, size), size))
        names = [str(place) for place in range(size)]
        return replace(form, dialect=dialect, names=names, start=-1, columns=columns)
    names = [cell.strip().strip('\ufeff"').strip() for cell in first]  # joined files may have two byte order marks
    names = ["", *names] if dialect.row_names else names
    names = [name or f"Unnamed: {place}" for place, name in enumerate(names)]  # the names that pandas gives
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a column twice ({listed(names)}); rename one in its first line, or add --no-header if "
                        "that is a row")  # fmt: skip
    long = [row for row in rows if len(row) > size and any(cell.strip() for cell in row[size:])]
    if is_first and len(long) > 0.5 * len(rows):
        raise UserError(
            f"{path} has {len(long[0])} fields in a line and {len(names)} column names in its first; name every "
            "column, quote texts that contain the separator, or name another by --separator"
        )
    return replace(form, dialect=dialect, names=names, start=after_first, header=tuple(first), columns=columns)


def _of_size(rows: list[list[str]], size: int) -> list[list[str]]:
    return [row[:size] for row in rows if len(row) >= size and not any(cell.strip() for cell in row[size:])]


def read_table(path: str, form: Form, wanted: list[str], batch_size: int, place: int | None,
               beat: Callable[[], None] = lambda: None, plain: bool = False) -> Iterator[tuple[Columns, int]]:  # fmt: skip
    """Yield ({column: cells}, place after them) of the wanted columns, in batches of at most `batch_size` rows.

    Args:
        plain: of a run of an earlier version, which read irregular records otherwise.

    Raises:
        UserError: the file lacks a column.
        ReadOtherwise: with `plain`, a record is irregular.
    """
    for name in wanted:
        if name not in form.names:
            raise UserError(f"{path} has no column {listed([name])}; its columns are {listed(form.names)}")
    places = [form.names.index(name) for name in wanted]
    with open_bytes(path, form.encoding) as file:
        start = form.start if place is None else place
        if shards.is_plain(file):
            file.seek(max(0, start))
        else:
            shards.read_over(file, max(0, start), beat)
        records = Records(file, form, beat, start)
        if start < 0:
            records.skip_preamble()
        for rows, after in records.batches(batch_size):
            if plain and records.irregular:
                raise ReadOtherwise(f"{path} has a record that this version reads in another way")
            columns = {}
            for name, index in zip(wanted, places, strict=True):
                cells: Cells = [row[index] for row in rows]
                if form.dialect.escaped:
                    cells = [
                        dialects.show_escapes(cell) if QUOTE in cell or BACKSLASH in cell else cell for cell in cells
                    ]
                columns[name] = (
                    [None if cell == MISSING else cell for cell in cells] if MISSING in cells and not plain else cells
                )
            yield columns, after


class ReadOtherwise(UserError):
    """A file that this version reads in another way than the version that began the run.

    Attributes:
        reason: what is read otherwise.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; go on with the version that began this run, or start afresh with --resume never")
        self.reason = reason
