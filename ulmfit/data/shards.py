"""Reads local files from any position, so that a resumed stream need not read them from the start.

Each reader yields (values, place after them). A place (position) is None for the start, else a few JSON-able integers.
`read(place)` yields exactly what follows the place. The cost of a seek:

* lines (.txt, .jsonl): a file seek and at most `CHUNK` bytes; a compressed file is decompressed up to the place;
* .parquet: earlier rows of the same row group (some thousands to a million, by the writer's choice) are decoded;
* a folder of documents: none, because a place is the number of a file.

Other formats are read by `datasets`, see `readers`.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ulmfit.errors import UserError

# Bytes that are not UTF-8 become this noncharacter, which does not occur in valid texts. So the readers of `datasets`
# do not fail, and the rows can be counted.
UNDECODABLE = "\ufdd0"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error("ulmfit-mark", _mark)

COMPRESSED = {".gz": "gzip", ".xz": "lzma", ".bz2": "bz2"}  # suffix -> module that reads it
CHUNK = 2**20  # bytes of lines read at a time
SLICE_BYTES = 32 * 2**20  # bytes of Arrow text converted to Python strings at a time
Columns = dict[str, list[Any]]


def open_bytes(path: str) -> IO[bytes]:
    """Open a plain or compressed file for reading."""
    suffix = Path(path).suffix.lower()
    if suffix in COMPRESSED:
        return import_module(COMPRESSED[suffix]).open(path, "rb")
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path} needs the package zstandard; pip install zstandard") from None
        # zstandard's own `open` reads only the first frame, and has no readline.
        frames = zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(frames)
    return open(path, "rb")


def open_text(path: str) -> IO[str]:
    """Open a plain or compressed UTF-8 file for reading. Undecodable bytes become `UNDECODABLE`."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="ulmfit-mark", newline="")


def read_lines(
    path: str, batch_size: int, place: list[int] | None, beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[list[str], list[int]]]:
    """Yield lines of a text file without line ends (LF, CRLF or CR), including blank ones.

    Args:
        place: [byte offset of a line's start in the decompressed text, number of lines to skip from there].
        beat: called at least once for each `CHUNK` that is read or skipped.
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
            # A decompressor may return fewer bytes than requested, and another number when it reads again.
            offset, skip = after, max(0, skip - len(lines))


def _is_plain(file: IO[bytes]) -> bool:
    """Whether a seek is cheap. In a compressed file it decompresses everything before, in one call without `beat`."""
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
    """Yield rows of the given columns as Python values.

    Args:
        place: [row group, number of its rows to skip].
        beat: called for each batch of rows that is decoded, including those before the place.

    Raises:
        UserError: the file does not have a column.
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
    """Cut an Arrow table or record batch into slices of at most `num_rows`, whose Python values take bounded memory."""
    step = max(1, min(num_rows, table.num_rows * SLICE_BYTES // max(SLICE_BYTES, table.nbytes)))
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step)


def values(column: Any) -> list[Any]:
    """Python values of an Arrow column. It may contain bytes that are not UTF-8, because writers do not check this."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast("large_binary").to_pylist()
        return [None if value is None else value.decode("utf-8", "ulmfit-mark") for value in raw]
