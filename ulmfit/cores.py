"""How many cores this process may use, and how its threads wait. Imports nothing of this package.

`os.cpu_count` counts the machine's. A container has a quota of CPU time (cgroup), a job step a set of cores (affinity),
and SLURM tells what it has granted. More threads than cores make every parallel part wait for the thread whose turn has
not come; if the others spin meanwhile, they keep the very core busy that it waits for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path

# A thread that finds no work looks for it so many times before it sleeps (GNU OpenMP; its default is 300,000). Enough for
# the gaps between the parallel parts of a step. Measured on two cores: benchmarks/RESULTS.md.
SPINS = 10_000
LOOK = 0.1  # seconds in which other load is measured


def machine_cores() -> int:
    """Logical cores of the machine: a bound for any number of threads."""
    return os.cpu_count() or 1


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use, at most OMP_NUM_THREADS; at least 1.

    Args:
        root: what stands for / in the paths below /proc and /sys.
    """
    logical = _affinity()
    found = min(_physical(logical, root), math.ceil(min(_quota(root), len(logical))))
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if granted.isdecimal() and int(granted) > 0:  # also where SLURM does not bind its steps to cores
        found = min(found, int(granted))
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    if ranks.isdecimal() and int(ranks) > 0:  # the processes of a launcher share the cores
        found //= int(ranks)
    with suppress(KeyError, ValueError):
        found = min(found, int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))
    return max(1, found)


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's threads and how they wait, where the user has not. It must be called before torch is imported.

    On cores that other programs use already, threads sleep at once when they find no work (PASSIVE). On free ones they
    spin for a while, because to wake up takes as long as a small operation. Neither changes what is computed.
    """
    threads = environment.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if threads == "1" or not environment.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        return
    if threads.isdecimal() and free_cores() < int(threads) - 0.5:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def free_cores(root: Path = Path("/"), pause: Callable[[float], object] = time.sleep) -> float:
    """Logical cores, of those that this process may use, that are idle now; infinite where the system does not tell."""
    before = _idle(root)
    pause(LOOK)
    after = _idle(root)
    ticks = LOOK * os.sysconf("SC_CLK_TCK")
    return sum(min(1.0, (after[core] - before[core]) / ticks) for core in after) if after else math.inf


def _idle(root: Path) -> dict[str, int]:
    """Ticks of the clock since boot in which each core was idle."""
    wanted = {f"cpu{number}" for number in _affinity()}
    with suppress(OSError, ValueError, IndexError):
        rows = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
        return {row[0]: int(row[4]) + int(row[5]) for row in rows if row[0] in wanted}
    return {}


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(machine_cores()))


def _physical(logical: set[int], root: Path) -> int:
    """The number of physical cores that these logical ones belong to. Two threads on one core gain nothing."""
    cores = set()
    for number in logical:
        file = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            cores.add(file.read_text().strip())
        except OSError:
            cores.add(str(number))
    return len(cores)


def _quota(root: Path) -> float:
    """CPU seconds a second that the cgroups of this process allow, in cores; infinite without a limit."""
    allowed = math.inf
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                base, read = root / "sys/fs/cgroup", _quota_of_2
            elif "cpu" in controllers.split(","):
                base, read = root / "sys/fs/cgroup/cpu", _quota_of_1
            else:
                continue
            # A limit of a group holds for all groups in it. In a container the path may be that of the host, and the
            # container's own group is at the top.
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                allowed = min(allowed, read(folder))
                if folder == base:
                    break
    return allowed


def _quota_of_2(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
    return math.inf


def _quota_of_1(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        if quota > 0 and period > 0:
            return quota / period
    return math.inf
