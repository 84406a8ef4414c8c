"""Reads local files from any position, so that a resumed stream need not read them from the start.

Each reader yields (values, place after them). A place (position) is None for the start, else a few JSON-able integers.
`read(place)` yields exactly what follows the place. The cost of a seek:

* lines (.txt, .jsonl): a file seek and at most `CHUNK` bytes; a compressed file is decompressed up to the place, and
  one in another encoding than UTF-8 is recoded;
* .csv, .tsv: a file seek; see `tables`;
* .parquet: earlier rows of the same row group (some thousands to a million, by the writer's choice) are decoded;
* a folder of documents: none, because a place is the number of a file;
* .json: all before is parsed, see `json_files`.

Data sets of the hub are read by `datasets`, see `readers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from ulmfit.data.encoding import UTF8, open_bytes
from ulmfit.data.locations import is_plain, open_binary
from ulmfit.errors import UserError

CHUNK = 2**20  # bytes of lines read at a time
SLICE_BYTES = 32 * 2**20  # bytes of Arrow text converted to Python strings at a time
Columns = dict[str, list[Any]]


def read_lines(
    path: str, batch_size: int, place: list[int] | None, beat: Callable[[], None] = lambda: None, encoding: str = UTF8
) -> Iterator[tuple[list[str], list[int]]]:
    """Yield lines of a text file without line ends (LF, CRLF or CR), including blank ones.

    Args:
        place: [byte offset of a line's start in the decompressed text, number of lines to skip from there].
        beat: called at least once for each `CHUNK` that is read or skipped.
    """
    offset, skip = place or (0, 0)
    with open_bytes(path, encoding) as file:
        if is_plain(file):
            file.seek(offset)
        else:
            read_over(file, offset, beat)
        while chunk := file.read(CHUNK):
            beat()
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
            lines = _lines(chunk, first=offset == 0)
            after = offset + len(chunk)
            for start in range(skip, len(lines), batch_size):
                stop = start + batch_size
                yield lines[start:stop], [offset, stop] if stop < len(lines) else [after, 0]
            # A decompressor may return fewer bytes than requested, and another number when it reads again.
            offset, skip = after, max(0, skip - len(lines))


def read_over(file: IO[bytes], size: int, beat: Callable[[], None]) -> None:
    """Skip bytes of a file in which a seek is not cheap."""
    while size and (read := len(file.read(min(size, CHUNK)))):
        size -= read
        beat()


def _lines(chunk: bytes, *, first: bool) -> list[str]:
    text = chunk.decode("utf-8", "ulmfit-mark")
    if first:
        text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n")


def parquet_schema(path: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(types by column, class names of the integer columns for which `datasets` has stored some).

    A type that holds texts is "string". Columns inside a struct are named with dots, as `review.text`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        schema = pq.read_schema(file)
    types: dict[str, str] = {}

    def add(name: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for field in kind:
                add(f"{name}.{field.name}", field.type)
            return
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
        types[name] = "string" if str(kind) in texts else str(kind)

    for field in schema:
        add(field.name, field.type)
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {
            name: list(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name in types
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        classes = {}
    return types, classes


def parquet_rows(path: str) -> int:
    """The number of rows, from the footer."""
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        return pq.read_metadata(file).num_rows


def read_parquet(
    path: str, columns: list[str], batch_size: int, place: list[int] | None, beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[Columns, list[int]]]:
    """Yield rows of the given columns as Python values.

    Args:
        columns: names as by `parquet_schema`.
        place: [row group, number of its rows to skip].
        beat: called for each batch of rows that is decoded, including those before the place.

    Raises:
        UserError: the file does not have a column.
    """
    import pyarrow.parquet

    group, skip = place or (0, 0)
    with open_binary(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
        names = file.schema_arrow.names
        paths = {name: _path(name, names) for name in columns}
        for name, inside in paths.items():
            if inside is None:
                raise UserError(f"{path} has no column {name}; its columns are {', '.join(names)}")
        whole = list(dict.fromkeys(inside[0] for inside in paths.values() if inside))
        for number in range(group, file.num_row_groups):
            row, num_rows = 0, file.metadata.row_group(number).num_rows
            for batch in file.iter_batches(batch_size, row_groups=[number], columns=whole, use_threads=False):
                beat()
                start, row = max(skip, row), row + batch.num_rows
                if start >= row:
                    continue
                for part in slices(batch.slice(start - row + batch.num_rows), batch_size):
                    start += part.num_rows
                    after = [number, start] if start < num_rows else [number + 1, 0]
                    yield {name: values(_inside(part, inside)) for name, inside in paths.items()}, after
            skip = 0


def _path(name: str, columns: list[str]) -> list[str] | None:
    """The column of a file and the fields inside it that a name stands for; a dot may also be part of a name."""
    if name in columns:
        return [name]
    column = next((column for column in columns if name.startswith(f"{column}.")), None)
    return None if column is None else [column, *name.removeprefix(f"{column}.").split(".")]


def _inside(batch: Any, path: list[str] | None) -> Any:
    import pyarrow.compute

    assert path is not None
    column = batch.column(path[0])
    return pyarrow.compute.struct_field(column, path[1:]) if len(path) > 1 else column


def slices(table: Any, num_rows: int) -> Iterator[Any]:
    """Cut an Arrow table or record batch into slices of at most `num_rows`, whose Python values take bounded memory."""
    step = max(1, min(num_rows, table.num_rows * SLICE_BYTES // max(SLICE_BYTES, table.nbytes)))
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step)


def values(column: Any) -> list[Any]:
    """Python values of an Arrow column; binary ones as text, because some writers store texts so.

    Texts may contain bytes that are not UTF-8, because writers do not check this.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        found = column.to_pylist()
    except UnicodeDecodeError:
        found = column.cast("large_binary").to_pylist()
    return [value.decode(UTF8, "ulmfit-mark") if isinstance(value, bytes) else value for value in found]
