"""Processes forked from this one, such as the workers of a server, or the ranks of accelerate's notebook_launcher.

OpenMP's threads are not in a forked process, and torch would wait for them for ever. So it computes in one thread there.
"""

from __future__ import annotations

import functools
import os

_forked = False


@functools.cache
def one_thread_in_forks() -> None:
    """From now on a process that is forked from this one computes in one thread. To be called before torch computes."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)


def is_forked() -> bool:
    """Whether this process was forked from one that had called `one_thread_in_forks`."""
    return _forked


def _in_child() -> None:
    global _forked
    import torch

    _forked = True
    torch.set_num_threads(1)
