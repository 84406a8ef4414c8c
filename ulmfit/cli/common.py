"""What several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ulmfit.errors import UserError, without_keys


def check_output(path: Path, option: str = "--output") -> None:
    """Refuse an --output that is there, or cannot come to be, before the work."""
    if os.path.lexists(path):  # also a link that leads nowhere
        raise UserError(f"{option} {path} exists; name another file or remove it")
    if not path.parent.is_dir():
        raise UserError(
            f"{option} {path} cannot be written, for {path.parent} is no folder; make it, or name another file"
        )


def tell_notes(notes: Iterable[str]) -> None:
    """Print sentences about how a corpus is read, such as what was left out of a folder."""
    for note in notes:
        print(without_keys(note), file=sys.stderr)


def tell_skipped(skipped: Mapping[str, int]) -> None:
    """Say how many rows were left out and why."""
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        print(f"skipped rows: {reasons}", file=sys.stderr)
