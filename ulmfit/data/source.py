"""A source: rows with named columns, which can be read from any place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ulmfit.data.fingerprint import COMPRESSED
from ulmfit.data.locations import size_of
from ulmfit.data.retry import retried
from ulmfit.data.shards import Columns
from ulmfit.errors import UserError
from ulmfit.excerpts import listed

Batches = Iterator[tuple[Columns, Any]]


@dataclass
class Source:
    """Rows with named columns. `read` yields them in batches of Python values, of at most `batch_size` rows."""

    what: str  # its name in messages
    columns: list[str]
    fingerprint: str  # 16 hex digits, depend on the rows
    files: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)  # class names of integer (ClassLabel) columns
    types: dict[str, str] = field(default_factory=dict)  # Arrow types, if the format has them
    num_rows: int | None = None  # if known without reading them
    revision: str | None = None  # of a data set of the hub: the commit that is read
    notes: list[str] = field(default_factory=list)  # sentences for the user, as about what was found in the files
    blank_lines: bool = False  # rows are lines of text, blank ones too, which training leaves out
    documents: bool = False  # each row is a file, in the order of `files`
    kind: str = ""  # of files: csv, tsv, jsonl, json, parquet, text or documents
    header: bool = True  # of a table: the first line of its files has the names of the columns
    default_texts: list[str] = field(default_factory=list)  # of a table without names: its columns of texts
    hint: str = ""  # what else the user may have meant if a column is missing
    default_label: str | None = None  # of a table without names: its column of classes, if there is one
    _has: Callable[[str], bool] | None = None  # looks for a column that the first rows lack
    _batches: Callable[[list[str], int, Any], Batches] = None  # type: ignore[assignment]  # set before it is read

    def read(self, columns: list[str], batch_size: int = 1000) -> Iterator[Columns]:
        """Yield {column: values} of the given columns, in the order of the rows.

        Values have the types of the format (str, int, float, bool, None). Text that is not UTF-8 contains
        `UNDECODABLE`. After a transient failure the read is tried again (see `retry.retried`).

        Raises:
            UserError: a file is damaged.
            OSError: the last try failed.
        """
        return (batch for batch, _ in self.read_from(None, columns, batch_size))

    def read_from(self, place: Any, columns: list[str], batch_size: int = 1000) -> Batches:
        """As `read`, but from a place (position) in the source on; None is the start. Yields each batch with the place
        after it.

        A place is JSON-able and takes some hundred bytes. A seek opens no file before that of the place. For the cost
        within the file see `shards`; shards of the hub are parsed up to the place.
        """
        num_rows = 0
        for batch, after in self._batches(columns, batch_size, place):
            size = len(next(iter(batch.values()), ()))
            num_rows += size
            if size or not columns:  # none where lines are blank
                yield batch, after
        if place is None and columns:
            self.num_rows = num_rows

    def expected_rows(self) -> int | None:
        """About how many rows there are, from the first ones and the size of the files; None for compressed files."""
        packed = any(path.lower().endswith(COMPRESSED) for path in self.files)
        if self.num_rows is not None or packed or self.kind not in ("csv", "tsv", "text", "jsonl"):
            return self.num_rows
        rows = 0
        for batch, (number, after) in self._batches(self.columns[:1], 1000, None):
            rows += len(next(iter(batch.values())))
            at, skip = (after, 0) if isinstance(after, int) else after
            if number or not skip:
                break
        size = sum(map(size_of, self.files))
        return round(rows * size / at) if rows and at else None

    def has(self, column: str) -> bool:
        """Whether there is a column of this name. In .jsonl it may first appear in a later row, so all are searched."""
        if column not in self.columns and self._has is not None and self._has(column):
            self.columns.append(column)
        return column in self.columns

    def lacks(self, column: str, cure: str = "") -> UserError:
        """The mistake of asking for a column that the source does not have."""
        names = listed(self.columns)
        said = cure.format(names) if cure else f"its columns are {names}"
        hint = f" ({self.hint})" if self.hint else ""
        return UserError(f"{self.what} has no column {listed([column])}; {said}{hint}")

    def lacks_labels(self, column: str) -> UserError:
        """The mistake of asking for a column of labels that the source does not have."""
        if self.documents:
            cure = "put the documents of each class into a folder of its own, with the name of the class"
        elif self.kind == "text":
            cure = "give a table with a column of labels, or lines of fastText (__label__x text)"
        elif len(self.columns) < 2:
            cure = f"its only column is {listed(self.columns)}; give data with labels, in a column that --label-column names"
        else:
            cure = "choose one of {} by --label-column"
        return self.lacks(column, cure)


def over_files(files: list[str], place: Any, read: Callable[[str, Any], Iterator[tuple[Any, Any]]]) -> (
        Iterator[tuple[Any, Any]]):  # fmt: skip
    """Read the files one after another, from [file number, place within it] on. Earlier files are not opened."""
    first, inside = place or (0, None)
    for number in range(first, len(files)):
        path = files[number]
        for batch, after in retried(functools.partial(read, path), inside, functools.partial(str, path)):
            yield batch, [number, after]
        inside = None
