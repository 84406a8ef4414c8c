"""The one exception that a user's mistake raises."""

from __future__ import annotations

import os
import sys


class UserError(Exception):
    """A mistake of the user: file, column, option or model at fault.

    The message is one sentence that names the thing and the cure. The commands print it as the last
    line of stderr, without a traceback, and exit with code 2.

    Attributes:
        rank: the process of a launch that found the mistake, once all of them know of it; else None.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def tell(error: UserError) -> None:
    """Print the sentence as the last line of stderr, in the process of a launch that found the mistake."""
    rank = int(os.environ.get("RANK", 0))
    if rank == (error.rank or 0):
        where = f" on rank {rank}" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
