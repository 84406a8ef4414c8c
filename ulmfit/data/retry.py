"""Failures while a shard is read: retries, and messages to the user.

After a transient failure (of a network file system, of the hub, a file that is still being copied) the read is tried
again with back-off, from the position of the failure. A damaged file is not tried again: a UserError names it.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ulmfit.console import say
from ulmfit.errors import UserError
from ulmfit.excerpts import are_shown, failure

TRIES = 5  # consecutive tries without progress, with 1, 2, 4 and 8 seconds between them

T = TypeVar("T")
_TRANSIENT = frozenset(
    getattr(errno, name) for name in (
        "EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "EREMOTEIO", "ENOLINK", "ECOMM", "EPROTO", "EPIPE", "ENETDOWN",
        "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT",
        "EHOSTDOWN", "EHOSTUNREACH") if hasattr(errno, name))  # fmt: skip
_OF_THE_MACHINE = frozenset({errno.EMFILE, errno.ENFILE})
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOLCK})
_NETWORK_PACKAGES = frozenset({"aiohttp", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: errors of file systems and connections, HTTP status 429 or 5xx, a short file.

    A compressed file that ends early (EOFError) is transient, because it may still be copied. Wrong bytes are not.
    """
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", getattr(cause, "status", None))
        if isinstance(status, int):
            return status == 429 or status >= 500
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno in _TRANSIENT
        if isinstance(cause, ConnectionError | TimeoutError | EOFError):
            return True
        if type(cause).__module__.partition(".")[0] in _NETWORK_PACKAGES:
            return True
    return False


def retried(read: Callable[[Any], Iterator[tuple[T, Any]]], place: Any, name: Callable[[], str]) -> (
        Iterator[tuple[T, Any]]):  # fmt: skip
    """Yield what `read(place)` yields, (item, place after it), with retries after transient failures.

    After a failure `read` is called again with the place after the last item, so that items are neither repeated nor
    lost. There are at most `TRIES` consecutive tries; each new one is reported on stderr. `name()` returns the shard
    that is being read.

    Raises:
        OSError: the last try failed; names the shard.
        UserError: the shard is damaged or ends early.
    """
    failures = 0
    while True:
        try:
            for item, after in read(place):
                failures, place = 0, after
                yield item, after
            return
        except Exception as error:
            if not is_transient(error):
                with faults_of(name()):
                    raise
            failures += 1
            what, delay = f"{name()} cannot be read ({reason_of(error)})", 2 ** (failures - 1)
            if failures == TRIES:
                if isinstance(_causes(error)[-1], EOFError):
                    raise UserError(f"{what}, it is incomplete; copy or make it again") from error
                codes = (cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno)
                code = next(codes, errno.EIO)
                raise OSError(code, f"{what}, also after {TRIES} tries: see to its file system or connection and start "
                              "the same command again, it goes on from the last checkpoint") from error  # fmt: skip
            say(f"{what}: try {failures + 1} of {TRIES} in {delay} s", sys.stderr)
        time.sleep(delay)


@contextmanager
def faults_of(what: str) -> Iterator[None]:
    """Context that turns errors of readers about a damaged file into a UserError naming the file.

    Errors not caused by the file (failing disk, too many open files, out of memory) are raised unchanged. If `datasets`
    cannot write its cache, the UserError names that.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, OSError) and (folder := _unwritable(cause)):
                raise UserError(
                    f"the cache of datasets cannot be written to {folder} ({os.strerror(cause.errno or errno.EIO)}); "
                    "free space there, or name another folder by HF_DATASETS_CACHE"
                ) from error
        if any(getattr(cause, "errno", None) in _TRANSIENT | _OF_THE_MACHINE for cause in _causes(error)):
            raise
        raise UserError(f"{what} cannot be read ({reason_of(error)}); mend the file or give another") from error


def _unwritable(error: OSError) -> str | None:
    """The folder in which `datasets` keeps its cache, if this is an error of writing there; else None.

    Not every library puts the name of the file into the error. But nothing else is written while a corpus is read.
    """
    if "datasets" not in sys.modules or error.errno in _TRANSIENT:
        return None
    import datasets

    folder = os.path.abspath(datasets.config.HF_DATASETS_CACHE)
    named = [os.path.abspath(name) for name in (error.filename, error.filename2) if isinstance(name, str)]
    inside = any(os.path.commonpath([folder, name]) == folder for name in named)
    above = any(os.path.commonpath([folder, name]) == name for name in named)  # a folder that cannot be made
    return folder if inside or above or error.errno in _OF_WRITING else None


def reason_of(error: BaseException) -> str:
    """The first line of the message of the root cause. Of parsers it may quote values, of the operating system not."""
    root = _causes(error)[-1]
    if not isinstance(root, OSError | UserError) and not are_shown():
        return failure(root)
    reason = (str(root).strip() or type(root).__name__).splitlines()[0].rstrip(".")
    return "it holds no rows" if "corresponds to no data" in reason else reason


def _causes(error: BaseException) -> list[BaseException]:
    """The error and its chain of causes, down to the root."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes
