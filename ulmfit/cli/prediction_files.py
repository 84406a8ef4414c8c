"""What `predict` writes: a line for each row, in the format that the name of the output file says.

    .csv .tsv    row, [file,] label, a column for each class, reason, the columns of the input
    .parquet     the same columns, with types
    .jsonl       {"row", ["file",] "label", "probabilities", "reason", "input"}
    else, and the terminal    row, [file,] label, probability of the label [, reason], separated by tabs

Where a text may have several labels, the column is called `labels`: names in one cell, between the separator of training
(in .jsonl and .parquet a list), and the separator alone where a text has none of them. In lines of fields the
probabilities of these labels follow, separated by commas. `train-clf --label-column labels` reads such a file.

`row` is the number of the row in its file, from 0, without the header. `file` is there if there are several files. A row
without a text has no label, and a reason. Our columns keep their names; a column of the input with the name of one of
ours is called input_NAME, and a class with such a name is called probability_NAME.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO, cast

import numpy as np

from ulmfit.data.encoding import TORN
from ulmfit.data.label_sets import joiner
from ulmfit.data.splits import MARKS
from ulmfit.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

    from ulmfit.inference import TextClassifier

_OTHER_FORMATS = {".xlsx", ".xls", ".ods", ".json", ".gz", ".xz", ".zst", ".bz2", ".zip", ".feather", ".arrow", ".pkl"}
_SCALARS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "bool")
GROUP_ROWS, GROUP_BYTES = 2**17, 2**26  # of a row group of .parquet, about
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class PredictedRow(NamedTuple):
    """A row and its prediction."""

    number: int  # in its file, from 0
    file: str | None
    reason: str  # why there is no prediction; else ""
    probabilities: np.ndarray | None  # float32 [C]; None without a text
    values: Sequence[Any]  # of the input's columns, in the order of `Layout.inputs`


Write = Callable[[Sequence[PredictedRow]], object]


@dataclass(frozen=True)
class Layout:
    """What the rows have.

    Attributes:
        classes: names of the classes.
        inputs: name -> Arrow type ("string" if not known) of the input's columns; empty for texts of a command line.
        numbered: rows have a number; texts of a command line have none in the terminal.
        with_file: rows have the name of a file.
    """

    classes: list[str]
    inputs: dict[str, str] = field(default_factory=dict)
    numbered: bool = True
    with_file: bool = False
    thresholds: np.ndarray | None = None  # by class, where a text may have several labels
    separator: str = ","  # between these

    @property
    def label_column(self) -> str:
        return "label" if self.thresholds is None else "labels"

    def chosen(self, row: PredictedRow) -> np.ndarray:
        """The indices of the labels of a row."""
        if row.probabilities is None:
            return np.empty(0, dtype=np.int64)
        if self.thresholds is None:
            return np.array([row.probabilities.argmax()])
        return np.flatnonzero(row.probabilities >= self.thresholds)

    def labels(self, row: PredictedRow) -> list[str] | None:
        """The names of the labels of a row; None without a prediction."""
        return None if row.probabilities is None else [self.classes[index] for index in self.chosen(row)]

    def label(self, row: PredictedRow) -> str:
        """The label, or all labels, in one cell."""
        if row.probabilities is None:
            return ""
        return self.separator.join(self.labels(row) or []) or self.separator

    def names(self) -> list[str]:
        """Names of the columns of a table, each once."""
        ours = ["row", *(["file"] if self.with_file else []), self.label_column, "reason"]
        classes = _distinct(self.classes, "probability_", set(ours))
        inputs = _distinct(self.inputs, "input_", {*ours, *classes})
        return [*ours[:-1], *classes, "reason", *inputs]


def layout_of(model: TextClassifier, inputs: dict[str, str], **options: Any) -> Layout:
    """What the rows of a model's predictions have. `options` are attributes of Layout."""
    if model.thresholds is None:
        return Layout(model.label_names, inputs, **options)
    names = model.label_names
    separator = model.config.get("label_separator") or joiner(names)
    if any(separator in name for name in names):
        separator = joiner(names)
    return Layout(names, inputs, thresholds=model.thresholds, separator=separator, **options)


def check_format(path: Path) -> None:
    """Raise UserError if the suffix of an output file names a format that is not written."""
    if path.suffix.lower() in _OTHER_FORMATS:
        raise UserError(f"--output {path} cannot be written as {path.suffix}; name a .csv, .tsv, .jsonl, .parquet or "
                        ".txt file")  # fmt: skip


def appending_rows(file: BinaryIO | io.RawIOBase, suffix: str, layout: Layout, *, begun: bool) -> Write:
    """A function that appends rows to a file, in the format of `suffix`: whole rows at the end of each call.

    .parquet has its index at the end, so it cannot be appended to. Its rows become blocks of Arrow, which `to_parquet`
    puts together.

    Args:
        begun: the file has rows already, so a table has its line of names.
    """
    if suffix == ".parquet":
        return _arrow(file, layout)
    # Half a character of a broken text cannot be written in UTF-8, and is written as \\ud800.
    text = io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8", errors="backslashreplace", newline="")
    write = text_rows(text, suffix, layout, begun=begun)

    def write_whole(rows: Sequence[PredictedRow]) -> None:
        write(rows)
        text.flush()

    return write_whole


def text_rows(file: TextIO, suffix: str, layout: Layout, *, begun: bool = False) -> Write:
    """A function that writes rows to a text file, in the format of `suffix`."""
    if suffix in (".csv", ".tsv"):
        return _table(file, layout, "\t" if suffix == ".tsv" else ",", begun=begun)
    return _json_lines(file, layout) if suffix in (".jsonl", ".ndjson") else lines(file, layout)


def lines(file: TextIO, layout: Layout) -> Write:
    """A function that writes rows as lines of fields separated by tabs."""

    def write(rows: Sequence[PredictedRow]) -> None:
        for row in rows:
            fields = [str(row.number)] if layout.numbered else []
            fields += [str(row.file)] if layout.with_file else []
            chosen = () if row.probabilities is None else row.probabilities[layout.chosen(row)]
            fields += [layout.label(row), ",".join(f"{probability:.4f}" for probability in chosen)]
            fields += [row.reason] if row.reason else []
            file.write("\t".join(map(one_line, fields)) + "\n")

    return write


def _json_lines(file: TextIO, layout: Layout) -> Write:
    def write(rows: Sequence[PredictedRow]) -> None:
        for row in rows:
            shown: dict[str, Any] = {"row": row.number}
            if layout.with_file:
                shown["file"] = row.file
            shown[layout.label_column] = layout.label(row) if layout.thresholds is None else layout.labels(row)
            shown["probabilities"] = None
            if row.probabilities is not None:
                shown["probabilities"] = dict(zip(layout.classes, map(float, row.probabilities), strict=True))
            shown["reason"] = row.reason
            if layout.inputs:
                shown["input"] = dict(zip(layout.inputs, map(_json_value, row.values), strict=True))
            file.write(json.dumps(shown, default=str) + "\n")

    return write


def _table(file: TextIO, layout: Layout, separator: str, *, begun: bool) -> Write:
    table = csv.writer(file, delimiter=separator)
    if not begun:
        table.writerow(map(_no_formula, layout.names()))
    nothing = [""] * len(layout.classes)

    def write(rows: Sequence[PredictedRow]) -> None:
        for row in rows:
            known = nothing if row.probabilities is None else [f"{p:.6f}" for p in row.probabilities]
            place = [row.number, row.file] if layout.with_file else [row.number]
            inputs = map(_cell, row.values)
            table.writerow([*place, _no_formula(layout.label(row)), *known, row.reason, *inputs])

    return write


def _schema(layout: Layout) -> tuple[pa.Schema, list[str]]:
    """The columns of a .parquet file, and the names of the types of the input's columns."""
    import pyarrow as pa

    types = [pa.int64(), *([pa.string()] if layout.with_file else [])]
    types.append(pa.string() if layout.thresholds is None else pa.list_(pa.string()))
    types += [pa.float32()] * len(layout.classes) + [pa.string()]
    kinds = [kind if kind in _SCALARS else "string" for kind in layout.inputs.values()]
    # Arrow's name of the type bool is "bool", and its method bool_.
    types += [getattr(pa, "bool_" if kind == "bool" else kind)() for kind in kinds]
    return pa.schema(list(zip(map(_utf8, layout.names()), types, strict=True))), kinds


def _arrow(file: BinaryIO | io.RawIOBase, layout: Layout) -> Write:
    import pyarrow as pa

    schema, kinds = _schema(layout)

    def write(rows: Sequence[PredictedRow]) -> None:
        columns: list[list[Any]] = [[row.number for row in rows]]
        if layout.with_file:
            columns.append([_utf8(str(row.file)) for row in rows])
        if layout.thresholds is None:
            columns.append([_utf8(layout.label(row)) for row in rows])
        else:
            columns.append(
                [None if row.probabilities is None else list(map(_utf8, layout.labels(row) or [])) for row in rows]
            )
        for place in range(len(layout.classes)):
            columns.append([None if row.probabilities is None else row.probabilities[place] for row in rows])
        columns.append([row.reason for row in rows])
        for place, kind in enumerate(kinds):
            values = [row.values[place] for row in rows]
            columns.append([_string(value) for value in values] if kind == "string" else values)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        block = pa.BufferOutputStream()
        with pa.ipc.new_stream(block, schema) as stream:
            stream.write_table(pa.Table.from_arrays(arrays, schema=schema))
        content = block.getvalue()
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)

    return write


def to_parquet(layout: Layout, blocks: Path, path: Path) -> None:
    """Write the .parquet file of the blocks that `appending_rows` has written. A row group has GROUP_ROWS rows or more,
    or GROUP_BYTES."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, _ = _schema(layout)
    waiting: list[pa.Table] = []
    with open(blocks, "rb") as file, pq.ParquetWriter(path, schema) as writer:

        def write() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
            waiting.clear()

        while size := int.from_bytes(file.read(8), "little"):
            waiting.append(pa.ipc.open_stream(file.read(size)).read_all())
            if sum(t.num_rows for t in waiting) >= GROUP_ROWS or sum(t.nbytes for t in waiting) >= GROUP_BYTES:
                write()
        write()


def _distinct(names: Sequence[str] | dict[str, str], prefix: str, taken: set[str]) -> list[str]:
    """The names, with the prefix where a name is taken."""
    found: list[str] = []
    rest = set(names)
    for name in names:
        while name in taken or name in found:
            name = prefix + name
            while name in rest:
                name = prefix + name
        found.append(name)
    return found


def _no_formula(text: str) -> str:
    """A label that a spreadsheet does not take for a formula: with an apostrophe in front, as spreadsheets write it.

    Marks alone, such as + and -, are none.
    """
    if not text.startswith(_FORMULA) or not any(map(str.isalnum, text)):
        return text
    try:
        float(text)
        return text
    except ValueError:
        return "'" + text


def _readable(text: str) -> str:
    """A value of a row: the cells of a torn row are empty, and bytes that were no characters become U+FFFD."""
    if text == TORN:
        return ""
    for mark in MARKS:
        text = text.replace(mark, "\ufffd")
    return text


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return _readable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    """A value of the input as a field of a table: null as an empty field, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _readable(value)
    return json.dumps(_json_value(value), default=str) if isinstance(value, dict | list | tuple) else str(value)


def _string(value: Any) -> str | None:
    return None if value is None else _utf8(_cell(value))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
