"""The token cache. A corpus is tokenised once for all epochs, ranks and runs.

Layout of one cache entry, a directory named by its key (fingerprints of split and tokenizer, format):

    tokens-00000.bin ...   ids, little-endian uint16 or int32; a document never crosses shards
    lengths.bin rows.bin [labels.bin]    int64, int64, int32: one number per document
    offsets.bin            int64 [n + 1]: index of each document's first token in the corpus
    checksums.bin          uint32: CRC-32 of each block of the tokens (`checksums`)
    manifest.json          written last: counts, dtype, the size in bytes of every file, the checksums of the others

Files are appended while the split is read, so memory does not grow with the corpus. An entry is built in a directory
next to its final path and renamed when complete, so an entry is complete or absent. A build that was killed is resumed
from its last durable state (`cache_writer`). A damaged entry is noticed when it is opened or read (`checksums`).
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ulmfit.batches.cache_writer import CHECKSUMS, FORMAT, PROGRESS, CacheWriter
from ulmfit.batches.checksums import read_column
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.batches.token_files import MANIFEST, TokenFiles
from ulmfit.cache_folder import locked, writing
from ulmfit.errors import UserError
from ulmfit.files import publish, unsealed

SAVE_SECONDS = 20.0  # seconds between durable states: the most work that is lost if a build is killed
ENCODERS = 2  # batches encoded at a time: one uses the cores while the other is converted from Rust lists to arrays

Waiting = Callable[[], AbstractContextManager[None]]
T = TypeVar("T")


class TokenStore:
    """Token ids of a corpus. Columns are in memory, and tokens are read from disk on access.

    Attributes:
        num_documents, num_tokens, vocab_size: counts.
        offsets: int32 or int64 [num_documents + 1]; document i is the tokens offsets[i] to offsets[i + 1] - 1 of the
            corpus.
        lengths: int32 or int64 [num_documents].
        labels: int32 [num_documents], or None for a corpus without labels.
        fingerprint: str, unique for a split and a tokenizer.
        skipped: reason -> number of source rows that were skipped.
        token_files: the files of the entry.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.num_documents: int = manifest["num_documents"]
        self.num_tokens: int = manifest["num_tokens"]
        self.vocab_size: int = manifest["vocab_size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.skipped: dict[str, int] = manifest["skipped"]
        self.dtype = np.dtype(manifest["dtype"])
        sums = manifest.get("checksums", {})  # empty in an entry of version 0.2.0
        self.offsets = _narrow(read_column(path / "offsets.bin", "<i8", sums.get("offsets.bin")))
        self.lengths = _narrow(read_column(path / "lengths.bin", "<i8", sums.get("lengths.bin")))
        self.labels = read_column(path / "labels.bin", "<i4", sums.get("labels.bin")) if manifest["labels"] else None
        self._rows_sum = sums.get("rows.bin")
        self._chosen: np.ndarray | None = None  # of a subset: its documents in the entry
        blocks = read_column(path / CHECKSUMS, "<u4", sums[CHECKSUMS]) if sums else None
        shards = {name: manifest["sizes"][name] for name in manifest["shards"]}
        self.token_files = TokenFiles(path, shards, self.dtype, blocks)
        self._tokens: Any = self.token_files

    @property
    def rows(self) -> np.ndarray:
        """Each document's row number in its source, from 0: int64 [num_documents]. Read on access: few need it."""
        try:
            rows = read_column(self.path / "rows.bin", "<i8", self._rows_sum)
        except (OSError, ValueError) as error:
            raise UserError(f"the token cache {self.path} is damaged ({error}); delete it, it is built anew") from error
        return rows if self._chosen is None else rows[self._chosen]

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a complete cache entry. Raises UserError if it is absent, incomplete or of another format."""
        store = cls.open_if_complete(Path(path))
        if store is None:
            raise UserError(f"{path} holds no complete token cache; delete it and let it be built again")
        return store

    @classmethod
    def open_if_complete(cls, path: Path) -> TokenStore | None:
        """Open a cache entry; None if it is absent, incomplete, damaged or of another format."""
        try:
            manifest = unsealed((path / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                return None
            if any((path / name).stat().st_size != size for name, size in manifest["sizes"].items()):
                return None
            return cls(path, manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def __len__(self) -> int:
        return self.num_documents

    def of_epoch(self, seed: int, epoch: int) -> Any:
        """What training reads in an epoch: all documents. A mixture of sources reads others in each (see `mixture`)."""
        return self

    def subset(self, indices: np.ndarray) -> TokenStore:
        """A store of the given documents, in the given order. It reads from the same files."""
        part = copy.copy(self)
        part.num_documents = len(indices)
        part.offsets, part.lengths = self.offsets[indices], self.lengths[indices]
        part._chosen = indices if self._chosen is None else self._chosen[indices]
        part.labels = None if self.labels is None else self.labels[indices]
        part.num_tokens = int(part.lengths.sum())
        return part

    def reading(self, tokens: Any) -> TokenStore:
        """The same store, whose tokens are gathered by `tokens.gather`."""
        other = copy.copy(self)
        other._tokens = tokens
        return other

    def document(self, index: int) -> np.ndarray:
        """Ids of one document (uint16 or int32). Raises as `gather`."""
        return self.read([index])[0]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read documents in the given order. Returns their concatenated ids and their lengths, int64 [n]."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[indices].astype(np.int64)
        return self.gather(self.offsets[indices], lengths), lengths

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Concatenate pieces of documents; piece k is `lengths[k]` tokens from `starts[k]` on.

        Each piece must be within one document.

        Raises:
            UserError: the entry is damaged. It is built again at the next start.
            OSError: it cannot be read.
        """
        return self._tokens.gather(np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64))


def _narrow(column: np.ndarray) -> np.ndarray:
    """A column in half of the memory, where its numbers allow it: every rank of a machine holds one."""
    fits = not len(column) or int(column.max()) <= np.iinfo(np.int32).max
    return column.astype(np.int32) if fits else column


def build_or_open(
    split: Any,
    tokenizer: Any,
    cache_dir: str | Path,
    *,
    with_labels: bool,
    progress: Callable[[Any], None] | None = None,
    waiting: Waiting = nullcontext,
) -> TokenStore:
    """The token cache of a split. The first process that calls this builds it; others wait and open it.

    Args:
        split: a `data.splits.Split`; its `check()` is called at the end of the pass.
        tokenizer: a `tokenizer.tokenizer.Tokenizer`.
        cache_dir: directory shared by the ranks of a machine; created if absent.
        with_labels: whether documents have class numbers.
        progress: called with every batch of the split after it was tokenised, only in the building process.
        waiting: contexts in which this function waits for another process or for texts. It may be interrupted there: an
            exception that is no Exception leaves all that was built for the next start.

    Raises:
        UserError: reading the split raises it, or `cache_dir` cannot be written.
    """
    cache_dir = Path(cache_dir)
    key = key_of(split, tokenizer, with_labels=with_labels)
    path = cache_dir / key
    store = TokenStore.open_if_complete(path)
    if store is not None:
        return store
    with waiting():
        lock = locked(cache_dir / f"{key}.lock")
    try:
        store = TokenStore.open_if_complete(path)
        if store is None:
            _build(split, tokenizer, path, key, with_labels=with_labels, progress=progress, waiting=waiting)
            store = TokenStore.open(path)
        return store
    finally:
        lock.release()


def key_of(split: Any, tokenizer: Any, *, with_labels: bool) -> str:
    """The name of a split's cache entry, 32 hex digits."""
    identity = f"{FORMAT}/{split.fingerprint}/{tokenizer.fingerprint}/{with_labels}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _build(
    split: Any,
    tokenizer: Any,
    path: Path,
    key: str,
    *,
    with_labels: bool,
    progress: Callable[[Any], None] | None,
    waiting: Waiting,
) -> None:
    """Write a cache entry to `path`, or complete one whose build was killed. The caller must hold its lock."""
    with being_built(path, vocab_size=len(tokenizer), with_labels=with_labels, follows=_in_one) as writer:
        tokenise(writer, split, tokenizer, with_labels=with_labels, progress=progress, waiting=waiting)
        split.check()
        if writer.num_documents == 0:
            raise UserError(f"the split {split.name!r} holds no documents; check the data and its columns")
        publish_entry(writer, path, key, dict(split.skipped))


def _in_one(after: Any) -> bool:
    """Whether a position is one in the split, and not in the shares of `shared_build`."""
    return not (isinstance(after, dict) and "share" in after)


@contextmanager
def being_built(
    path: Path, *, vocab_size: int, with_labels: bool, follows: Callable[[Any], bool]
) -> Iterator[CacheWriter]:
    """Context in which the entry `path` is written beside it, from where an earlier build was killed.

    Args:
        follows: whether this build can go on after a position; else an earlier build is of no use.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path.parent):
        if path.exists():
            print(f"the token cache {path} is damaged; building it again", file=sys.stderr, flush=True)
            shutil.rmtree(path)
        writer = CacheWriter(partial, vocab_size=vocab_size, with_labels=with_labels)
        if writer.after is not None and not follows(writer.after):
            writer.close()
            shutil.rmtree(partial)
            writer = CacheWriter(partial, vocab_size=vocab_size, with_labels=with_labels)
    try:
        yield writer
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # a full disk: the next start goes on from the last durable state
            writer.give_up()
        else:  # bad rows: the partial build is of no use
            writer.close()
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        writer.close()


def tokenise(
    writer: CacheWriter,
    split: Any,
    tokenizer: Any,
    *,
    with_labels: bool,
    progress: Callable[[Any], None] | None,
    waiting: Waiting,
    start: dict[str, Any] | None = None,
    until: tuple[int, int] | None = None,
) -> None:
    """Add the documents of a split, or of a share of it (`start`, `until`), that `writer` does not have yet."""
    saved = time.monotonic()
    # One thread reads ahead, others encode, this one writes.
    with Prefetcher(split.batches(start=writer.after or start, until=until)) as batches:
        for batch, ids, lengths in interruptible(_encoded(batches, tokenizer), waiting, writer):
            with writing(writer.path.parent):
                writer.add(ids, lengths, batch.labels if with_labels else None, batch.rows, after=batch.after)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    writer.save()
                    saved = time.monotonic()
            if progress is not None:
                progress(batch)


def publish_entry(writer: CacheWriter, path: Path, fingerprint: str, skipped: dict[str, int]) -> None:
    """Complete an entry and give it its name."""
    with writing(path.parent):
        writer.finish(fingerprint, skipped)
        publish(writer.path, path)
        (path / PROGRESS).unlink(missing_ok=True)


def interruptible(items: Iterator[T], waiting: Waiting, writer: CacheWriter) -> Iterator[T]:
    """Iterate over `items`, waiting for each in a context of `waiting`. If that is interrupted, save what was built."""
    try:
        while True:
            with waiting():
                item = next(items, None)
            if item is None:
                return
            yield item
    except GeneratorExit:
        raise
    except BaseException as error:
        if not isinstance(error, Exception):
            with suppress(OSError):  # the interruption is what the caller must hear of
                writer.save()
        raise


def _encoded(batches: Iterable[Any], tokenizer: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each batch with its ids (int32) and lengths (int64), in order. Some batches are encoded ahead."""
    waiting: deque[tuple[Any, Any]] = deque()
    threads = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
    try:
        for batch in batches:
            waiting.append((batch, threads.submit(tokenizer.encode_flat, batch.texts)))
            if len(waiting) > ENCODERS:
                batch, encoded = waiting.popleft()
                yield batch, *encoded.result()
        for batch, encoded in waiting:
            yield batch, *encoded.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # an interruption does not wait for batches that nobody needs
