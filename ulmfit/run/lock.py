"""The lock of a run directory, and renaming a run directory.

The lock is a file, `run.lock`, with host, process number and start time of its owner. It is created exclusively, and
removed on close. Its modification time is a heartbeat. A killed process leaves the file, so another process may take
it over when the owner is dead. On this host that can be checked at once. An owner on another host is taken for dead
after five minutes without heartbeat, or if it was an earlier start of the same SLURM job (a requeued job starts after
all processes of the old one have ended). A job of SLURM waits for these minutes: it may be another start of the run whose
node was lost, with nobody there to start it again. Containers of one host may share its name and not its process numbers:
such an owner is watched for two and a half heartbeats.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from ulmfit.errors import UserError
from ulmfit.files import parse_json
from ulmfit.processes import process_alive, process_namespace, process_state

LOCK_FILE = "run.lock"
HEARTBEAT = 30.0  # seconds between updates of the file's modification time
SILENCE = 300.0  # seconds without heartbeat after which an owner on another host is taken for dead
EMPTY = 10.0  # seconds after which a file without content is one whose owner was killed before it could write it


class DirectoryLock:
    """Lock a run directory for this process until `close` (or the end of a `with` block).

    Attributes:
        path: the lock file.

    Raises:
        UserError: a live process has the lock; the message names host, process and the cure.
        OSError: the directory cannot be written.
    """

    def __init__(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self.path = output_dir / LOCK_FILE
        me = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_state(os.getpid())[1]} | _job()
        me |= {"namespace": process_namespace()}
        # A process on another host may have the same number and start time, so a random token is added.
        self._content = json.dumps(me | {"token": os.urandom(8).hex()}).encode()
        self._seen_empty: float | None = None
        while not self._try():
            pass
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="lock heartbeat", daemon=True).start()

    def _try(self) -> bool:
        """Try to take the lock. Returns False if the file was removed meanwhile, so that the caller must try again.

        Raises:
            UserError: a live process has the lock.
        """
        created = True
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            created = False
            try:
                descriptor = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                return False
        try:
            # Two processes may find the same stale lock, but only one may take it. So it is checked and rewritten
            # under a lock of the kernel. (Not every network file system has these.)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if os.stat(self.path).st_ino != os.fstat(descriptor).st_ino:
                    return False
            except FileNotFoundError:
                return False
            size = os.fstat(descriptor).st_size
            if created and size:  # taken over as an empty one, while this process was suspended
                return False
            if not created and not size and self._is_new():
                return False
            if not created and size:
                self._judge(descriptor)
                if not os.fstat(descriptor).st_nlink:  # its owner has ended while this process waited
                    return False
            # A kill in between must leave something that can be read.
            os.pwrite(descriptor, self._content.ljust(size), 0)
            os.ftruncate(descriptor, len(self._content))
            return True
        except OSError:
            if created:  # disk full: an empty lock file would block the next start
                self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _is_new(self) -> bool:
        """Whether a file without content may be one that its owner is about to write; waits a moment then."""
        now = time.monotonic()
        self._seen_empty = now if self._seen_empty is None else self._seen_empty
        if now - self._seen_empty >= EMPTY:
            return False
        time.sleep(0.05)
        return True

    def _judge(self, descriptor: int) -> None:
        age = time.time() - os.fstat(descriptor).st_mtime
        try:
            owner = parse_json(os.pread(descriptor, 4096, 0))
            host, pid = str(owner["host"]), int(owner["pid"])
            job, restart = owner.get("job"), int(owner.get("restart", 0))
        except (ValueError, KeyError, TypeError, OverflowError):
            if age < SILENCE:  # may be new and not written yet
                raise UserError(
                    f"{self.path} was just written by another run that is starting; wait for it, "
                    "or delete the file if there is none"
                ) from None
            return
        mine = _job()
        if job is not None and job == mine.get("job") and restart < mine["restart"]:
            return
        here = host == socket.gethostname()
        if here and owner.get("namespace") not in (None, process_namespace()):  # it is not known whether it has ended
            if not self._falls_silent(descriptor, f"{host}, in another container", 2.5 * HEARTBEAT):
                raise UserError(
                    f"{self.path.parent} is being written by process {pid} of another container on {host}; stop that "
                    "process, or name another --output-dir"
                )
        elif here:
            if process_alive(pid, owner.get("start")):
                raise UserError(
                    f"{self.path.parent} is being written by process {pid} on {host}; stop that "
                    "process, or name another --output-dir"
                )
        elif age < SILENCE and not (mine and self._falls_silent(descriptor, host)):
            raise UserError(
                f"{self.path.parent} is being written by process {pid} on {host}, which gave a "
                f"sign of life {max(0, age):.0f} s ago; stop that run or name another "
                f"--output-dir (if it is dead, delete {self.path} or wait five minutes)"
            )

    def _falls_silent(self, descriptor: int, host: str, silence: float | None = None) -> bool:
        """Wait until the owner gives a sign of life (False), or has ended or given none for `silence` seconds (True; by
        default `SILENCE`)."""
        last = os.fstat(descriptor).st_mtime
        until = time.monotonic() + (silence or SILENCE) - max(0.0, time.time() - last)
        print(f"{self.path.parent} is locked by a process on {host}; waiting for a sign of life of it", flush=True)
        while time.monotonic() < until and os.fstat(descriptor).st_nlink:
            time.sleep(0.5)
            if os.fstat(descriptor).st_mtime != last:
                return False
        return True

    def _owned(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            if self._owned():
                with suppress(OSError):
                    os.utime(self.path)

    def close(self) -> None:
        """Release the lock. It may be called twice, or after the directory has been moved."""
        self._closed.set()
        if self._owned():
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def rename_aside(output_dir: Path) -> Path:
    """Rename NAME to NAME.1, or with the first free number. Returns the new path.

    Of a link what it leads to is renamed, and is there again, empty: so the next run is on the same disk.
    """
    is_link = output_dir.is_symlink()
    # Not as given, because the name of "runs/." is ".".
    output_dir = Path(os.path.realpath(output_dir) if is_link else os.path.abspath(output_dir))
    number = 1
    while os.path.lexists(aside := output_dir.with_name(f"{output_dir.name}.{number}")):
        number += 1
    output_dir.rename(aside)
    if is_link:
        output_dir.mkdir()
    return aside


class _Job(TypedDict, total=False):
    job: str
    restart: int


def _job() -> _Job:
    """The SLURM job's number and restart count; empty without SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"job": job, "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0))} if job else {}
