"""What a node can tell of itself before a training: GPUs, folders. Each check gives sentences about what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

FREE_SHARE = 0.9  # of a GPU's memory: less is free only where another process holds some
INODES = 1_000
SECONDS = 300.0  # for torch to be read from a cold disk and a product on each GPU
_PROBE = os.urandom(1 << 20)


def gpu_faults(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Whether all GPUs that SLURM gave are there, are free, and compute the same twice."""
    granted = environment.get("SLURM_GPUS_ON_NODE", "")
    seen = torch.cuda.device_count()
    faults = []
    if granted.isdecimal() and int(granted) > seen:
        faults.append(f"SLURM gave {granted} GPU(s) and torch sees {seen}")
    for number in range(seen):
        try:
            free, total = torch.cuda.mem_get_info(number)
            if free < FREE_SHARE * total:
                faults.append(
                    f"GPU {number} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: another process uses it"
                )
            faults += _product_faults(number)
        except RuntimeError as error:  # torch's own errors are among these
            faults.append(f"GPU {number} fails: {str(error).splitlines()[0]}")
    return faults


def _product_faults(number: int) -> list[str]:
    generator = torch.Generator(f"cuda:{number}").manual_seed(0)
    matrix = torch.randn(4096, 4096, device=f"cuda:{number}", generator=generator)
    first, second = matrix @ matrix, matrix @ matrix
    if not bool(torch.isfinite(first).all()) or not torch.equal(first, second):
        return [f"GPU {number} computes a matrix product wrongly"]
    return []


def folder_faults(folder: Path, *, free: float) -> list[str]:
    """Whether a folder, or the nearest one that is there, can be written and read, and has space.

    Args:
        free: bytes that must be free.
    """
    faults = []
    try:
        while not folder.is_dir() and folder != folder.parent:  # a disk that is gone fails here
            folder = folder.parent
        stat = os.statvfs(folder)
        if stat.f_bavail * stat.f_frsize < free:
            faults.append(f"{folder} has {stat.f_bavail * stat.f_frsize / 2**30:.1f} GiB free and not {free / 2**30:g}")
        if stat.f_files and stat.f_favail < INODES:  # some file systems count none
            faults.append(f"{folder} has {stat.f_favail} inodes free")
        with tempfile.NamedTemporaryFile(prefix=".ulmfit-preflight-", dir=folder) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != _PROBE:
                faults.append(f"{folder} gives back other bytes than were written")
    except OSError as error:
        faults.append(f"{folder} cannot be written ({error.strerror})")
    return faults


def temporary_folder() -> Path:
    """The node-local folder of a job, as `tempfile` and --local-cache mean it."""
    with suppress(OSError):
        return Path(tempfile.gettempdir())
    return Path(os.environ.get("TMPDIR", "/tmp"))


def local_faults(folders: Sequence[Path], *, free: float) -> list[str]:
    """All faults that this node finds in itself."""
    found = [fault for folder in dict.fromkeys(folders) for fault in folder_faults(folder, free=free)]
    return _gpu_faults_apart() + list(dict.fromkeys(found))


def _gpu_faults_apart() -> list[str]:
    """`gpu_faults` in a process that ends: a GPU may take one process at a time, and the reduction comes next."""
    if not torch.cuda.device_count():
        return gpu_faults()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ulmfit.distributed.node_checks"],
            stdout=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        return list(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [f"the check of its GPUs failed: {str(error).splitlines()[0]}"]


if __name__ == "__main__":
    print(json.dumps(gpu_faults()))
