"""Writes an entry of the token cache, makes it durable at intervals, and resumes it after the process was killed.

During a build its directory contains `progress.json`, the last durable state: the size of every file, counts, and the
position in the split after the last document, and the checksums so far. A later writer truncates the files to these
sizes and appends. So the finished entry has the same bytes as one whose build was never interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ulmfit.batches.checksums import BlockSums
from ulmfit.batches.token_files import MANIFEST
from ulmfit.files import sealed, unsealed, write_text

FORMAT = 1  # versions up to 0.2.0 write no checksums; their entries are read without
SHARD_BYTES = 256 * 2**20
CHECKSUMS = "checksums.bin"
PROGRESS = "progress.json"


class CacheWriter:
    """Appends documents to the files of a cache entry in a directory of its own.

    Attributes:
        num_documents, num_tokens: stored so far.
        after: position in the split after the last document, as given to `add`; None at the beginning. A later writer
            resumes after the last durable document.
    """

    def __init__(self, path: Path, *, vocab_size: int, with_labels: bool) -> None:
        self.path, self.vocab_size = path, vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<i4")
        self._files: dict[str, BinaryIO] = {}  # those still open
        columns = ["lengths.bin", "rows.bin", CHECKSUMS, *(["labels.bin"] if with_labels else [])]
        progress = _read_progress(path)
        if progress is None:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir()
            progress = {
                "num_documents": 0,
                "num_tokens": 0,
                "after": None,
                "shards": ["tokens-00000.bin"],
                "sizes": dict.fromkeys([*columns, "tokens-00000.bin"], 0),
                "sums": dict.fromkeys(columns, 0),
                "block": [0, 0],
            }
        self.num_documents: int = progress["num_documents"]
        self.num_tokens: int = progress["num_tokens"]
        self.after: dict[str, Any] | None = progress["after"]
        self.shards: list[str] = progress["shards"]
        self._names: list[str] = list(progress["sizes"])
        self._sums: dict[str, int] = progress["sums"]  # of the columns
        self._block = BlockSums(*progress["block"])  # of the last shard
        for left in set(os.listdir(path)) - {*self._names, PROGRESS}:
            (path / left).unlink()
        for name in (*columns, self.shards[-1]):
            self._open(name, progress["sizes"][name])
        self._room = (SHARD_BYTES - progress["sizes"][self.shards[-1]]) // self.dtype.itemsize

    def _open(self, name: str, size: int = 0) -> None:
        """Truncate a file of the entry to `size` bytes and open it for appending."""
        self._files[name] = open(self.path / name, "ab")
        self._files[name].truncate(size)

    def _new_file(self, name: str) -> None:
        self._names.append(name)
        self._open(name)

    def _seal(self, name: str) -> None:
        """Make a finished file durable and close it."""
        with self._files.pop(name) as file:
            _sync_file(file)

    def _write(self, name: str, column: np.ndarray) -> None:
        """Append to a column."""
        self._files[name].write(column.data)
        self._sums[name] = zlib.crc32(column.data, self._sums[name])

    def _new_shard(self) -> None:
        self._write(CHECKSUMS, self._block.end())
        self._seal(self.shards[-1])
        self.shards.append(f"tokens-{len(self.shards):05d}.bin")
        self._new_file(self.shards[-1])
        self._room = SHARD_BYTES // self.dtype.itemsize

    def add(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        labels: Sequence[int] | np.ndarray | None,
        rows: Sequence[int] | np.ndarray,
        *,
        after: dict[str, Any],
    ) -> None:
        """Append documents. `after` is the position in the split after them."""
        lengths = np.ascontiguousarray(lengths, dtype="<i8")
        assert len(lengths) == len(rows) and int(lengths.sum()) == len(ids)
        assert len(ids) == 0 or 0 <= int(ids.min()) and int(ids.max()) < self.vocab_size
        ids = np.ascontiguousarray(ids, dtype=self.dtype)
        ends = np.cumsum(lengths)
        document = written = 0
        while document < len(lengths):
            # As many complete documents as fit into the shard, and at least one if the shard is empty.
            last = max(document, int(np.searchsorted(ends, written + self._room, side="right")))
            if last == document:
                if self._room == SHARD_BYTES // self.dtype.itemsize:
                    last += 1
                else:
                    self._new_shard()
                    continue
            stop = int(ends[last - 1])
            tokens = ids[written:stop].view(np.uint8).data
            self._files[self.shards[-1]].write(tokens)
            self._write(CHECKSUMS, self._block.add(tokens))
            self._room -= stop - written
            document, written = last, stop
        self._write("lengths.bin", lengths)
        self._write("rows.bin", np.asarray(rows, dtype="<i8"))
        if "labels.bin" in self._files:
            assert labels is not None and len(labels) == len(rows)
            self._write("labels.bin", np.asarray(labels, dtype="<i4"))
        self.num_documents += len(lengths)
        self.num_tokens += len(ids)
        self.after = after

    def save(self) -> None:
        """Make all documents added so far durable."""
        for file in self._files.values():
            _sync_file(file)
        self._publish(
            PROGRESS,
            {
                "num_documents": self.num_documents,
                "num_tokens": self.num_tokens,
                "after": self.after,
                "shards": self.shards,
                "sizes": self._sizes(),
                "sums": self._sums,
                "block": [self._block.crc, self._block.size],
            },
        )

    def _sizes(self) -> dict[str, int]:
        return {name: (self.path / name).stat().st_size for name in self._names}

    def _publish(self, name: str, content: dict[str, Any]) -> None:
        """Write a file atomically."""
        write_text(self.path / name, sealed(content))

    def finish(self, fingerprint: str, skipped: dict[str, int]) -> None:
        """Make all files durable, then write the manifest that declares them complete."""
        self._write(CHECKSUMS, self._block.end())
        self._write_offsets()
        for name in list(self._files):
            self._seal(name)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "vocab_size": self.vocab_size,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "dtype": self.dtype.str,
            "labels": "labels.bin" in self._names,
            "skipped": skipped,
            "shards": self.shards,
            "sizes": self._sizes(),
            "checksums": self._sums,
        }
        self._publish(MANIFEST, manifest)

    def _write_offsets(self) -> None:
        self._files["lengths.bin"].flush()
        self._sums["offsets.bin"] = 0
        self._new_file("offsets.bin")
        self._write("offsets.bin", np.zeros(1, dtype="<i8"))
        total = 0
        with open(self.path / "lengths.bin", "rb") as file:
            while content := file.read(8 * 2**20):
                ends = total + np.cumsum(np.frombuffer(content, dtype="<i8"))
                self._write("offsets.bin", ends)
                total = int(ends[-1])

    def close(self) -> None:
        """Close all files. Errors are ignored: after a failed write, flushing fails again."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def give_up(self) -> None:
        """Close after a failed write: keep what is durable, for a later writer, and free the rest of the space."""
        self.close()
        progress = _read_progress(self.path)
        with contextlib.suppress(OSError):
            if progress is None:
                shutil.rmtree(self.path)
            for name, size in progress["sizes"].items() if progress else ():
                os.truncate(self.path / name, size)


def _read_progress(path: Path) -> dict[str, Any] | None:
    """What `save` wrote last. None if nothing was saved, by a version without checksums, or a file is shorter now."""
    try:
        progress = unsealed((path / PROGRESS).read_text())
        whole = all((path / name).stat().st_size >= size for name, size in progress["sizes"].items())
        return progress if whole and "sums" in progress else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
