"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" or "max PERIOD": a container's limit


def usable_cores() -> int:
    """The cores of the process's affinity mask, at most its container's quota and OMP_NUM_THREADS; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    with suppress(KeyError, ValueError):
        cores = min(cores, int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))
    return max(1, cores)
