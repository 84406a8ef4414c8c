"""Where the bytes of a corpus are: in local files, in an object store (a URL, read by fsspec), or in standard input.

All readers open files through `open_binary`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ulmfit.errors import UserError

STDIN = "standard input"  # its name, in place of a path, within `standard_input`
_EXTRAS = {"s3fs": "ulmfit[s3]"}  # packages of fsspec that are an extra of this one
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "generation")  # of S3 and its like, Google's and Azure's stores
HEAD = 2**16  # bytes of standard input that are looked at before it is read, or a line if it is longer
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_stream: _StandardInput | None = None


def is_url(path: object) -> bool:
    """Whether it names something that fsspec opens, such as s3://bucket/new.csv."""
    return isinstance(path, str) and _URL.match(path) is not None


def is_local(path: str) -> bool:
    """Whether it is a path of this machine."""
    return not (is_url(path) or _stream is not None and path == STDIN)


def file_system(url: str) -> tuple[Any, str]:
    """(file system of fsspec, path in it).

    Raises:
        UserError: there is no such kind of URL, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        said = str(error).rstrip(".")
        package = re.search(r"\binstall ([\w-]+)", said, re.IGNORECASE)
        if package is None:
            raise UserError(f"{url} needs another package ({said}); install it") from None
        name = _EXTRAS.get(package[1], package[1])
        raise UserError(f"{url} needs the package {package[1]}; pip install '{name}'") from None
    except ValueError as error:
        raise UserError(f"{url} cannot be opened ({str(error).rstrip('.')}); give a URL that fsspec knows") from None


def open_binary(path: str) -> IO[bytes]:
    """Open a local file, a URL or standard input for reading, as the bytes that are stored."""
    if _stream is not None and path == STDIN:
        return _stream.open()
    if not is_url(path):
        return open(path, "rb")
    system, inside = file_system(path)
    return io.BufferedReader(_Remote(system.open(inside, "rb")), 2**20)


def is_plain(file: IO[bytes]) -> bool:
    """Whether a seek in a file of `open_binary` is cheap."""
    return isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO | _Remote)


def size_of(path: str) -> int:
    """Bytes of a local file or a URL; those of standard input are not known, and count as 1."""
    if _stream is not None and path == STDIN:
        return 1
    if not is_url(path):
        return os.path.getsize(path)
    system, inside = file_system(path)
    return int(system.size(inside) or 0)


def version_of(url: str) -> list[Any]:
    """What changes when the object is written again: its size and its tag or time, as the store tells them.

    Not `ukey` of fsspec where there is a tag: that is a hash of all that the store tells, which the next version of its
    package may tell in other words.
    """
    system, inside = file_system(url)
    info = system.info(inside)
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None) or str(system.ukey(inside))
    return [int(info.get("size") or 0), tag]


def files_at(url: str) -> list[str]:
    """The file that a URL names, those that match a glob, or those directly in a folder, as URLs in order.

    Raises:
        UserError: there is none.
    """
    system, inside = file_system(url)
    try:
        if any(sign in url for sign in "*?["):
            found = [path for path in system.glob(inside) if system.isfile(path)]
        elif system.isdir(inside):
            found = [entry["name"] for entry in system.ls(inside, detail=True) if entry["type"] == "file"]
        else:
            return [url] if system.isfile(inside) else _nothing_at(url)
    except FileNotFoundError:
        return _nothing_at(url)
    return sorted(map(system.unstrip_protocol, found)) or _nothing_at(url)


def _nothing_at(url: str) -> list[str]:
    raise UserError(f"there is nothing at {url}; check it")


class _Remote(io.RawIOBase):
    """A file of fsspec."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _StandardInput:
    """Standard input, which is opened several times to look at its first lines, and then once to be read.

    Until `begin` it looks like a file of its first lines only. So memory is bounded, and an answer does not wait for
    more than `HEAD` bytes.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.head = stream.read(HEAD)
        if len(self.head) == HEAD and not self.head.endswith(b"\n"):
            self.head += stream.readline()
        self._begun = self._taken = False

    def begin(self) -> None:
        """The next opening reads everything."""
        self._begun = True

    def open(self) -> IO[bytes]:
        if not self._begun:
            return io.BytesIO(self.head)
        if self._taken:
            raise UserError("standard input cannot be read twice; write it to a file")
        self._taken = True
        return io.BufferedReader(_Both(self.head, self._stream), 2**16)


class _Both(io.RawIOBase):
    """First bytes and the stream that they were taken from, as one."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            part, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            part = memoryview(self._stream.read(len(buffer)))
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def standard_input() -> Iterator[_StandardInput]:
    """Context in which `open_binary(STDIN)` opens standard input.

    Raises:
        UserError: it is empty.
    """
    global _stream
    _stream = _StandardInput(sys.stdin.buffer)
    try:
        if not _stream.head:
            raise UserError("standard input is empty; give rows")
        yield _stream
    finally:
        _stream = None
