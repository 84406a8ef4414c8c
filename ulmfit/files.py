"""Atomic writes: whoever looks at a file sees the old one or the new one, whole, whenever the writer is killed.

A file is written under another name beside its own, flushed to the disk, and renamed; then the folder is flushed,
which makes the rename last. Imports nothing of this package.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_TORN = ".*.tmp-*"


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or folder under; a file that has not been moved away goes at the end."""
    # The thread too: status.json has several writers.
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_native_id()}")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Within it the file of the name given is written; at its end it takes the place of `path`.

    After an exception, or where the file cannot be flushed or renamed, `path` is as it was and nothing is left
    beside it. A link stays one: the file that it leads to is replaced. A device or a pipe is written to directly.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    with beside(path) as aside:
        yield aside
        publish(aside, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a small file as a whole, in UTF-8."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def publish(aside: Path, path: Path) -> None:
    """Flush a file or a folder that was written aside (not what lies in the folder) and give it its name."""
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def publish_new(aside: Path, path: Path) -> Path:
    """Give a file that was written aside its name, or where that is taken the first free one of PATH.1, PATH.2, ...

    Returns its path. Nothing is replaced.
    """
    sync(aside)
    for number in count():
        name = path.with_name(f"{path.name}.{number}") if number else path
        try:
            os.link(aside, name)  # a rename would replace what is there
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if name.exists():
                continue
            os.replace(aside, name)
        break
    sync(path.parent)
    return name


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; their renames are durable by themselves.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def is_torn(path: Path) -> bool:
    """Whether this is the name of a file that is being written, or whose writer was killed."""
    return path.match(_TORN)


def remove_torn(folder: Path) -> None:
    """Delete what writers that were killed left in a folder, for the one who alone may write there."""
    for torn in folder.glob(_TORN):
        if torn.is_file():
            torn.unlink(missing_ok=True)
