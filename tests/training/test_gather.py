"""The classifier's encodings of all ranks on every rank: each row as its rank computed it, moved at the least cost."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import train_classifier
from ulmfit.batches.documents import places_after_gather
from ulmfit.config import ClassifierConfig
from ulmfit.distributed.runtime import Runtime
from ulmfit.training.clf_task import ClassifierTask

EVEN = [[[4, 0], [2]], [[5, 1], [3]]]  # [rank][micro-batch] -> positions
UNEVEN = [[[3], [6]], [[0, 1, 2, 4, 5], []]]
LONELY = [[[], []], [[2, 0], [1]]]


def test_only_what_costs_less_than_a_sum_is_gathered():
    def places(shares):
        return places_after_gather([np.concatenate([np.array(part, dtype=np.int64) for part in s]) for s in shares])

    assert places(EVEN)[0].tolist() == [1, 4, 2, 5, 0, 3] and places(EVEN)[1] == 3
    assert places(UNEVEN)[0].tolist() == [5, 6, 7, 0, 8, 9, 1] and places(UNEVEN)[1] == 5
    assert places(LONELY) == (None, 3)
    assert places(LONELY[1:])[0].tolist() == [1, 2, 0]


def test_every_rank_gets_the_rows_that_the_others_computed(tmp_path):
    def gather(rank: int) -> tuple:
        runtime = Runtime(ClassifierConfig(threads=1))
        runtime.group.end_set_up()
        task, calls, wholes = object.__new__(ClassifierTask), [], []
        task._runtime = runtime
        for name in ("all_gather", "all_reduce"):
            call = getattr(dist, name)
            setattr(dist, name, lambda *a, _call=call, _name=name, **k: calls.append(_name) or _call(*a, **k))
        for shares in (EVEN, UNEVEN, LONELY):
            positions = [np.concatenate([np.array(part, dtype=np.int64) for part in share]) for share in shares]
            gathered, most = places_after_gather(positions)
            parts = [SimpleNamespace(positions=torch.tensor(part, dtype=torch.long)) for part in shares[rank]]
            size = sum(map(len, positions))
            rows = torch.arange(size * 3.0).reshape(size, 3) + 0.1
            batch = SimpleNamespace(indices=range(size), parts=parts, gathered=gathered, most_rows=most)
            wholes.append((task._gather(batch, rows[positions[rank]].requires_grad_()), rows))
        return wholes, calls

    for wholes, calls in on_ranks(2, gather, tmp_path):
        assert all(torch.equal(whole, rows) and not whole.requires_grad for whole, rows in wholes)
        assert calls == ["all_gather", "all_gather", "all_reduce"]


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_ranks_train_the_classifier_of_one(micro_batches, tmp_path):
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 40))
    options = {"data": data, "preset": "tiny", "encoder": "none", "max_steps": 3, "precision": "fp64"}

    def train(rank: int) -> str:
        return train_classifier(runs.clf_config(tmp_path / "two", micro_batches=micro_batches, **options)).state

    train_classifier(runs.clf_config(tmp_path / "one", **options))
    assert on_ranks(2, train, tmp_path / "launch") == ["done", "done"]
    assert runs.losses(tmp_path / "two") == pytest.approx(runs.losses(tmp_path / "one"), rel=1e-10)
    assert runs.distance(runs.weights(tmp_path / "one"), runs.weights(tmp_path / "two")) < 1e-10
