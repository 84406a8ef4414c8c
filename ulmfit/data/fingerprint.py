"""Fingerprint of a corpus: a hash of the complete content of its files, equal on all machines with copies of them.

It does not depend on paths and times. So it is the same if each machine copies the corpus to its own disk, or if the
corpus is copied again for a requeued job. The hash of a file is cached in the cache directory, by path, size,
modification time, change time and inode, so that a second start need not read the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulmfit.data.locations import is_local, is_url, open_binary, size_of, version_of
from ulmfit.files import sealed, unsealed, write_text

# The method. 1, of version 0.1.0, uses modification times for corpora larger than `_SMALL`. Until 2, of version 0.2.0,
# the way of reading is not part of the fingerprint: .csv and .tsv were read by pandas with a fixed separator. Since 3,
# rows are held out by a stratified draw (see `holdout`).
SCHEME = 3
# The version of the readers of files. It changes whenever a file may give other rows than before.
READER = 2
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
BLOCK = 16 * 2**20  # bytes hashed by one thread at a time
_THREADS = min(4, os.cpu_count() or 1)
# If a file is changed twice within the time resolution of its file system, its status is the same after both changes.
# So only a status older than the coarsest resolution is cached.
_TICK = 2 * 10**9  # nanoseconds
_SMALL, _MANY = 256 * 2**20, 10_000  # up to so many bytes and files, scheme 1 uses the content

Revision = str | Mapping[str, str] | None  # of a hub data set, or by name of those in a mixture


def _nothing(*_: object) -> None:
    """The default callback: does nothing."""


@dataclass(frozen=True)
class Access:
    """Settings for opening and reading sources.

    Attributes:
        streaming: read data sets of the hub without the Arrow cache of `datasets`. Files are never copied.
        cache_dir: directory for the cache of file hashes; None: no cache.
        revision: of a hub data set, as resolved by the run's first start, or of those of a mixture by name; None: the
            newest.
        scheme: method of fingerprints: `SCHEME`, or that of the run's first start.
        beat: heartbeat, called repeatedly while rows are read or skipped.
        hashed: called with (bytes read, bytes in all) while files are hashed.
        separator: of tables, as --separator gives it; None: to be found in the file.
        encoding: of text files; None: to be found in each file.
        header: whether the first line of tables names the columns; None: to be found in the file.
        by_content: fingerprints of URLs are of their content, which is read for it. Else they are of size and tag or
            time, as the store tells them.
    """

    streaming: bool = False
    cache_dir: Path | None = None
    revision: Revision = None
    scheme: int = SCHEME
    beat: Callable[[], None] = field(default=_nothing, repr=False)
    hashed: Callable[[int, int], None] = field(default=_nothing, repr=False)
    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None
    by_content: bool = True


def hash_of(value: object) -> str:
    """A hash of a value that `repr` tells apart, 16 hex digits."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def fingerprint(
    kind: str, files: Sequence[str], labels: Sequence[str] | None, access: Access, form: object = None
) -> str:
    """Fingerprint (16 hex digits) of files that are read as `kind` in the given order.

    It depends on their content, order, compression and labels (one per file), not on paths or times.

    Args:
        form: how the files are read, as far as their content does not say it: a value that `repr` tells apart.
    """
    if access.scheme == 1:
        return _by_time(kind, files)
    head = f"{access.scheme} {kind}" if access.scheme == 2 else f"{SCHEME} {kind} {READER} {form!r}"
    digest = hashlib.sha256(head.encode())
    for number, content in enumerate(_contents(files, access)):
        suffix = Path(files[number]).suffix.lower()
        mark = [suffix if suffix in COMPRESSED else "", labels[number] if labels is not None else None]
        digest.update(f"\n{json.dumps(mark)} {content}".encode())
    return digest.hexdigest()[:16]


def _by_time(kind: str, files: Sequence[str]) -> str:
    """Fingerprint by scheme 1, for runs that were started with it."""
    digest = hashlib.sha256(kind.encode())
    stats = [os.stat(path) for path in files]
    small = sum(stat.st_size for stat in stats) <= _SMALL and len(files) <= _MANY
    for path, stat in zip(files, stats, strict=True):
        name = "/".join(Path(path).parts[-2:] if kind == "documents" else Path(path).parts[-1:])
        digest.update(f"\n{name} {stat.st_size} ".encode("utf-8", "replace"))
        if small:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def _contents(files: Sequence[str], access: Access) -> Iterator[str]:
    """Yield the hash of each file's content, in order. Files without a cached hash are read."""
    memory = _Memory(access.cache_dir)
    total = sum(map(size_of, files))
    done = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as threads:
        for path in files:
            before = _status(path)
            content = memory.recall(path, before)
            if content is None and not access.by_content and is_url(path):
                content = f"{before}"
            if content is None:
                digest = hashlib.sha256()
                for block, size in _blocks(path, threads):
                    digest.update(block)
                    done += size
                    access.beat()
                    access.hashed(done, total)
                content = digest.hexdigest()
                memory.remember(path, before, content)
            else:
                done += before[0]
            yield content
    memory.save()


def _blocks(path: str, threads: ThreadPoolExecutor) -> Iterator[tuple[bytes, int]]:
    """Yield (SHA-256, size) of each `BLOCK` of a file. Several are hashed in parallel, and only a few are in memory."""
    waiting: deque[tuple[Future[bytes], int]] = deque()
    with open_binary(path) as file:
        while block := file.read(BLOCK):
            waiting.append((threads.submit(_sha256, block), len(block)))
            if len(waiting) > _THREADS:
                future, size = waiting.popleft()
                yield future.result(), size
    for future, size in waiting:
        yield future.result(), size


def _sha256(block: bytes) -> bytes:
    return hashlib.sha256(block).digest()


class _Memory:
    """The cache of file hashes, one JSON file for each folder of files.

    It is no error if it cannot be read or written: then files are read again. If two processes write at the same time,
    the later one overwrites the other's hashes, and these are computed again next time.
    """

    def __init__(self, cache_dir: Path | None) -> None:
        self._folder = None if cache_dir is None else cache_dir / "files"
        self._known: dict[str, dict[str, list]] = {}  # folder of files -> name -> [status, content]
        self._changed: set[str] = set()

    def recall(self, path: str, status: list[Any]) -> str | None:
        folder, name = _split(path)
        with suppress(TypeError, ValueError):
            known, content = self._of(folder).get(name, [])
            if known == status and isinstance(content, str):
                return content
        return None

    def remember(self, path: str, before: list[Any], content: str) -> None:
        """Cache a hash, unless the file was, or could have been, changed while it was read."""
        after = _status(path)
        if before != after or is_local(path) and time.time_ns() - max(after[1:3]) < _TICK:
            return
        folder, name = _split(path)
        self._of(folder)[name] = [after, content]
        self._changed.add(folder)

    def save(self) -> None:
        for folder in self._changed if self._folder is not None else ():
            file = self._file(folder)
            with suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, sealed({"files": self._known[folder]}))

    def _of(self, folder: str) -> dict[str, list]:
        if folder not in self._known:
            self._known[folder] = {}
            if self._folder is not None:
                with suppress(OSError, ValueError):
                    stored = unsealed(self._file(folder).read_text(encoding="utf-8")).get("files")
                    self._known[folder] = stored if isinstance(stored, dict) else {}
        return self._known[folder]

    def _file(self, folder: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _split(path: str) -> tuple[str, str]:
    return os.path.split(os.path.abspath(path) if is_local(path) else path)


def _status(path: str) -> list[Any]:
    """The size of a file, and what changes with its content."""
    if not is_local(path):
        return version_of(path) if is_url(path) else [size_of(path)]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
