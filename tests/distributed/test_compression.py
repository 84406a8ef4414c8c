"""Gradients averaged in bf16, by two real processes on the CPU."""

import pytest
import torch

from tests.tiers import LONG, long_tier
from tests.training import runs, world
from ulmfit.config_check import check
from ulmfit.distributed import sharding
from ulmfit.errors import UserError
from ulmfit.identity import identity

TASKS = ("lm", "clf")
STOPS = {"lm": [23, 50] if LONG else [23], "clf": [14, 30]}  # after the second stage's first step, and inside one
CUT = [pytest.param("clf", marks=long_tier("the language model; the classifier at two ranks in test_worlds.py")), "lm"]
NEAR = {"lm": 1e-4, "clf": 1e-2}  # measured: 1.7e-5 and 2.7e-3


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Whole recipes (stages that freeze, steps with ranks of fewer documents) on two processes, one launch for all."""
    path = tmp_path_factory.mktemp("compression")
    data = runs.write_reviews(path / "reviews.csv", 120)
    pretrained = runs.lm_config(path / "pretrained", data=str(data), preset="tiny", max_steps=30, lr=1e-2)
    jobs = [world.job("lm", vars(pretrained), world=1)]
    for task in TASKS:
        plans = {
            "plain": ({}, [None]),
            "bf16": ({"compress_gradients": True}, [None]),
            "bf16-stopped": ({"compress_gradients": True}, [*STOPS[task], None]),
            "bf16-cut": ({"compress_gradients": True, "micro_batches": 2}, [None]),
        }
        if task == "clf" and not LONG:
            plans = {name: plans[name] for name in ("plain", "bf16")}
        for name, (options, stops) in plans.items():
            for stop_at in stops:
                trainer, given = runs.whole_recipe(task, data, path / "pretrained", path / f"{task}-{name}", **options)
                jobs.append(world.job(trainer, given, world=2, stop_at=stop_at))
    world.launch(jobs, path / "launch", timeout=600)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_losses_stay_near_the_plain_run(task, done):
    plain, compressed = (runs.losses(done / f"{task}-{name}") for name in ("plain", "bf16"))
    assert plain[0] == compressed[0] and plain[5:] != compressed[5:], "nothing was rounded"
    assert compressed == pytest.approx(plain, rel=NEAR[task])
    a, b = (runs.events(done / f"{task}-{name}", "train")[0]["grad_norm"] for name in ("plain", "bf16"))
    assert b == pytest.approx(a, rel=2**-7)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", CUT)
def test_micro_batches_are_added_up_before_the_rounding(task, done):
    whole, cut = (runs.losses(done / f"{task}-{name}") for name in ("bf16", "bf16-cut"))
    assert cut == pytest.approx(whole, rel=NEAR[task])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", CUT)
def test_an_interrupted_run_ends_with_the_same_bits(task, done):
    straight, stopped = (runs.weights(done / f"{task}-{name}") for name in ("bf16", "bf16-stopped"))
    assert straight.keys() == stopped.keys() and all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert runs.metrics(done / f"{task}-bf16") == runs.metrics(done / f"{task}-bf16-stopped")


def test_it_is_refused_where_it_cannot_be_had(tmp_path, monkeypatch):
    config = runs.lm_config(tmp_path, compress_gradients=True)
    check(config)
    assert identity(config)["compress_gradients"], "a run cannot go on with another choice"
    with pytest.raises(UserError, match="--compress-gradients rounds to bf16 what --precision fp64 computes exactly"):
        check(runs.lm_config(tmp_path, compress_gradients=True, precision="fp64"))
    assert sharding.wanted_engine(config) == "plain"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="not for the engine fsdp2; leave it out, or use launch/multi_gpu.yaml"):
        sharding.wanted_engine(config)
