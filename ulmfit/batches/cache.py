"""The token cache. A corpus is tokenised once for all epochs, ranks and runs.

Layout of one cache entry, a directory named by its key (fingerprints of split and tokenizer, format):

    tokens-00000.bin ...   ids, little-endian uint16 or int32; a document never crosses shards
    lengths.bin rows.bin [labels.bin]    int64, int64, int32: one number per document
    offsets.bin            int64 [n + 1]: index of each document's first token in the corpus
    manifest.json          written last: counts, dtype, the size in bytes of every file

Files are appended while the split is read, so memory does not grow with the corpus. An entry is built in a directory
next to its final path and renamed when complete, so an entry is complete or absent. A build that was killed is resumed
from its last durable state (`cache_writer`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ulmfit.batches.cache_writer import FORMAT, MANIFEST, PROGRESS, CacheWriter, map_file, writing
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.errors import UserError
from ulmfit.files import publish

SAVE_SECONDS = 20.0  # seconds between durable states: the most work that is lost if a build is killed
ENCODERS = 2  # batches encoded at a time: one uses the cores while the other is converted from Rust lists to arrays


class TokenStore:
    """Token ids of a corpus, memory-mapped: data is read from disk on access.

    Attributes:
        num_documents, num_tokens, vocab_size: counts.
        offsets: int64 [num_documents + 1]; document i is the tokens offsets[i] to offsets[i + 1] - 1 of the corpus.
        lengths: int64 [num_documents].
        labels: int32 [num_documents], or None for a corpus without labels.
        rows: int64 [num_documents], each document's row number in its source, from 0.
        fingerprint: str, unique for a split and a tokenizer.
        skipped: reason -> number of source rows that were skipped.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.num_documents: int = manifest["num_documents"]
        self.num_tokens: int = manifest["num_tokens"]
        self.vocab_size: int = manifest["vocab_size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.skipped: dict[str, int] = manifest["skipped"]
        self.dtype = np.dtype(manifest["dtype"])
        self._shards = [map_file(path / name, self.dtype) for name in manifest["shards"]]
        self._shard_starts = np.cumsum([0, *(len(shard) for shard in self._shards[:-1])])
        self.offsets = map_file(path / "offsets.bin", np.dtype("<i8"))
        self.lengths = map_file(path / "lengths.bin", np.dtype("<i8"))
        self.rows = map_file(path / "rows.bin", np.dtype("<i8"))
        self.labels = map_file(path / "labels.bin", np.dtype("<i4")) if manifest["labels"] else None

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a complete cache entry. Raises UserError if it is absent, incomplete or of another format."""
        store = cls._open_if_complete(Path(path))
        if store is None:
            raise UserError(f"{path} holds no complete token cache; delete it and let it be built again")
        return store

    @classmethod
    def _open_if_complete(cls, path: Path) -> TokenStore | None:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                return None
            if any((path / name).stat().st_size != size for name, size in manifest["sizes"].items()):
                return None
            return cls(path, manifest)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __len__(self) -> int:
        return self.num_documents

    def subset(self, indices: np.ndarray) -> TokenStore:
        """A store of the given documents, in the given order. It reads from the same files."""
        part = copy.copy(self)
        part.num_documents = len(indices)
        part.offsets, part.lengths, part.rows = (array[indices] for array in (self.offsets, self.lengths, self.rows))
        part.labels = None if self.labels is None else self.labels[indices]
        part.num_tokens = int(part.lengths.sum())
        return part

    def document(self, index: int) -> np.ndarray:
        """Ids of one document: a read-only view of the mapped file (uint16 or int32)."""
        start = int(self.offsets[index])
        stop = start + int(self.lengths[index])
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        first = int(self._shard_starts[shard])
        return self._shards[shard][start - first : stop - first]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read documents in the given order. Returns their concatenated ids and their lengths, int64 [n]."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = np.asarray(self.lengths[indices])
        return self.gather(self.offsets[indices], lengths), lengths

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Concatenate pieces of documents; piece k is `lengths[k]` tokens from `starts[k]` on.

        This is one indexed read instead of a Python loop. Each piece must be within one document.
        """
        starts, lengths = np.asarray(starts), np.asarray(lengths)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        if len(self._shards) == 1:
            positions = np.repeat(starts - (ends - lengths), lengths)
            positions += np.arange(total)
            return self._shards[0].take(positions)
        # Several shards: there are far fewer pieces than tokens, so a loop over pieces is cheap.
        ids = np.empty(total, dtype=self.dtype)
        shards = np.searchsorted(self._shard_starts, starts, side="right") - 1
        begins = starts - self._shard_starts[shards]
        pieces = np.stack([shards, begins, lengths, ends]).T.tolist()
        for shard, begin, length, end in pieces:
            ids[end - length : end] = self._shards[shard][begin : begin + length]
        return ids


def build_or_open(
    split: Any,
    tokenizer: Any,
    cache_dir: str | Path,
    *,
    with_labels: bool,
    progress: Callable[[Any], None] | None = None,
) -> TokenStore:
    """The token cache of a split. The first process that calls this builds it; others wait and open it.

    Args:
        split: a `data.splits.Split`; its `check()` is called at the end of the pass.
        tokenizer: a `tokenizer.tokenizer.Tokenizer`.
        cache_dir: directory shared by the ranks of a machine; created if absent.
        with_labels: whether documents have class numbers.
        progress: called with every batch of the split after it was tokenised, only in the building process.

    Raises:
        UserError: reading the split raises it, or `cache_dir` cannot be written.
    """
    cache_dir = Path(cache_dir)
    identity = f"{FORMAT}/{split.fingerprint}/{tokenizer.fingerprint}/{with_labels}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_dir / key
    store = TokenStore._open_if_complete(path)
    if store is not None:
        return store
    with writing(cache_dir):
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


def _build(
    split: Any, tokenizer: Any, path: Path, key: str, *, with_labels: bool, progress: Callable[[Any], None] | None
) -> None:
    """Write a cache entry to `path`, or complete one whose build was killed. The caller must hold its lock."""
    partial = path.with_name(key + ".partial")
    with writing(path.parent):
        if path.exists():
            shutil.rmtree(path)  # damaged: build it again
        writer = CacheWriter(partial, vocab_size=len(tokenizer), with_labels=with_labels)
    try:
        saved = time.monotonic()
        # One thread reads ahead, others encode, this one writes.
        with Prefetcher(split.batches(start=writer.after)) as batches:
            for batch, ids, lengths in _encoded(batches, tokenizer):
                with writing(path.parent):
                    writer.add(ids, lengths, batch.labels if with_labels else None, batch.rows)
                    if time.monotonic() - saved >= SAVE_SECONDS:
                        writer.save(batch.after)
                        saved = time.monotonic()
                if progress is not None:
                    progress(batch)
        split.check()
        if writer.num_documents == 0:
            raise UserError(f"the split {split.name!r} holds no documents; check the data and its columns")
        with writing(path.parent):
            writer.finish(key, dict(split.skipped))
            publish(partial, path)
            (path / PROGRESS).unlink(missing_ok=True)
    except UserError:  # bad rows or a full disk: the partial build is of no use
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        writer.close()


def _encoded(batches: Iterable[Any], tokenizer: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each batch with its ids (int32) and lengths (int64), in order. Some batches are encoded ahead."""
    waiting: deque[tuple[Any, Any]] = deque()
    with ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode") as threads:
        for batch in batches:
            waiting.append((batch, threads.submit(tokenizer.encode_flat, batch.texts)))
            if len(waiting) > ENCODERS:
                batch, encoded = waiting.popleft()
                yield batch, *encoded.result()
        for batch, encoded in waiting:
            yield batch, *encoded.result()
