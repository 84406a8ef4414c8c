"""The exceptions that a caller may want to distinguish: a user's mistake, and Ctrl-C during training."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake of the user: a wrong file, column, option or model.

    The message is one sentence that says what is wrong and how to correct it. The commands print it as the last
    line of stderr, without a traceback, and exit with code 2.

    Attributes:
        rank: the rank that found the mistake, after it was sent to all ranks; else None.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(message)
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


def tell(error: UserError) -> None:
    """Print the message as the last line of stderr, only in the process that found the mistake."""
    rank = int(os.environ.get("RANK", 0))
    if rank == (error.rank or 0):
        where = f" on rank {rank}" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
