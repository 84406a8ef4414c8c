"""One training at a time in a process: the threads of a program take turns.

Accelerate's state, torch's settings, standard output and what messages may show are the whole process's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ulmfit.console import say

_turn = threading.RLock()  # a job of `fit` opens the sessions of its trainings in its own turn


def _anew() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)  # the thread that trains is not in a forked process


@contextmanager
def own_turn(*, quiet: bool = False) -> Iterator[None]:
    """Context in which no other thread of this process trains. It is entered when the others have ended.

    Args:
        quiet: do not say that this one waits.
    """
    turn = _turn
    if not turn.acquire(blocking=False):
        if not quiet:
            say("another training runs in this process; this one begins at its end")
        turn.acquire()
    try:
        yield
    finally:
        turn.release()
