"""One training at a time in a process: the threads of a program take turns.

Accelerate's state, torch's settings, standard output and what messages may show are the whole process's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ulmfit.console import say

_turn = threading.RLock()  # a job of `fit` opens the sessions of its trainings in its own turn


@contextmanager
def own_turn(*, quiet: bool = False) -> Iterator[None]:
    """Context in which no other thread of this process trains. It is entered when the others have ended.

    Args:
        quiet: do not say that this one waits.
    """
    if not _turn.acquire(blocking=False):
        if not quiet:
            say("another training runs in this process; this one begins at its end")
        _turn.acquire()
    try:
        yield
    finally:
        _turn.release()
