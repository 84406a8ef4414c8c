"""Which processes of this machine are alive. Imports nothing of this package."""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path


def process_alive(pid: int, start: str | None = None) -> bool:
    """Whether process `pid` runs on this machine.

    With `start`, it must have that start time, because a later process may get the same number (in a container the
    numbers are the same at every start).
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        pass
    state, now = process_state(pid)
    if state in ("Z", "X"):  # ended, but not yet collected by its parent
        return False
    return start is None or now is None or start == now


def process_state(pid: int) -> tuple[str | None, str | None]:
    """(state letter, start time in clock ticks since boot) from Linux's /proc; (None, None) elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None, None


def process_namespace() -> str | None:
    """What process numbers belong to: containers of one host may have its name and numbers of their own. None where the
    system does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def host_mark() -> str:
    """Eight hex digits for this machine and its process numbers, short enough for the name of a file."""
    return f"{zlib.crc32(f'{socket.gethostname()} {process_namespace()}'.encode()):08x}"
