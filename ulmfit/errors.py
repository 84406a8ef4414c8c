"""The exceptions that a caller may want to distinguish: a user's mistake, and requests to stop."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path


def one_line(text: str) -> str:
    r"""Show line breaks, escapes, halves of surrogate pairs and other unprintable characters as \n, \x1b, \udce9 etc.

    Names of files and columns may hold them. Printed as they are, they would break a line or command the terminal.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


_KEYS = re.compile(
    r"""([A-Za-z][A-Za-z0-9+.-]+:/{1,2})([^\s/?\#'"]*@)?([^\s?\#'"<>]*)(\?[^\s'"<>)]*=[^\s'"<>)]*)?""", re.ASCII
)


def without_keys(text: str) -> str:
    """Show URLs without user, password and query: these may be keys, as in a signed URL, and logs are read by others."""
    if ":/" not in text:  # a Path writes s3:/ for s3://
        return text
    return _KEYS.sub(lambda url: f"{url[1]}{'***@' if url[2] else ''}{url[3]}{'?***' if url[4] else ''}", text)


class UserError(Exception):
    """A mistake of the user: a wrong file, column, option or model.

    The message is one sentence that says what is wrong and how to correct it. The commands print it as the last
    line of stderr, without a traceback, and exit with code 2. Unprintable characters in it are shown as escapes, and
    URLs without what may be keys.

    Attributes:
        rank: the rank that found the mistake, after it was sent to all ranks; else None.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(one_line(without_keys(message)))
        self.rank = rank


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, after the current step and with a checkpoint. Raised on all ranks.

    It is a KeyboardInterrupt, so that it also ends "Run all" of a notebook, or a loop over several trainings.

    Attributes:
        run_dir: the run directory.
        step: step of the checkpoint. The same call resumes from there.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        super().__init__(
            f"interrupted after step {step} with a checkpoint in {run_dir / 'checkpoints'}; the same call goes on "
            "from there"
        )
        self.run_dir, self.step = run_dir, step

    def __reduce__(self) -> tuple:
        return type(self), (self.run_dir, self.step)


class EvaluationStopped(Exception):
    """An evaluation was left unfinished, because a rank was asked to stop. Raised on all ranks; the loop catches it."""


class StoppedEarly(BaseException):
    """A script was asked to stop before the first step of its training. Raised on all ranks.

    It is no Exception, so that no package in between takes it for an error of its own. `train_language_model` and
    `train_classifier` catch it.

    Attributes:
        reason: the signal, or what else was the request.
        rank: the rank that was asked, after it was sent to all ranks; else None.
    """

    def __init__(self, reason: str, *, rank: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.rank = reason, rank


class RankLost(RuntimeError):
    """Another process of the launch has ended or cannot be reached, so that a collective failed. The message is a sentence."""


def tell(error: UserError) -> None:
    """Print the message as the last line of stderr, only in the process that found the mistake."""
    given = os.environ.get("RANK", "")
    rank = int(given) if given.isdecimal() else 0  # `distributed.launch` tells of another value
    if rank == (error.rank or 0):
        where = f" on rank {rank}" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr, flush=True)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OF_THE_MACHINE = _FULL | {
    errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ESTALE, errno.EMFILE, errno.ENFILE,
    errno.ENOTCONN, errno.EHOSTDOWN,
}  # fmt: skip


def of_the_machine(error: OSError) -> str | None:
    """A sentence for a full or failing disk, a missing permission and the like, for which a traceback is of no help.

    None for other errors of the system, which may be ours.
    """
    if error.errno not in _OF_THE_MACHINE:
        return None
    reason = (error.strerror or os.strerror(error.errno)).strip().rstrip(".")
    where = f" ({error.filename})" if error.filename else ""
    cure = "free space there" if error.errno in _FULL else "see to its disk and permissions"
    return f"{reason}{where}; {cure} and start the same command again, it goes on from the last checkpoint"
