"""Checkpoints written beside the training: the loop pays for a copy of the state, a thread for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ulmfit.run import checkpoint


class Saver:
    """Writes one checkpoint at a time in a thread (of rank 0; other ranks have none).

    Hashing, writing and flushing release the interpreter's lock, so that training goes on meanwhile. The
    thread is no daemon: a process that ends by an exception finishes the checkpoint it has begun.

    Args:
        directory: the run's `checkpoints` folder.
        keep: how many to keep.
        before: called in the thread before a checkpoint gets its name: what it relies on must be on the
            disk by then (the log up to its step).
    """

    def __init__(self, directory: Path, *, keep: int, before: Callable[[], None]) -> None:
        self._directory, self._keep, self._before = directory, keep, before
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._written: int | None = None

    def start(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and write it as the checkpoint of `step` in the background.

        Raises:
            OSError: the checkpoint before this one could not be written.
        """
        self.wait()
        snapshot = checkpoint.snapshot(state)
        self._thread = threading.Thread(target=self._write, args=(step, snapshot), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is in place.

        Raises:
            OSError: it could not be written; earlier ones are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `wait` raises the reason."""
        return self._error is not None

    def written(self) -> int | None:
        """The step of a checkpoint that is newly in place, told once."""
        step, self._written = self._written, None
        return step

    def _write(self, step: int, snapshot: checkpoint.Snapshot) -> None:
        try:
            self._before()
            checkpoint.write(self._directory, step, snapshot, keep=self._keep)
            self._written = step
        except OSError as error:
            self._error = error
        except Exception as error:  # no memory for it, say: nobody else would hear of it in this thread
            self._error = OSError(f"the checkpoint of step {step} could not be written ({error!r})")
