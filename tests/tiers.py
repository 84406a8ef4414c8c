"""Which tests every change runs, and in which order.

fast: `-m "not slow"`, about two minutes. whole: .ci/run. long: tests/run_long.sh, with ULMFIT_LONG=1.
"""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("ULMFIT_LONG"))
# Files that take longest, as --durations tells. Two processes share the files: a long one at the end leaves one idle.
LONGEST_FIRST = (
    "tests/distributed/test_worlds.py",
    "tests/slurm/test_slurm.py",
    "tests/distributed/test_engines.py",
    "tests/distributed/test_stop.py",
    "tests/cli/test_predict_job.py",
    "tests/training/test_fit.py",
    "tests/training/test_runs.py",
    "tests/distributed/test_several.py",
    "tests/test_interrupt.py",
    "tests/training/test_begun.py",
    "tests/distributed/test_compression.py",
    "tests/test_bad_input.py",
    "tests/test_commands.py",
    "tests/training/test_fit_telling.py",
    "tests/test_limits.py",
    "tests/tokenizer/test_robustness.py",
    "tests/test_estimator.py",
    "tests/distributed/test_launch.py",
    "tests/distributed/test_watchdog.py",
)


def long_tier(covered: str) -> pytest.MarkDecorator:
    """A test of tests/run_long.sh alone. `covered` names what every change runs of its kind."""
    return pytest.mark.skipif(not LONG, reason=f"ULMFIT_LONG=1, as tests/run_long.sh has it; every change: {covered}")


def position(file: str) -> int:
    """Of a file of tests in the order of a run; a path from the root, with slashes."""
    return LONGEST_FIRST.index(file) if file in LONGEST_FIRST else len(LONGEST_FIRST)
