"""What several commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ulmfit.errors import UserError


def check_output(path: Path) -> None:
    """Refuse an --output that is there, or cannot come to be, before the work."""
    if path.exists():
        raise UserError(f"--output {path} exists; name another file or remove it")
    if not path.parent.is_dir():
        raise UserError(
            f"--output {path} cannot be written, for {path.parent} is no folder; make it, or name another file"
        )


def tell_skipped(skipped: Mapping[str, int]) -> None:
    """Say how many rows were left out and why."""
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        print(f"skipped rows: {reasons}", file=sys.stderr)
