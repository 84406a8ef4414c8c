"""A disk that fills up, fails, refuses or writes half, at any call of a short run.

A sample of the calls; ULMFIT_FAULTS=all takes every one (run_long.sh), and all tasks.
"""

import os

import pytest

from tests.faults.drill import TASKS, Drill, every
from tests.faults.layer import FAULTS, LASTING, Layer

ALL = os.environ.get("ULMFIT_FAULTS") == "all"
pytestmark = pytest.mark.timeout(7200 if ALL else 300)


@pytest.fixture(scope="module")
def drills(tmp_path_factory, reviews, runs):
    made = {}

    def drill(task):
        if task not in made:
            made[task] = Drill(tmp_path_factory.mktemp("faults"), task, reviews, runs.clf)
        return made[task]

    return drill


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("task", TASKS if ALL else ["lm"])
def test_after_any_fault_the_same_command_ends_with_the_same_bits(drills, task, fault):
    drill = drills(task)
    count = drill.count(fault)
    assert count > (0 if fault == "locks" or task == "predict" else 20)
    for at in every(count, 0 if ALL else 2 if fault in ("full", "failing") else 1, fault):
        hits = drill.fail(fault, at, lasting=fault in LASTING)
        assert hits, "the run is the same every time"


def test_the_layer_fails_where_it_should(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()

    def attempt(fault, at, **options):
        with Layer([inside], fault, at, **options).installed() as layer:
            (outside / "a").write_text("never hit")
            try:
                (inside / "a").write_text("text")
                os.replace(inside / "a", inside / "b")
            except OSError as error:
                return layer.hits, error.errno
        return layer.hits, (inside / "b").read_text()

    assert attempt("full", 0) == ([], "text")
    assert attempt("full", 1) == (["create"], FAULTS["full"][0])
    assert attempt("full", 2) == (["write"], FAULTS["full"][0])
    assert attempt("denied", 2) == (["rename"], FAULTS["denied"][0])
    assert attempt("short", 1) == (["write"], "text")
    assert attempt("failing", 3, lasting=True) == (["rename"], FAULTS["failing"][0])
