"""1, 2 and 4 real processes, and runs that change from one number to another: the same model.

One launch for each number of processes does all its runs (world.py); the tests look at what they left. The full
matrix of worlds and micro-batches is tests/invariance.py; micro-batches in one process are in training/test_runs.py.
With ULMFIT_LONG=1 more stops and moves, and streams and classifiers of four processes too.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.tiers import LONG
from tests.training import runs, world
from ulmfit import cli, train_language_model
from ulmfit.config import LMConfig
from ulmfit.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = ("lm", "stream", "clf")
STAGE_ENDS = {"lm": [22, 66], "stream": [22, 66], "clf": [14, 28, 42, 70]}
# (processes, micro-batches) compared with (1, 1)
CUTS = {
    "lm": [(2, 2), (4, 1)],
    "stream": [(2, 4)],
    "clf": [(2, 2)],
    "sampled": [(2, 2)],
    "labels": [(2, 2)],
    "mixture": [(2, 2)],
    "mixed stream": [(2, 2)],
}
# At the end of a stage; elsewhere; and at the very end, where only the model is left to be written.
STOPS = {"lm": [22, 50], "stream": [66], "clf": [13, 30], "mixture": [5], "mixed stream": [5]}
# Processes of a run, and the step at which it is stopped there: in a stage, between stages, after an epoch's end.
MOVES = {
    "lm": [(4, 12), (1, 22), (2, 50), (4, None)],
    "stream": [(4, 22), (2, None)],
    "clf": [(4, 10), (1, 26), (4, None)],
}
if LONG:
    CUTS |= {"stream": [(2, 4), (4, 2)], "clf": [(2, 4), (4, 1)]}
    STOPS |= {"lm": [21, 22, 23, 50], "stream": [22, 40, 66], "clf": [12, 13, 14, 30]}
    MOVES |= {"stream": [(4, 12), (1, 22), (2, 50), (4, None)], "clf": [(4, 10), (1, 26), (2, 45), (4, None)]}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The folder of all runs, with the corpus and a language model to start from in it."""
    path = tmp_path_factory.mktemp("worlds")
    data = runs.write_reviews(path / "reviews.csv", 120)
    runs.write_reviews(path / "others.csv", 30, first=200)
    train_language_model(runs.lm_config(path / "pretrained", data=str(data), preset="tiny", max_steps=30, lr=1e-2))
    return path


def a_job(given: Path, task: str, name: str, number: int, stop_at: int | None = None, **options) -> dict:
    trainer, options = runs.whole_recipe(task, given / "reviews.csv", given / "pretrained", given / name, **options)
    return world.job(trainer, options, world=number, stop_at=stop_at)


def cuts_at(number: int) -> list[tuple[str, int]]:
    """Task and micro-batches of each run of so many processes."""
    return [(task, cuts) for task in CUTS for processes, cuts in CUTS[task] if processes == number]


def stopped_at(number: int) -> list[tuple[str, int]]:
    """Those that are also interrupted."""
    return [(task, cuts) for task, cuts in cuts_at(number) if task in STOPS]


def jobs_at(given: Path, number: int) -> list[dict]:
    """Each run once without a stop, and those of `stopped_at` with stops."""
    return [
        a_job(given, task, f"{task}-{number}x{cuts}{name}", number, stop_at, precision="fp64", micro_batches=cuts)
        for name, chosen in (("", cuts_at(number)), ("-stopped", stopped_at(number)))
        for task, cuts in chosen
        for stop_at in ([*STOPS[task], None] if name else [None])
    ]


@pytest.fixture(scope="module")
def one(given):
    """This process alone: the runs that all others are compared with."""
    for task in CUTS:
        world.train(a_job(given, task, f"{task}-1x1", 1, precision="fp64"))
    return given


@pytest.fixture(scope="module")
def two(given):
    world.launch(jobs_at(given, 2), given / "launch-2", launcher="accelerate")
    return given


@pytest.fixture(scope="module")
def four(given):
    moves = [
        a_job(given, task, f"{task}-moved", number, stop_at, precision="fp64")
        for task in TASKS
        for number, stop_at in MOVES[task]
    ]
    world.launch(jobs_at(given, 4) + moves, given / "launch-4")
    return given


def assert_equal_up_to_summation_order(a: Path, b: Path) -> None:
    """Design section 6, "equal" in fp64: losses, gradient norms, scores and every tensor within 1e-10."""
    for event, keys in (("train", ("loss", "grad_norm", "accuracy")), ("eval", ("loss", "accuracy"))):
        first, second = runs.events(a, event), runs.events(b, event)
        assert [line["step"] for line in first] == [line["step"] for line in second] and first
        for x, y in zip(first, second, strict=True):
            assert {key: y[key] for key in keys} == pytest.approx({key: x[key] for key in keys}, rel=1e-10)
            assert x.get("confusion") == y.get("confusion")
    assert runs.distance(runs.weights(a), runs.weights(b)) < 1e-10


@pytest.mark.parametrize("task", TASKS)
def test_the_compared_run_is_worth_comparing(task, one):
    run = one / f"{task}-1x1"
    clip = json.loads((run / "config.json").read_text())["resolved"]["clip"]
    steps = runs.events(run, "train")
    ends = [line["step"] + line["steps"] for line in runs.events(run, "stage")]
    assert ends == STAGE_ENDS[task] and len(steps) == ends[-1] >= 60
    assert sum(line["grad_norm"] > clip for line in steps) > len(steps) / 2
    assert all(line["skipped"] == 0 for line in steps) and len(runs.events(run, "eval")) >= 4
    assert len({line["loss"] for line in steps}) == len(steps)
    if task != "stream":
        epoch_ends = {line["step"] for line in steps if line["epoch"] % 1 == 0}
        assert epoch_ends - set(ends), "no epoch ends inside a stage"
    if task == "lm":
        assert len({b["tokens"] - a["tokens"] for a, b in zip(steps, steps[1:], strict=False)}) > 5, "no jitter"


@pytest.mark.parametrize(("task", "cuts"), cuts_at(2))
def test_two_processes_train_the_model_of_one(task, cuts, one, two):
    assert_equal_up_to_summation_order(one / f"{task}-1x1", two / f"{task}-2x{cuts}")


@pytest.mark.parametrize(("task", "cuts"), cuts_at(4))
def test_four_processes_train_the_model_of_one(task, cuts, one, four):
    assert_equal_up_to_summation_order(one / f"{task}-1x1", four / f"{task}-4x{cuts}")


@pytest.mark.parametrize(("task", "cuts"), stopped_at(2))
def test_two_processes_interrupted_end_with_the_same_bits(task, cuts, two):
    assert_same_bits(two / f"{task}-2x{cuts}", two / f"{task}-2x{cuts}-stopped")


@pytest.mark.parametrize(("task", "cuts"), stopped_at(4))
def test_four_processes_interrupted_end_with_the_same_bits(task, cuts, four):
    assert_same_bits(four / f"{task}-4x{cuts}", four / f"{task}-4x{cuts}-stopped")


def assert_same_bits(straight: Path, stopped: Path) -> None:
    a, b = runs.weights(straight), runs.weights(stopped)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(straight) == runs.metrics(stopped)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_moves_between_worlds_trains_the_same_model(task, one, four):
    assert_equal_up_to_summation_order(one / f"{task}-1x1", four / f"{task}-moved")


def test_a_resume_with_another_global_batch_is_refused(given, capsys, monkeypatch):
    stopped = a_job(given, "lm", "refused", 1, stop_at=3)
    world.train(stopped)
    before = runs.metrics(given / "refused")
    words = runs.arguments(LMConfig(**stopped["options"]))
    assert cli.main(["train-lm", *words, "--batch-size", "32"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --output-dir {given / 'refused'} holds another run (batch-size: 16 -> 32); name another directory, "
        "or start afresh with --resume never"
    )
    with pytest.raises(UserError, match="16 rows cannot be dealt evenly to 1 processes x 3 micro-batches; give a"):
        world.train(a_job(given, "lm", "refused", 1, micro_batches=3))
    assert runs.metrics(given / "refused") == before
