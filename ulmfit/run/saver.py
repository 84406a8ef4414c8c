"""Writes checkpoints in the background: the loop only copies the state, and a thread writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ulmfit.run import checkpoint


class Saver:
    """Writes one checkpoint at a time in a thread, on rank 0.

    Hashing, writing and flushing release the interpreter's lock, so training continues. The thread is not a daemon:
    after an exception, the process completes a checkpoint before it ends.

    Args:
        directory: the run's `checkpoints` folder.
        keep: number of checkpoints to keep.
        before: called in the thread before a checkpoint gets its final name. It must make durable what the checkpoint
            depends on (the log up to its step).
        more: texts by file name that each checkpoint holds too.
    """

    def __init__(
        self, directory: Path, *, keep: int, before: Callable[[], None], more: Mapping[str, str] | None = None
    ) -> None:
        self._directory, self._keep, self._before, self._more = directory, keep, before, more
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._written: int | None = None

    def start(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and write it in the background as the checkpoint of `step`.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        snapshot = checkpoint.snapshot(state)
        self._thread = threading.Thread(target=self._write, args=(step, snapshot), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: it could not be written; earlier ones are unchanged.
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
        """The step of a newly completed checkpoint; None after it was returned once."""
        step, self._written = self._written, None
        return step

    def _write(self, step: int, snapshot: checkpoint.Snapshot) -> None:
        try:
            self._before()
            checkpoint.write(self._directory, step, snapshot, keep=self._keep, more=self._more)
            self._written = step
        except OSError as error:
            self._error = error
        except Exception as error:  # any error, e.g. out of memory: it would be lost in this thread
            self._error = OSError(f"the checkpoint of step {step} could not be written ({error!r})")
