"""A new file that takes hours to write, and that another process may go on with after a kill.

It grows under the name PATH.partial. PATH.partial.json tells how far it is good: the number of rows, their bytes and
checksum, the place in the input after them, and of what they were made. It is replaced atomically, after the bytes are
on disk. Bytes past the position that it tells, such as half a row, are cut off. At the end PATH.partial gets the name
PATH. No file is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ulmfit.errors import UserError
from ulmfit.files import beside, publish_new, sealed, unsealed, write_text

FORMAT_VERSION = 1
SAVE_EVERY = 1.0  # seconds between two positions on disk, at least
_BLOCK = 2**20  # bytes read at a time
_LONGEST = 2**24  # bytes of a position that are read


class Kept(UserError):
    """A mistake after which PATH.partial stays as it is."""


class _Tail(io.RawIOBase):
    """Appends to an open file, and knows size and CRC-32 of all that it holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.size, self.checksum = descriptor, 0, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._descriptor, view[done:])
        self.size, self.checksum = self.size + len(view), zlib.crc32(view, self.checksum)
        return len(view)


class ResumableFile:
    """A file that is being written. `resuming` makes it.

    Attributes:
        partial: PATH.partial.
        tail: takes the bytes, in whole rows between two calls of `reached`.
        rows: number of rows that it holds.
        place: JSON-able place in the input after these; None at the start.
        placed: where the file is, once it is whole.

    Raises:
        UserError: there is a PATH.partial of other origin, or it is damaged.
    """

    def __init__(self, path: Path, descriptor: int, identity: Mapping[str, Any]) -> None:
        self._path, self._descriptor, self._identity = path, descriptor, dict(identity)
        self.partial = partial_of(path)
        self.tail = _Tail(descriptor)
        self.rows, self.place = 0, None
        self.placed: Path | None = None
        self._told = self.partial.with_name(f"{self.partial.name}.json")
        if os.fstat(descriptor).st_size:
            self._take_up()
        os.ftruncate(descriptor, self.tail.size)
        os.lseek(descriptor, self.tail.size, os.SEEK_SET)
        self._position, self._saved = self._at(), time.monotonic()
        if not self.tail.size:
            self._save()

    def reached(self, rows: int, place: Any) -> None:
        """The bytes until now are `rows` rows, and the next one is at `place` in the input."""
        self.rows, self.place = rows, place
        self._position = self._at()
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._save()

    def publish(
        self, convert: Callable[[Path, Path], object] | None = None, place: Callable[[Path, Path], Path] = publish_new
    ) -> Path:
        """Give the whole file its name, or that of the first free one of PATH.1, PATH.2 ...; returns it.

        Args:
            convert: writes a new file (second argument) from the bytes (first argument), which takes its place.
            place: gives the new file its name.
        """
        if convert is None:
            self.placed = place(self.partial, self._path)
        else:
            with beside(self._path) as aside:
                convert(self.partial, aside)
                self.placed = place(aside, self._path)
        self.remove()
        return self.placed

    def keep(self) -> None:
        """Write the last position, for a later process; without rows, leave nothing."""
        if self._position["rows"]:
            os.ftruncate(self._descriptor, self._position["bytes"])
            self._save()
        else:
            self.remove()

    def remove(self) -> None:
        """Delete what is under the name PATH.partial."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.partial), os.fstat(self._descriptor)):
                self.partial.unlink()
        self._told.unlink(missing_ok=True)

    def _at(self) -> dict[str, Any]:
        return {"rows": self.rows, "bytes": self.tail.size, "sum": self.tail.checksum, "place": self.place}

    def _save(self) -> None:
        os.fsync(self._descriptor)
        content = {"format_version": FORMAT_VERSION, "identity": self._identity, **self._position}
        write_text(self._told, sealed(content) + "\n")
        self._saved = time.monotonic()

    def _take_up(self) -> None:
        """Go on with the bytes of an earlier process."""
        cure = "remove it to begin again, or name another file by --output"
        try:
            if self._told.stat().st_size > _LONGEST:
                raise ValueError("too long")
            told = unsealed(self._told.read_text(encoding="utf-8"))
            identity, rows, size, checksum = told["identity"], int(told["rows"]), int(told["bytes"]), told["sum"]
            same_format = told["format_version"] == FORMAT_VERSION and isinstance(identity, dict) and size >= 0
            self.place = told["place"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.partial} exists, and no readable {self._told.name} tells what it is made of; {cure}"
            ) from None
        if not same_format:
            raise UserError(f"{self.partial} was begun by another version of this program; {cure}")
        names = [*self._identity, *(name for name in identity if name not in self._identity)]
        other = [name for name in names if identity.get(name) != self._identity.get(name)]
        if other:
            raise UserError(f"{self.partial} was begun with another {' and another '.join(other)}; {cure}")
        with open(self.partial, "rb") as file:
            rest = size
            while rest and (block := file.read(min(rest, _BLOCK))):
                rest -= len(block)
                self.tail.checksum = zlib.crc32(block, self.tail.checksum)
        if rest or self.tail.checksum != checksum:
            raise UserError(f"{self.partial} has been changed since its {rows:,} rows were written; {cure}")
        self.rows, self.tail.size = rows, size


def partial_of(path: Path) -> Path:
    """The name of a file until it is whole."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def resuming(path: Path, identity: Mapping[str, Any]) -> Iterator[ResumableFile]:
    """Context for writing a new file, or for going on with it. One process at a time writes it.

    After a UserError other than `Kept`, a fault of the input, PATH.partial is deleted. After another exception, at a stop, and
    after a kill it stays for the next context.

    Args:
        identity: JSON-able values that determine the rows, under names for messages. A PATH.partial of other values is
            not touched.

    Raises:
        BlockingIOError: another process is writing this file.
        UserError: there is a PATH.partial of other origin, or it is damaged.
        OSError: the file cannot be written.
    """
    descriptor = _locked(partial_of(path))
    try:
        file = ResumableFile(path, descriptor, identity)
        try:
            yield file
        except Kept:
            raise
        except UserError:
            file.remove()
            raise
        finally:
            if file.placed is None:
                with suppress(OSError):  # the position before is on disk
                    if os.fstat(descriptor).st_nlink:
                        file.keep()
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Open a file for writing, created if need be. Returns its descriptor, which holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
            # Between opening and locking, the process that held the lock may have renamed its file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
