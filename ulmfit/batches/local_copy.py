"""A copy of the tokens of a cache on the node's own disk, where the cache lies on a slow or busy shared one.

Each block of the copy is compared with the cache's checksum when it is copied, and again when it is first read. Where the
copy cannot be made or read, the shared cache is read instead. Only tokens are copied: columns are in memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import filelock
import numpy as np

from ulmfit.batches.cache import TokenStore, Waiting
from ulmfit.batches.checksums import BLOCK, BlockSums
from ulmfit.batches.token_files import MANIFEST, TokenFiles
from ulmfit.errors import UserError

_PIECE = 128 * BLOCK  # bytes copied at a time
_MARGIN = 64 * 2**20  # bytes that are left free beside a copy

Notice = Callable[[str], None]


def local_folder(given: str) -> Path:
    """The folder of --local-cache on this node; $NAME in it is the node's own variable.

    Raises:
        UserError: such a variable is not set.
    """
    folder = os.path.expandvars(given)
    if "$" in folder:
        raise UserError(f"--local-cache {given} names a variable that is not set here; name a folder, such as /tmp")
    return Path(folder)


def copied_to_node(store: TokenStore, folder: Path, *, notice: Notice, waiting: Waiting) -> TokenStore:
    """The same store, which reads its tokens from a copy below `folder`. The first process of a node makes it.

    Args:
        notice: called with a sentence for the user where the shared cache is read instead.
        waiting: context of waiting for another process of the node, and of copying. It may be interrupted.
    """
    files = store.token_files
    try:
        target = _own_folder(folder) / store.path.name
        target.mkdir(exist_ok=True)
        with waiting(), filelock.FileLock(target.with_suffix(".lock")):
            if not _is_whole(target, files):
                _copy_or_remove(files, target)
        local = TokenFiles(target, files.sizes, store.dtype, files.checksums)
    except (OSError, ValueError, NotImplementedError) as error:  # filelock raises the last one
        reason = getattr(error, "strerror", None) or error
        notice(f"--local-cache {folder} is not used ({reason}): the token cache is read where it is")
        return store
    return store.reading(WithFallback(local, files, notice))


def _own_folder(folder: Path) -> Path:
    """The folder of this user's copies, made if need be.

    In /tmp, users would else find each other's, which they cannot write, or links that lead to files of theirs.

    Raises:
        OSError: it cannot be made, or is not this user's.
    """
    own = folder / f"ulmfit-cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{own} is not a folder of this user")
    return own


def _is_whole(target: Path, files: TokenFiles) -> bool:
    try:
        return (target / MANIFEST).exists() and all(
            (target / name).stat().st_size == size for name, size in files.sizes.items()
        )
    except OSError:
        return False


def _copy_or_remove(files: TokenFiles, target: Path) -> None:
    try:
        _copy(files, target)
    except BaseException:  # also an interruption: a part of a copy is of no use
        with suppress(OSError):
            shutil.rmtree(target)
        raise


def _copy(files: TokenFiles, target: Path) -> None:
    """Copy all shards, then mark the copy as whole.

    Raises:
        OSError: there is no space, or a disk fails.
        ValueError: what was read does not match its checksum.
    """
    (target / MANIFEST).unlink(missing_ok=True)
    needed = sum(files.sizes.values()) + _MARGIN
    if (free := shutil.disk_usage(target).free) < needed:
        raise ValueError(f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free")
    first = 0
    for name in files.sizes:
        sums, found = BlockSums(), []
        with open(files.folder / name, "rb") as source, open(target / name, "wb") as copy:
            while piece := source.read(_PIECE):
                found.append(sums.add(memoryview(piece)))
                copy.write(piece)
        blocks = np.concatenate([*found, sums.end()])
        if files.checksums is not None and not np.array_equal(blocks, files.checksums[first : first + len(blocks)]):
            raise ValueError(f"{files.folder / name} does not match its checksum")
        first += len(blocks)
    (target / MANIFEST).touch()


class WithFallback:
    """Reads tokens from the copy, and from the shared files once the copy cannot be read."""

    def __init__(self, copy: TokenFiles, shared: TokenFiles, notice: Notice) -> None:
        self.copy, self.shared, self._notice = copy, shared, notice
        self._fails = False

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `TokenFiles.gather`."""
        if not self._fails:
            try:
                return self.copy.gather(starts, lengths)
            except (OSError, UserError) as error:
                self._fails = True
                self._notice(
                    f"the copy of the token cache in {self.copy.folder} fails ({error}): the shared one is read"
                )
        return self.shared.gather(starts, lengths)
