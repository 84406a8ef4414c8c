"""The folder of caches: which one it is, what the user can do if it cannot be written, and what dead processes left.

It has token caches (KEY/, KEY.partial/, KEY.lock, while several processes build one also KEY.share-00000/), tokenizers/ and hashes of files (files/).
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from ulmfit.errors import UserError
from ulmfit.files import remove_dead

ABANDONED = 7 * 24 * 3600.0  # seconds after which a build that nobody has gone on with is deleted
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The folder: `chosen` (--cache-dir), else $ULMFIT_CACHE, else ~/.cache/ulmfit. It may not exist yet.

    Raises:
        UserError: the user has no home directory.
    """
    try:
        return Path(chosen or os.environ.get("ULMFIT_CACHE") or "~/.cache/ulmfit").expanduser()
    except RuntimeError:  # no HOME, and no entry in the list of users, as in some containers
        raise UserError(
            "there is no home directory to keep the token cache in; name a folder by --cache-dir or ULMFIT_CACHE"
        ) from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Context that turns an error of the file system (full, read-only, without locks) into a UserError."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # filelock raises the second one
        code = getattr(error, "errno", None) or errno.ENOSYS
        cure = "name a folder that you may write to"
        if code in _FULL:
            cure = "free space there, or name another folder"
        elif code in _NO_LOCKS:
            cure = "its file system refuses locks, so name a folder on another one"
        raise UserError(
            f"the token cache cannot be written to {folder} ({os.strerror(code)}); {cure} by --cache-dir "
            "(or ULMFIT_CACHE)"
        ) from error


def try_locked(path: Path) -> filelock.BaseFileLock | None:
    """As `locked`, but None if another process has the lock."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return None
    return lock


def locked(path: Path) -> filelock.BaseFileLock:
    """Wait for the lock of a cache entry and take it. The caller releases it.

    Raises:
        UserError: it cannot be taken.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        lock.acquire()
    return lock


def tidy(folder: Path) -> None:
    """Delete temporary files of dead processes, and builds that nobody goes on with. No error is raised."""
    for place in (folder, folder / "tokenizers", folder / "files"):
        remove_dead(place)
    with suppress(OSError):
        for partial in list(folder.glob("*.partial")):
            with suppress(OSError, NotImplementedError):
                _remove_abandoned(partial, partial.with_suffix(".lock"))
        for share in list(folder.glob("*.share-?????")):
            with suppress(OSError, NotImplementedError):
                _remove_abandoned(share, share.with_name(share.name.split(".")[0] + ".lock"))


def _remove_abandoned(build: Path, lock: Path) -> None:
    """Delete a folder in which nothing has changed for long, unless its lock is held: then it is being used."""
    newest = max(entry.stat().st_mtime for entry in (build, *build.iterdir()))
    if time.time() - newest > ABANDONED:
        with filelock.FileLock(lock, blocking=False):
            shutil.rmtree(build)
