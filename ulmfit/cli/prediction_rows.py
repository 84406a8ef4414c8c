"""The rows that `predict` reads: from files, from standard input or from the command line, from any row on."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ulmfit.cli.prediction_files import Layout, PredictedRow, layout_of
from ulmfit.data.fingerprint import hash_of
from ulmfit.data.given_rows import given_rows
from ulmfit.data.locations import is_url
from ulmfit.files import is_deep
from ulmfit.resumable import Kept

if TYPE_CHECKING:
    from ulmfit.data.splits import RowBatch, Split
    from ulmfit.inference import TextClassifier

BATCH = 1000  # rows read at a time
MOST_FILES = 100  # of which the rows are counted or estimated


class Rows(Protocol):
    """Rows that can be read once, from a place on.

    Attributes:
        layout: what is written of them.
        identity: JSON-able; equal for equal rows, as far as it is known before they are read.
    """

    layout: Layout
    identity: Any

    def read(self, start: Any) -> Iterator[tuple[str, PredictedRow]]:
        """Yield each row with its text; `start` is the `place` after a row of an earlier process, None the beginning."""

    @property
    def place(self) -> Any:
        """The place after the last row that was read, JSON-able."""

    def total(self) -> int | None:
        """About how many rows there are; None if nothing tells."""


class GivenRows:
    """The texts of a command line."""

    def __init__(self, texts: Sequence[str], model: TextClassifier) -> None:
        self._texts, reasons = given_rows(texts)
        self._rows = [PredictedRow(number, None, reasons[number], None, [text]) for number, text in enumerate(texts)]
        self.layout = layout_of(model, {"text": "string"}, numbered=False)
        self.identity = hash_of(list(texts))
        self.place = 0

    def read(self, start: Any) -> Iterator[tuple[str, PredictedRow]]:
        for number in range(start or 0, len(self._rows)):
            self.place = number + 1
            yield self._texts[number], self._rows[number]

    def total(self) -> int:
        return len(self._rows)


class FileRows:
    """The rows of all files of a corpus. Documents of a folder, each a file, have numbers in one count."""

    def __init__(self, split: Split, data: str, model: TextClassifier) -> None:
        self._split, self._data = split, data
        self._batch: RowBatch | None = None
        self._done = 0  # rows of the batch that were read
        types: dict[str, str] = {}
        for part in split.parts:
            for name in part.columns:
                kind = part.types.get(name, "string")
                types[name] = kind if types.get(name, kind) == kind else "string"
        with_file = len(split.parts) > 1 or split.parts[0].documents
        self.layout = layout_of(model, types, with_file=with_file)
        names = [self._name(file) for part in split.parts for file in part.files] if with_file else []
        self.identity = hash_of((split.fingerprint, names))

    def read(self, start: Any) -> Iterator[tuple[str, PredictedRow]]:
        skip = start["done"] if start else 0
        parts, names = self._split.parts, list(self.layout.inputs)
        number_of_part, before = -1, 0  # documents of earlier parts
        for batch in self._split.every_row(BATCH, start):
            part = batch.part
            if batch.place["part"] != number_of_part:
                number_of_part = batch.place["part"]
                before = sum(len(other.files) for other in parts[:number_of_part] if other.documents)
            self._batch = batch
            for place in range(skip, len(batch.texts)):
                number = batch.first + place
                file = self._name(part.files[number if part.documents else 0]) if part.files else part.what
                values = [_shown(batch.columns[name][place]) if name in batch.columns else None for name in names]
                row = PredictedRow(number + before * part.documents, file, batch.reasons[place], None, values)
                self._done = place + 1
                yield batch.texts[place], row
            skip = max(0, skip - len(batch.texts))

    @property
    def place(self) -> Any:
        return None if self._batch is None else {**self._batch.place, "done": self._done}

    def total(self) -> int | None:
        return self._split.expected_rows() if len(self._split.parts) <= MOST_FILES else None

    def _name(self, file: str) -> str:
        """A file as the user may name it: relative to the folder that was given."""
        folder = self._data.rstrip("/") + "/"
        if is_url(self._data):
            return file.removeprefix(folder)
        return os.path.relpath(file, self._data) if os.path.isdir(self._data) else file


def _shown(value: Any) -> Any:
    """A value of a column; of one that is nested too deeply to be written, a few words."""
    return "(nested too deeply)" if isinstance(value, list | dict) and is_deep(value) else value


class StreamRows:
    """The rows of standard input, which cannot be known before they are read, nor read twice.

    A later process gets the same rows again and passes over those that were predicted, if they are the same.
    """

    identity = "standard input"

    def __init__(self, rows: FileRows, output: str | None) -> None:
        self._rows, self.layout, self._output = rows, rows.layout, output
        self._read, self._sum = 0, 0

    def read(self, start: Any) -> Iterator[tuple[str, PredictedRow]]:
        for text, row in self._rows.read(None):
            self._read += 1
            self._sum = zlib.crc32(repr((row.reason, row.values)).encode("utf-8", "backslashreplace"), self._sum)
            if start is None or self._read > start["rows"]:
                yield text, row
            elif self._read == start["rows"] and self._sum != start["sum"]:
                raise self._other()
        if start is not None and self._read < start["rows"]:
            raise self._other()

    @property
    def place(self) -> Any:
        return {"rows": self._read, "sum": self._sum}

    def total(self) -> None:
        return None

    def _other(self) -> Kept:
        return Kept(f"standard input does not begin with the rows of {self._output}.partial; give the same input, remove "
                    "it to begin again, or name another file by --output")  # fmt: skip
