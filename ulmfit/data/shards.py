"""Local files read from any place in them: what a resumed stream needs, so that it need not start at their beginning.

Each reader yields (values, place after them). A place is None for the beginning, else a few integers that survive
JSON; `read(place)` yields exactly what follows it. What going to a place costs:

* lines (.txt, .jsonl): a seek and at most `CHUNK` bytes; where the file is compressed, decompressing up to there;
* .parquet: the rows before it in its row group (by the writer's choice some thousands to a million) are decoded again;
* a folder of documents: nothing, a place is the number of a file.

`readers` has the other formats, which `datasets` reads.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ulmfit.errors import UserError

# Bytes that are no UTF-8 become this noncharacter, which no text legitimately holds, so that the readers of
# `datasets` go on and the rows can be counted.
UNDECODABLE = "\ufdd0"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error("ulmfit-mark", _mark)

COMPRESSED = {".gz": "gzip", ".xz": "lzma", ".bz2": "bz2"}  # suffix: the module that reads it
CHUNK = 2**20  # bytes of lines read at a time
SLICE_BYTES = 32 * 2**20  # bytes of Arrow text turned into Python strings at a time
Columns = dict[str, list[Any]]


def open_bytes(path: str) -> IO[bytes]:
    """Opens a plain or compressed file for reading."""
    suffix = Path(path).suffix.lower()
    if suffix in COMPRESSED:
        return import_module(COMPRESSED[suffix]).open(path, "rb")
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path} needs the package zstandard; pip install zstandard") from None
        # Its own `open` ends after the first frame, and has no readline.
        frames = zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(frames)
    return open(path, "rb")


def open_text(path: str) -> IO[str]:
    """Opens a plain or compressed UTF-8 file for reading; undecodable bytes become `UNDECODABLE`."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="ulmfit-mark", newline="")


def read_lines(
    path: str, batch_size: int, place: list[int] | None, beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[list[str], list[int]]]:
    """Lines of a text file without their ends (LF, CRLF or CR), blank ones included.

    place: [byte offset (of the decompressed text) where a line begins, lines after it].
    beat: called at least once for each `CHUNK` that is read, or read over to get to the place.
    """
    offset, skip = place or (0, 0)
    with open_bytes(path) as file:
        if _is_plain(file):
            file.seek(offset)
        else:
            _read_over(file, offset, beat)
        while chunk := file.read(CHUNK):
            beat()
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
            lines = _lines(chunk, first=offset == 0)
            after = offset + len(chunk)
            for start in range(skip, len(lines), batch_size):
                stop = start + batch_size
                yield lines[start:stop], [offset, stop] if stop < len(lines) else [after, 0]
            # A decompressor may give less than it was asked for, and another time more.
            offset, skip = after, max(0, skip - len(lines))


def _is_plain(file: IO[bytes]) -> bool:
    """Whether a seek costs nothing. In a compressed file it decompresses all before, in one call and out of sight."""
    return isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)


def _read_over(file: IO[bytes], size: int, beat: Callable[[], None]) -> None:
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


def read_parquet(
    path: str, columns: list[str], batch_size: int, place: list[int] | None, beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[Columns, list[int]]]:
    """Rows of the wanted columns as Python values. place: [row group, rows of it].

    beat: called for each batch of rows that is decoded, also of those before the place.
    Raises UserError where the file lacks a column.
    """
    import pyarrow.parquet

    group, skip = place or (0, 0)
    with pyarrow.parquet.ParquetFile(path) as file:
        for name in columns:
            if name not in file.schema_arrow.names:
                raise UserError(f"{path} has no column {name}; its columns are {', '.join(file.schema_arrow.names)}")
        for number in range(group, file.num_row_groups):
            row, num_rows = 0, file.metadata.row_group(number).num_rows
            for batch in file.iter_batches(batch_size, row_groups=[number], columns=columns, use_threads=False):
                beat()
                start, row = max(skip, row), row + batch.num_rows
                if start >= row:
                    continue
                for part in slices(batch.slice(start - row + batch.num_rows), batch_size):
                    start += part.num_rows
                    after = [number, start] if start < num_rows else [number + 1, 0]
                    yield {name: values(part.column(name)) for name in columns}, after
            skip = 0


def slices(table: Any, num_rows: int) -> Iterator[Any]:
    """An Arrow table or record batch cut so that its Python values take bounded memory, and to `num_rows` at most."""
    step = max(1, min(num_rows, table.num_rows * SLICE_BYTES // max(SLICE_BYTES, table.nbytes)))
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step)


def values(column: Any) -> list[Any]:
    """Python values of an Arrow column, also where its bytes are no UTF-8 (nothing checks them on writing)."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast("large_binary").to_pylist()
        return [None if value is None else value.decode("utf-8", "ulmfit-mark") for value in raw]
