"""The environment variables by which launchers tell a process its place."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ulmfit.errors import UserError

# What accelerate, torch and this package read as numbers.
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "SLURM_RESTART_COUNT")


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Check the variables that are read as numbers.

    Raises:
        UserError: one of them is no whole number.
    """
    for name in _NUMBERS:
        value = environment.get(name, "0")
        if not value.removeprefix("-").isdecimal():
            raise UserError(
                f"the environment variable {name} is {value[:40]!r} and no whole number; unset it, or start by torchrun "
                "or accelerate launch"
            )
