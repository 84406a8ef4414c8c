"""The run directory: its lock, the check that it belongs to this run, the checkpoint to resume from, status.json."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.config import TrainConfig, options
from ulmfit.distributed.runtime import Runtime, environment
from ulmfit.distributed.stop import SAVE_FILE, STOP_FILE
from ulmfit.errors import UserError
from ulmfit.identity import differences
from ulmfit.run import checkpoint, lock
from ulmfit.run.status import State, read_status, write_status
from ulmfit.run.stored import CONFIG, as_text, begun_by, holds_copy, identity_of, read_stored

MODEL = "model"  # folder of the exported model


def check_output(path: str | os.PathLike[str], *, resume: str) -> None:
    """Check early that the output directory can be used. Writes nothing.

    Raises:
        UserError: it is a file, contains something other than a run, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output-dir {path} is a file; name a directory")
    # A start that was killed before config.json was complete leaves the lock and perhaps a part of this file.
    left = {lock.LOCK_FILE, "config.json.tmp", "lr_find"}  # version 0.1.0 wrote the second one, --lr-find the third
    if (
        resume == "auto"
        and path.is_dir()
        and not (path / CONFIG).exists()
        and not all(entry.name in left or files.is_torn(entry) for entry in path.iterdir())
        and not holds_copy(path)
    ):
        raise UserError(f"--output-dir {path} holds files that are not a run's; name an empty or a new directory")
    parent = path
    while not parent.exists():
        if parent.is_symlink():
            raise UserError(
                f"--output-dir {path} cannot be written, for {parent} is a link that leads nowhere; remove it"
            )
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"--output-dir {path} cannot be written, for {parent} is a file; name another directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output-dir {path} cannot be written; name a directory you may write to")


def check_movable(path: str | os.PathLike[str]) -> None:
    """Check early that an earlier run in this directory can be moved aside, as --resume never does.

    Raises:
        UserError: it is the working directory or holds it, in which "." would then be the earlier run.
    """
    path = Path(path)
    if path.is_dir() and Path.cwd().resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--output-dir {path} is the folder that this command runs in, and --resume never would move it aside; go to the "
            "folder above"
        )


class RunDirectory:
    """An opened and locked run directory.

    Attributes:
        path: the directory.
        resumed: directory of the newest valid checkpoint; None for a fresh start.
        finished: the run is already done.
        stored: config.json of the earlier start; empty for a fresh start.
        kept: files that each checkpoint holds too, by name; after `write_config`, on rank 0.

    Args:
        notice: called with lines for the user.
        fault_of: given the path of the model, returns what is wrong with it; None if it can be loaded. A run that has
            ended is finished only with its model. Without, it goes on from its last checkpoint and exports again.
    """

    def __init__(
        self,
        config: TrainConfig,
        identity: dict[str, Any],
        runtime: Runtime,
        *,
        notice: Callable[[str], None],
        fault_of: Callable[[Path], str | None],
    ) -> None:
        self.path = Path(config.output_dir)
        self._runtime, self._fault_of = runtime, fault_of
        self.kept: dict[str, str] = {}
        self._lock: lock.DirectoryLock | None = None
        self.finished, self.resumed, self.stored = runtime.on_main(lambda: self._open(config, identity, notice))

    def _open(self, config: TrainConfig, identity: dict[str, Any], notice: Callable[[str], None]) -> tuple:
        try:
            if config.resume == "never" and self.path.exists() and any(self.path.iterdir()):
                held = lock.DirectoryLock(self.path)
                aside = lock.rename_aside(self.path)
                (aside / held.path.name).unlink()
                held.close()
                notice(f"moved the earlier run to {aside}")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.DirectoryLock(self.path)
        except OSError as error:
            raise UserError(
                f"--output-dir {self.path} cannot be written ({error.strerror}); name a directory you may write to"
            ) from None
        try:
            return self._decide(identity, type(config), notice)
        except BaseException:
            self._lock.close()
            raise

    def _decide(self, identity: dict[str, Any], kind: type[TrainConfig], notice: Callable[[str], None]) -> tuple:
        for name in (STOP_FILE, SAVE_FILE):
            if (self.path / name).is_file():
                (self.path / name).unlink(missing_ok=True)
        files.remove_torn(self.path)  # safe: their writer no longer has the lock
        stored = read_stored(self.path, notice)
        if stored is None:
            return False, None, {}
        new = json.loads(json.dumps(identity))
        changed = differences(identity_of(stored, new), new, kind)
        if stored.get("task") != kind.task:
            changed = [f"task: {stored.get('task')} -> {kind.task}"]
        if changed:
            version, this = begun_by(stored), begun_by(environment())
            begun = f", begun by {version} (this is {this})" if version != this else ""
            raise UserError(
                f"--output-dir {self.path} holds another run{begun} ({'; '.join(changed)}); "
                "name another directory, or start afresh with --resume never"
            )
        status = read_status(self.path)
        if status and status.get("state") == "done":
            fault = self._fault_of(self.path / MODEL)
            if fault is None:
                return True, None, stored
            notice(f"this run was finished, but its model cannot be used ({fault}); it is made again")
        newest = checkpoint.latest(self.path / "checkpoints", warn=notice)
        if newest is not None:
            notice(f"going on from {newest}")
        return False, newest, stored

    def write_config(self, config: TrainConfig, identity: dict[str, Any], resolved: dict[str, Any]) -> None:
        """Write config.json: options as given, resolved values, versions, world size and commit."""
        if not self._runtime.is_main:
            return
        content = {
            "task": config.task,
            "options": options(config),
            "resolved": resolved,
            "identity": identity,
            "threads": self._runtime.threads,
            "world_size": self._runtime.world_size,
            "engine": self._runtime.engine,
        } | environment()
        self.kept = {CONFIG: as_text(content)}
        files.write_text(self.path / CONFIG, self.kept[CONFIG])

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to resume from, on every rank (a collective). Rank 0 reads it, as disks may be local to a machine.

        Raises:
            UserError: it cannot be read; raised on every rank.
        """
        if self.resumed is None:
            return None
        return self._runtime.on_main(lambda: checkpoint.load(self.resumed))

    def guard(self, write: Callable[[], Any]) -> None:
        """Run `write` (a save) on rank 0 (a collective).

        Raises:
            OSError: the disk is full or read-only; raised on every rank. Earlier checkpoints are intact.
        """
        failure: tuple[int, str] | None = None
        if self._runtime.is_main:
            self._runtime.progress.now("writing a checkpoint")  # shown by the watchdog if the disk hangs
            try:
                write()
            except OSError as error:
                failure = (error.errno or errno.EIO, f"{self.path} cannot be written: {error.strerror or error}")
        if failure := self._runtime.broadcast(failure):
            raise OSError(*failure)

    def status(self, state: State, step: int, **fields: Any) -> None:
        """Write status.json (rank 0)."""
        if self._runtime.is_main:
            write_status(self.path, state, step, **fields)

    def failed(self, step: int, error: str, **fields: Any) -> None:
        """Write into status.json why the run failed (any rank), unless a reason is already there.

        The first error is the cause. It breaks connections, which causes errors on other ranks.
        """
        status = read_status(self.path)
        if not (status and status.get("state") == "failed"):
            write_status(self.path, "failed", step, error=error, **fields)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
