"""What launchers tell a process by environment variables: its place, and whether it has a GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from ulmfit.errors import UserError

# What accelerate, torch and this package read as numbers.
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "SLURM_RESTART_COUNT")


def uses_gpu() -> bool:
    """Whether the processes of this launch compute on GPUs: there is one, and accelerate's launcher was not told to use the
    CPU (`--cpu`, `use_cpu: true`)."""
    import torch  # commands read this module before they know whether they need it

    return torch.cuda.is_available() and not _wants_cpu()


def _wants_cpu() -> bool:
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_gpus(environment: Mapping[str, str] = os.environ) -> None:
    """Check that this process has a GPU of its own where the launch has GPUs.

    Else it would wait in a group of another kind than the others', or fail in words of CUDA.

    Raises:
        UserError: it has none.
    """
    import torch

    granted, seen = environment.get("SLURM_GPUS_ON_NODE", ""), torch.cuda.device_count()
    wanted = torch.version.cuda is not None and not _wants_cpu()
    if wanted and not seen and granted.isdecimal() and int(granted) and environment.get("CUDA_VISIBLE_DEVICES") != "":
        raise UserError(
            f"torch sees none of the {granted} GPU(s) of {socket.gethostname()} that SLURM gave; look at nvidia-smi there (a container "
            "needs --nv), or export ACCELERATE_USE_CPU=true to train on the CPU"
        )
    local = int(environment.get("LOCAL_RANK", 0))
    if uses_gpu() and local >= seen:
        raise UserError(
            f"process {local + 1} of this machine has no GPU of its own, for torch sees {seen}; start as many processes as "
            "there are GPUs, and let each see all of them (--gpus-per-node of SLURM)"
        )


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
