"""Atomic writes: a reader sees the complete old file or the complete new one, even if the writer is killed.

A file is written under a temporary name in the same folder, flushed to disk, and renamed. Then the folder is flushed,
which makes the rename durable. Also JSON with a checksum.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from ulmfit.processes import host_mark, process_alive

_TORN = ".*.tmp-*"
_DEEPEST = 100  # levels of a JSON text
_WRITER = re.compile(r"\..*\.tmp-([0-9a-f]{8})-(\d+)-\d+")  # the host and the process number in a temporary name
_SILENCE = 24 * 3600.0  # seconds without a change after which a writer on another host is taken for dead


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Context with a temporary name in the folder of `path`. At the end, a file that still has this name is deleted."""
    aside = _aside(path)
    try:
        yield aside
    finally:
        with suppress(OSError):  # must not hide the error that ends the context; `remove_dead` finds the file later
            aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context with a temporary folder beside `path`, into which the caller writes. At the end it is renamed to `path`.

    After an exception, also Ctrl-C, nothing is left. `path` must not exist.
    """
    short = path.with_name(path.name[:40])  # with what is added, a long name would be too long for a file system
    for torn in path.parent.glob(f".{glob.escape(short.name)}.tmp-*"):
        if torn.is_dir() and _is_dead(torn):
            shutil.rmtree(torn, ignore_errors=True)
    aside = _aside(short)
    try:
        aside.mkdir()
        yield aside
        publish(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    # The thread id is included, because several threads write status.json.
    return path.with_name(f".{path.name}.tmp-{host_mark()}-{os.getpid()}-{threading.get_native_id()}")


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Context in which another library writes `path`. At the end the file has the mode that `open` gives.

    safetensors creates its files readable by the owner only, whatever the umask. Then nobody else of a group could go
    on with a run, or use a model.
    """
    with open(path, "wb") as file:  # also observes a default ACL of the folder, which os.umask would not tell
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    yield
    with suppress(OSError):  # not every file system has modes
        os.chmod(path, mode)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Context with a temporary name, to which the caller writes a file. At the end the file replaces `path`.

    After an exception, or if the file cannot be flushed or renamed, `path` is unchanged and the temporary file is
    deleted. If `path` is a symbolic link, its target is replaced. A device or pipe is written directly.
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
    """Replace a small file atomically, in UTF-8."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def publish(aside: Path, path: Path) -> None:
    """Flush a temporary file or folder (not the files in the folder) and rename it to `path`."""
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def publish_new(aside: Path, path: Path) -> Path:
    """Rename a temporary file to `path` or, if that exists, to the first free name of PATH.1, PATH.2, ...

    Returns its path. No file is replaced. Once the file has its name, no error is raised.
    """
    sync(aside)
    for number in count():
        name = path.with_name(f"{path.name}.{number}") if number else path
        try:
            os.link(aside, name)  # not a rename, which would replace an existing file
        except FileExistsError:
            continue
        except OSError:  # the file system has no hard links
            if name.exists():
                continue
            os.replace(aside, name)
        break
    with suppress(OSError):  # the file is complete, and only a loss of power could still undo the rename
        sync(path.parent)
    return name


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder. There a rename is durable without it.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def is_torn(path: Path) -> bool:
    """Whether this is the temporary name of a file that is being written or whose writer was killed."""
    return path.match(_TORN)


def remove_torn(folder: Path) -> None:
    """Delete temporary files of killed writers in a folder. The caller must be the only writer there."""
    for torn in folder.glob(_TORN):
        if torn.is_file():
            torn.unlink(missing_ok=True)


def remove_dead(folder: Path) -> None:
    """Delete temporary files of writers that are dead, in a folder with several writers. No error is raised.

    A writer on this host is dead if its process is. One on another host, whose processes cannot be seen, is dead if
    the file has not changed for a day.
    """
    with suppress(OSError):
        for torn in list(folder.glob(_TORN)):
            with suppress(OSError):
                if torn.is_file() and _is_dead(torn):
                    torn.unlink(missing_ok=True)


def _is_dead(torn: Path) -> bool:
    writer = _WRITER.fullmatch(torn.name)
    if writer and writer[1] == host_mark():
        return not process_alive(int(writer[2]))
    return time.time() - torn.stat().st_mtime > _SILENCE


def sealed(content: dict[str, Any]) -> str:
    """JSON text of `content` with a checksum of its own."""
    content = json.loads(json.dumps(content))  # as it will be read back
    return json.dumps(content | {"checksum": _sum_of(content)}, indent=1)


def unsealed(text: str) -> dict[str, Any]:
    """Read the text of `sealed`. Text without a checksum (of version 0.2.0) is accepted.

    Raises:
        ValueError: it is damaged.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if "checksum" in content and content.pop("checksum") != _sum_of(content):
        raise ValueError("it does not match its checksum")
    return content


def parse_json(text: str | bytes) -> Any:
    """As json.loads, but with a ValueError also for text that is nested more than `_DEEPEST` levels.

    Python's stack would hold some more, but not what is done with the value later.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if is_deep(value):
        raise ValueError("it is nested too deeply")
    return value


def is_deep(value: Any) -> bool:
    """Whether a value of JSON is nested more than `_DEEPEST` levels, which recursive functions may not stand."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _sum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A hash of a file's content, 16 hex digits: the identity of weights in config.json."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
