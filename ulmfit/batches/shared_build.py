"""A token cache that many processes build together, of one or several machines with a shared file system.

The files of a corpus are divided into shares, which depend on the corpus alone. Each process takes the first share that
is neither complete nor locked, tokenises it into an entry of its own (KEY.share-00003), and takes the next one. The
one that first finds all shares complete joins them, as a copy. So it does not matter how many processes there are, and
when one is killed another goes on with its share from the last durable state. The finished entry has the bytes of one
that a single process builds.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit.batches import cache
from ulmfit.batches.cache import (
    TokenStore,
    Waiting,
    being_built,
    build_or_open,
    interruptible,
    key_of,
    publish_entry,
    tokenise,
)
from ulmfit.cache_folder import locked, try_locked, writing
from ulmfit.errors import UserError
from ulmfit.files import sealed, unsealed, write_text

SHARE_BYTES = 64 * 2**20  # the least of a share: half a minute's work of a core
MOST_SHARES = 1024
POLL = 1.0  # seconds between looks at the shares of other processes
JOINED = 2**16  # documents copied at a time
COUNTS = "share.json"  # the counts of rows of a complete share


def build_together(
    split: Any,
    tokenizer: Any,
    cache_dir: str | Path,
    *,
    with_labels: bool,
    builders: int,
    tells: bool = True,
    progress: Callable[[Any], None] | None = None,
    waiting: Waiting = nullcontext,
) -> TokenStore:
    """As `cache.build_or_open`, but all processes that call it share the work.

    Args:
        builders: number of processes that call it at the same time. One alone makes shares only where there are some
            already, of a build that was killed: else it would copy the tokens in vain.
        tells: whether `progress` is called for shares of this process. It gets rows as if all builders were as fast.

    Raises:
        UserError: as `build_or_open`.
    """
    cache_dir = Path(cache_dir)
    key = key_of(split, tokenizer, with_labels=with_labels)
    path = cache_dir / key
    if (store := TokenStore.open_if_complete(path)) is not None:
        return store
    options: dict[str, Any] = {"with_labels": with_labels, "waiting": waiting}
    shares = split.shares(SHARE_BYTES, MOST_SHARES) if builders > 1 or any(cache_dir.glob(f"{key}.share-*")) else []
    if len(shares) < 2 or path.exists():  # one that exists is damaged, which is rare
        return build_or_open(split, tokenizer, cache_dir, progress=progress, **options)
    folders = [cache_dir / f"{key}.share-{number:05}" for number in range(len(shares))]
    done = 0  # rows that this process has read

    def count(batch: Any) -> None:
        if progress is not None and tells:
            row = builders * (done + batch.after["row"])
            progress(batch._replace(rows=[builders * done], after=batch.after | {"row": row}))

    while not path.exists():
        busy = False
        for share, folder in zip(shares, folders, strict=True):
            if folder.exists():
                continue
            lock = try_locked(folder.with_name(folder.name + ".lock"))
            if lock is None:
                busy = True
                continue
            try:
                # Another process may have ended it, or the whole, since it was looked at.
                if not folder.exists() and not path.exists():
                    _build_share(split, tokenizer, folder, share, progress=count, **options)
                    done += split.end_row
            finally:
                lock.release()
        if not busy:
            break
        with waiting():
            time.sleep(POLL)
    with waiting():
        lock = locked(cache_dir / f"{key}.lock")
    try:
        store = TokenStore.open_if_complete(path)
        if store is None:
            _join(split, path, key, folders, vocab_size=len(tokenizer), with_labels=with_labels, waiting=waiting)
            store = TokenStore.open(path)
        return store
    finally:
        lock.release()


def _build_share(
    split: Any,
    tokenizer: Any,
    folder: Path,
    share: Any,
    *,
    with_labels: bool,
    progress: Callable[[Any], None],
    waiting: Waiting,
) -> None:
    """Tokenise a share, whose lock the caller holds."""
    with being_built(folder, vocab_size=len(tokenizer), with_labels=with_labels, follows=lambda after: True) as writer:
        tokenise(
            writer,
            split,
            tokenizer,
            with_labels=with_labels,
            progress=progress,
            waiting=waiting,
            start=share.start,
            until=share.until,
        )
        with writing(folder.parent):
            write_text(writer.path / COUNTS, sealed({"rows": split.end_row, "num_rows": split.num_rows}))
        publish_entry(writer, folder, folder.name, dict(split.skipped))


def _join(
    split: Any, path: Path, key: str, folders: list[Path], *, vocab_size: int, with_labels: bool, waiting: Waiting
) -> None:
    """Copy the complete shares into one entry, whose lock the caller holds, and delete them."""
    shares = [_opened(folder) for folder in folders]
    with being_built(path, vocab_size=vocab_size, with_labels=with_labels, follows=_in_shares) as writer:
        saved = time.monotonic()
        for ids, lengths, labels, rows, after in interruptible(_pieces(shares, writer.after), waiting, writer):
            with writing(path.parent):
                writer.add(ids, lengths, labels, rows, after=after)
                if time.monotonic() - saved >= cache.SAVE_SECONDS:
                    writer.save()
                    saved = time.monotonic()
        split.num_rows, split.skipped = sum(counts["num_rows"] for counts, _ in shares), Counter()
        for _, store in shares:  # reasons in the order of their first row, as in one pass
            split.skipped.update(store.skipped)
        split.check()
        if writer.num_documents == 0:
            raise UserError(f"the split {split.name!r} holds no documents; check the data and its columns")
        publish_entry(writer, path, key, dict(split.skipped))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(folder.name + ".lock").unlink(missing_ok=True)


def _pieces(
    shares: list[tuple[dict[str, Any], TokenStore]], after: dict[str, Any] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, dict[str, Any]]]:
    """The documents after a position: (ids, lengths, labels, rows, position after them)."""
    begun, first_row = after or {"share": 0, "documents": 0}, 0
    for number, (counts, store) in enumerate(shares):
        if number >= begun["share"]:
            all_rows = store.rows + first_row
            start = begun["documents"] if number == begun["share"] else 0
            for at in range(start, store.num_documents, JOINED):
                end = min(at + JOINED, store.num_documents)
                ids, lengths = store.read(np.arange(at, end))
                labels = None if store.labels is None else store.labels[at:end]
                yield ids, lengths, labels, all_rows[at:end], {"share": number, "documents": end}
        first_row += counts["rows"]


def _in_shares(after: Any) -> bool:
    return isinstance(after, dict) and "share" in after


def _opened(folder: Path) -> tuple[dict[str, Any], TokenStore]:
    """The counts of rows of a complete share, and its documents.

    Raises:
        UserError: it is damaged. It was deleted, and is built again at the next start.
    """
    try:
        return unsealed((folder / COUNTS).read_text()), TokenStore.open(folder)
    except (OSError, ValueError, UserError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"a part of the token cache, {folder}, is damaged ({error}); start the same command again, which builds it "
            "anew"
        ) from None
