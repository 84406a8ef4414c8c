"""The tied weight's gradient in two parts: that of the plain reduction, with most of it sent early."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import private_api, train_language_model
from ulmfit.distributed import runtime as runtime_module
from ulmfit.training import tied_reduction
from ulmfit.training.loop import Loop


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    """Runs of one process, of two and of four, by name; also the sizes of what two ranks have sent."""
    folder = tmp_path_factory.mktemp("tied")
    options = {
        "data": str(runs.write_reviews(folder / "reviews.csv", 100)),
        "cache_dir": str(folder / "cache"),
        "preset": "tiny",
        "batch_size": 8,
        "bptt": 8,
        "max_steps": 4,
        "min_freq": 1,
        "precision": "fp64",
    }

    def train(name: str, stop_at: int | None = None, **more):
        stopped = mock.patch.object(Loop, "_stop_agreed", lambda loop: loop.position.step == stop_at)
        with stopped:
            train_language_model(runs.lm_config(folder / name, **options | more))

    def ranks(number: int, action) -> list:
        def prepared(rank: int):
            runtime_module.SPLIT_ON = {"cpu"}
            return action(rank)

        return on_ranks(number, prepared, folder / f"launch-{number}")

    def two(rank: int) -> list[tuple[int, ...]]:
        sent, reduce = [], dist.all_reduce
        with mock.patch.object(
            dist, "all_reduce", lambda t, *a, **k: sent.append(tuple(t.shape)) or reduce(t, *a, **k)
        ):
            train("two")
        train("two-cut", micro_batches=2)
        train("two-stopped", stop_at=2)
        train("two-stopped")
        train("two-sampled", sampled_softmax=100)
        tied_reduction.MOST_WORDS = 0.0
        train("two-whole")
        return sent

    train("one")
    train("one-sampled", sampled_softmax=100)
    (sent, _) = ranks(2, two)
    ranks(4, lambda rank: train("four"))
    return folder, sent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "two-cut", "two-whole", "two-sampled", "four"])
def test_the_model_is_that_of_one_process(name, runs_of):
    folder, _ = runs_of
    one = folder / ("one-sampled" if "sampled" in name else "one")
    assert runs.losses(folder / name) == pytest.approx(runs.losses(one), rel=1e-10)
    assert runs.distance(runs.weights(folder / name), runs.weights(one)) < 1e-10


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(runs_of):
    folder, _ = runs_of
    a, b = runs.weights(folder / "two"), runs.weights(folder / "two-stopped")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(folder / "two") == runs.metrics(folder / "two-stopped")


@pytest.mark.slow
def test_at_the_end_only_the_rows_of_the_step_s_words_are_sent(runs_of):
    folder, sent = runs_of
    matrices = [shape for shape in sent if len(shape) == 2 and shape[1] == 64]
    early, late = matrices[::2], matrices[1::2]
    vocabulary = json.loads((folder / "two" / "config.json").read_text())["resolved"]["vocabulary"]
    assert len(early) == len(late) == 4 and {shape[0] for shape in early} == {vocabulary} and vocabulary > 300
    assert all(10 < shape[0] <= 64 for shape in late), "at most the tokens of a step"


def test_ddp_leaves_a_parameter_to_others(tmp_path):
    def gradients(rank: int) -> list:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        private_api.leave_to_others(net, ["0.weight"])
        wrapped = DistributedDataParallel(net)
        wrapped(torch.full((1, 2), float(rank + 1))).sum().backward()
        return [p.grad for p in (net[0].weight, net[0].bias, net[1].weight)]

    one, two = on_ranks(2, gradients, tmp_path)
    assert not torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and torch.equal(one[2], two[2])
