"""How many cores a process may use."""

import os

import pytest

from ulmfit import cores


@pytest.mark.parametrize("quota, openmp, expected", [
    ("max 100000\n", None, 8), ("250000 100000\n", None, 3), ("10000 100000\n", None, 1), ("torn", None, 8),
    (None, None, 8), ("max 100000\n", "2", 2), ("max 100000\n", "4,1", 4), ("max 100000\n", "0", 1), (None, "x", 8),
])  # fmt: skip
def test_the_smallest_limit_counts(monkeypatch, tmp_path, quota, openmp, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if openmp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert cores.usable_cores() == expected
