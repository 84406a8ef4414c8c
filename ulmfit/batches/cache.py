"""The token cache: a corpus is tokenised once, whatever the number of epochs, ranks and runs.

Layout of one cache entry, a directory named by its key (fingerprints of split and tokenizer, format):

    tokens-00000.bin ...   ids, little-endian uint16 or int32; a document never crosses shards
    lengths.bin rows.bin [labels.bin]    int64, int64, int32: one number a document
    offsets.bin            int64 [n + 1]: where each document starts in the corpus of all tokens
    manifest.json          written last: counts, dtype, the size in bytes of every file

Everything is appended while the split is read, so memory does not grow with the corpus. A build happens in
a directory beside the target, which is renamed when complete: an entry is whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from ulmfit.batches.prefetch import Prefetcher
from ulmfit.errors import UserError

FORMAT = 1
SHARD_BYTES = 256 * 2**20
_MANIFEST = "manifest.json"


class TokenStore:
    """Token ids of a corpus, memory-mapped: nothing is read from disk before it is asked for.

    Attributes:
        num_documents, num_tokens, vocab_size: counts.
        offsets: int64 [num_documents + 1], document i is tokens offsets[i] to offsets[i + 1] of the corpus.
        lengths: int64 [num_documents].
        labels: int32 [num_documents], or None for a corpus without.
        rows: int64 [num_documents], each document's row number in its source, from 0.
        fingerprint: str that no other split or tokenizer has.
        skipped: reason -> number of source rows that were left out.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.num_documents: int = manifest["num_documents"]
        self.num_tokens: int = manifest["num_tokens"]
        self.vocab_size: int = manifest["vocab_size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.skipped: dict[str, int] = manifest["skipped"]
        self.dtype = np.dtype(manifest["dtype"])
        self._shards = [_map(path / name, self.dtype) for name in manifest["shards"]]
        self._shard_starts = np.cumsum([0, *(len(shard) for shard in self._shards[:-1])])
        self.offsets = _map(path / "offsets.bin", np.dtype("<i8"))
        self.lengths = _map(path / "lengths.bin", np.dtype("<i8"))
        self.rows = _map(path / "rows.bin", np.dtype("<i8"))
        self.labels = _map(path / "labels.bin", np.dtype("<i4")) if manifest["labels"] else None

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a complete cache entry. UserError if it is absent, torn or of another format."""
        store = cls._open_if_complete(Path(path))
        if store is None:
            raise UserError(f"{path} holds no complete token cache: delete it and let it be built again.")
        return store

    @classmethod
    def _open_if_complete(cls, path: Path) -> TokenStore | None:
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                return None
            if any((path / name).stat().st_size != size for name, size in manifest["sizes"].items()):
                return None
            return cls(path, manifest)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __len__(self) -> int:
        return self.num_documents

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, a read-only view of the mapped file (uint16 or int32)."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        first = int(self._shard_starts[shard])
        return self._shards[shard][start - first:stop - first]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Several documents in the order given: their ids one after another, and int64 lengths [n]."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = np.asarray(self.lengths[indices])
        return self.gather(self.offsets[indices], lengths), lengths

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Concatenated pieces of documents: piece k is tokens starts[k] to starts[k] + lengths[k].

        One indexed read instead of a Python loop over pieces. Each piece must lie inside one document.
        """
        starts, lengths = np.asarray(starts), np.asarray(lengths)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        if len(self._shards) == 1:
            positions = np.repeat(starts - (ends - lengths), lengths)
            positions += np.arange(total)
            return self._shards[0].take(positions)
        # Many shards: pieces are few beside tokens, so slices cost less than a selection by shard.
        ids = np.empty(total, dtype=self.dtype)
        shards = np.searchsorted(self._shard_starts, starts, side="right") - 1
        begins = starts - self._shard_starts[shards]
        pieces = np.stack([shards, begins, lengths, ends]).T.tolist()
        for shard, begin, length, end in pieces:
            ids[end - length:end] = self._shards[shard][begin:begin + length]
        return ids


def build_or_open(split: Any, tokenizer: Any, cache_dir: str | Path, *, with_labels: bool,
                  progress: Callable[[int, int], None] | None = None) -> TokenStore:
    """The token cache of a split, built by the first process that asks and opened by all others.

    Args:
        split: a `text.corpus.Split`; its `check()` is called at the end of the pass.
        tokenizer: a `text.tokenizer.Tokenizer`.
        cache_dir: directory shared by the ranks of a machine, made if absent.
        with_labels: whether documents carry class numbers.
        progress: called with (documents, tokens) so far after every batch, in the building process only.

    Raises:
        UserError: what reading the split raises, or when `cache_dir` cannot be written.
    """
    cache_dir = Path(cache_dir)
    identity = f"{FORMAT}/{split.fingerprint}/{tokenizer.fingerprint}/{with_labels}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_dir / key
    store = TokenStore._open_if_complete(path)
    if store is not None:
        return store
    with _writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache_dir / f"{key}.lock")
        lock.acquire()
    try:
        store = TokenStore._open_if_complete(path)
        if store is None:
            _build(split, tokenizer, path, key, with_labels=with_labels, progress=progress)
            store = TokenStore.open(path)
        return store
    finally:
        lock.release()


def _build(split: Any, tokenizer: Any, path: Path, key: str, *, with_labels: bool,
           progress: Callable[[int, int], None] | None) -> None:
    """Write a cache entry to `path`. The caller holds its lock."""
    partial = path.with_name(key + ".partial")
    with _writing(path.parent):
        # We hold the lock, so these were left by a killed build or damaged later.
        for left in (partial, path):
            if left.exists():
                shutil.rmtree(left)
        writer = _Writer(partial, vocab_size=len(tokenizer), with_labels=with_labels)
    try:
        # One thread reads ahead while the tokenizer keeps the other cores busy.
        with Prefetcher(split.batches()) as batches:
            for batch in batches:
                ids, lengths = tokenizer.encode_flat(batch.texts)
                with _writing(path.parent):
                    writer.add(ids, lengths, batch.labels if with_labels else None, batch.rows)
                if progress is not None:
                    progress(writer.num_documents, writer.num_tokens)
        split.check()
        if writer.num_documents == 0:
            raise UserError(f"The split {split.name!r} holds no documents: check the data and its columns.")
        with _writing(path.parent):
            writer.finish(key, dict(split.skipped))
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)


class _Writer:
    """Appends documents to the files of a cache entry in a directory of its own."""

    def __init__(self, path: Path, *, vocab_size: int, with_labels: bool) -> None:
        path.mkdir()
        self.path, self.vocab_size = path, vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<i4")
        self.num_documents = self.num_tokens = 0
        self.shards: list[str] = []
        self._names: list[str] = []
        self._files: dict[str, BinaryIO] = {}  # those still open
        for name in ("lengths.bin", "rows.bin", *(["labels.bin"] if with_labels else [])):
            self._open(name)
        self._new_shard()

    def _open(self, name: str) -> None:
        self._names.append(name)
        self._files[name] = open(self.path / name, "wb")

    def _seal(self, name: str) -> None:
        """Make a finished file durable and give its descriptor back."""
        with self._files.pop(name) as file:
            file.flush()
            os.fsync(file.fileno())

    def _new_shard(self) -> None:
        if self.shards:
            self._seal(self.shards[-1])
        self.shards.append(f"tokens-{len(self.shards):05d}.bin")
        self._open(self.shards[-1])
        self._room = SHARD_BYTES // self.dtype.itemsize

    def add(self, ids: np.ndarray, lengths: np.ndarray, labels: Sequence[int] | None,
            rows: Sequence[int]) -> None:
        lengths = np.ascontiguousarray(lengths, dtype="<i8")
        assert len(lengths) == len(rows) and int(lengths.sum()) == len(ids)
        assert len(ids) == 0 or 0 <= int(ids.min()) and int(ids.max()) < self.vocab_size
        ids = np.ascontiguousarray(ids, dtype=self.dtype)
        ends = np.cumsum(lengths)
        document = written = 0
        while document < len(lengths):
            # As many whole documents as the shard has room for, and at least one if it is empty.
            last = max(document, int(np.searchsorted(ends, written + self._room, side="right")))
            if last == document:
                if self._room == SHARD_BYTES // self.dtype.itemsize:
                    last += 1
                else:
                    self._new_shard()
                    continue
            stop = int(ends[last - 1])
            self._files[self.shards[-1]].write(ids[written:stop])
            self._room -= stop - written
            document, written = last, stop
        self._files["lengths.bin"].write(lengths)
        self._files["rows.bin"].write(np.asarray(rows, dtype="<i8"))
        if "labels.bin" in self._files:
            assert labels is not None and len(labels) == len(rows)
            self._files["labels.bin"].write(np.asarray(labels, dtype="<i4"))
        self.num_documents += len(lengths)
        self.num_tokens += len(ids)

    def finish(self, fingerprint: str, skipped: dict[str, int]) -> None:
        """Make all files durable, then write the manifest that declares them complete."""
        self._write_offsets()
        for name in list(self._files):
            self._seal(name)
        manifest = {
            "format": FORMAT, "fingerprint": fingerprint, "vocab_size": self.vocab_size,
            "num_documents": self.num_documents, "num_tokens": self.num_tokens, "dtype": self.dtype.str,
            "labels": "labels.bin" in self._names, "skipped": skipped, "shards": self.shards,
            "sizes": {name: (self.path / name).stat().st_size for name in self._names},
        }
        with open(self.path / _MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def _write_offsets(self) -> None:
        self._files["lengths.bin"].flush()
        self._open("offsets.bin")
        file, total = self._files["offsets.bin"], 0
        file.write(np.zeros(1, dtype="<i8"))
        lengths = _map(self.path / "lengths.bin", np.dtype("<i8"))
        for first in range(0, len(lengths), 2**20):
            ends = total + np.cumsum(lengths[first:first + 2**20])
            file.write(ends)
            total = int(ends[-1])

    def close(self) -> None:
        """Give up what is still open; after a failed write, flushing it fails once more."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def _writing(cache_dir: Path) -> Iterator[None]:
    """A failed write is a full disk or a directory that is not ours: the user's to cure."""
    try:
        yield
    except OSError as error:
        raise UserError(f"The token cache cannot be written to {cache_dir} ({error.strerror or error}): free "
                        "space there or choose another cache directory.") from error


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file as a read-only array; a plain view of the map, whose slices cost less than a np.memmap's."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _sync(directory: Path) -> None:
    """Make a rename in this directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
