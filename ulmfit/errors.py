"""The exceptions that a caller may want to tell apart: a user's mistake, and Ctrl-C during a training."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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


class TrainingInterrupted(KeyboardInterrupt):
    """A training was stopped by Ctrl-C, after the step in hand and with a checkpoint.

    A KeyboardInterrupt, so that it ends what Ctrl-C ends: "Run all" of a notebook, a loop around trainings. On every
    process of a launch.

    Attributes:
        run_dir: the run directory.
        step: of the checkpoint. The same call goes on from there.
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
    """Print the sentence as the last line of stderr, in the process of a launch that found the mistake."""
    rank = int(os.environ.get("RANK", 0))
    if rank == (error.rank or 0):
        where = f" on rank {rank}" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
