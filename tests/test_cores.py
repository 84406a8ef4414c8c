"""Cores that the process may use, in made-up trees of /proc and /sys, and what OpenMP is told before torch loads."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from tests.training import runs
from ulmfit import cores


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A machine of 4 physical cores with two threads each: tree(path, text) writes a file."""
    monkeypatch.setattr(cores, "_affinity", lambda: set(range(8)))
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    for number in range(8):
        write(f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", f"{number % 4},{number % 4 + 4}")
    write("proc/self/cgroup", "0::/")
    write.root = tmp_path
    return write


def test_two_threads_of_a_core_are_one_core(tree, monkeypatch):
    assert cores.usable_cores(tree.root) == 4
    monkeypatch.setattr(cores, "_affinity", lambda: {0, 4, 1})
    assert cores.usable_cores(tree.root) == 2


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("?", 4)]
)
def test_the_quota_of_a_group_or_of_one_above(quota, expected, tree):
    tree("proc/self/cgroup", "0::/jobs/one")
    tree("sys/fs/cgroup/jobs/cpu.max", quota)
    assert cores.usable_cores(tree.root) == expected


def test_the_quota_of_the_first_version_of_cgroups(tree):
    """In a container the path is that of the host, and the container's group is at the top."""
    tree("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/")
    tree("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000")
    tree("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert cores.usable_cores(tree.root) == 3
    tree("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    assert cores.usable_cores(tree.root) == 4


def test_what_slurm_grants_and_processes_that_share_a_node(tree, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cores.usable_cores(tree.root) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores.usable_cores(tree.root) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert cores.usable_cores(tree.root) == 2


@pytest.mark.parametrize(("openmp", "expected"), [("2", 2), ("3,1", 3), ("0", 1), ("x", 4), ("9", 4)])
def test_openmp_may_say_less(openmp, expected, tree, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert cores.usable_cores(tree.root) == expected


def test_without_proc_and_sys(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_affinity", lambda: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores.usable_cores(tmp_path) == 2 and cores.free_cores(tmp_path, lambda _: None) == math.inf


def test_free_cores_are_those_that_were_idle(tree):
    def stat(*idle: int) -> None:
        tree("proc/stat", "\n".join(f"cpu{number} 0 0 0 {ticks} 0 0" for number, ticks in enumerate(idle)))

    ticks = int(cores.LOOK * os.sysconf("SC_CLK_TCK"))
    stat(*[100] * 8)
    idle = [100 + ticks] * 3 + [100 + ticks // 2] + [100] * 4
    assert cores.free_cores(tree.root, lambda _: stat(*idle)) == 3.5


@pytest.mark.parametrize(
    ("given", "free", "expected"),
    [
        ({}, 4, {"OMP_NUM_THREADS": "4", "GOMP_SPINCOUNT": str(cores.SPINS)}),
        ({}, 1, {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_NUM_THREADS": "2"}, 1.8, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(cores.SPINS)}),
        ({"OMP_NUM_THREADS": "1"}, 0, {"OMP_NUM_THREADS": "1"}),
        ({"OMP_NUM_THREADS": "2,4"}, 0, {"OMP_NUM_THREADS": "2,4", "GOMP_SPINCOUNT": str(cores.SPINS)}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 0, {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, 0, {"OMP_NUM_THREADS": "4", "GOMP_SPINCOUNT": "7"}),
    ],
)
def test_what_openmp_is_told(given, free, expected, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)
    monkeypatch.setattr(cores, "free_cores", lambda: free)
    environment = dict(given)
    cores.prepare_threads(environment)
    assert environment == expected


def test_a_command_tells_openmp_before_torch_loads():
    program = (
        "import sys; from ulmfit import cli, cores\n"
        "def prepare(): assert 'torch' not in sys.modules; print('prepared')\n"
        "cli.prepare_threads = prepare\n"
        "raise SystemExit(cli.main(['train-lm', '--max-steps', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert done.returncode == 2 and done.stdout == "prepared\n"
