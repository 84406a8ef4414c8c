"""A handful of the kills of tests/soak_kill.py, which does a hundred."""

import random
from pathlib import Path

import pytest

from tests import soak_kill
from tests.tiers import long_tier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kill")
    soak_kill.prepare(path)
    return path


RANK = pytest.param("clf", 2, ["rank"], marks=long_tier("the language model; a killed rank of two in test_stop.py"))


@pytest.mark.parametrize(("task", "world", "kinds"), [("lm", 1, ["all", "save", "all"]), RANK])
def test_a_killed_run_ends_as_one_that_was_not(task, world, kinds, folder):
    done = soak_kill.soak(folder, task, world, kinds, random.Random(0))
    assert [kind for run, _ in done for kind in run.kills] == kinds
    assert ("save" in kinds) == any("save" in run.in_save for run, _ in done)
    for run, equal in done:
        assert all(equal.values()), (run.path.name, run.kills, equal)
