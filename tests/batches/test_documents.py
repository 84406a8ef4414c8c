from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from ulmfit.batches.documents import DocumentBatches, assign_to_ranks, collate, evaluation_batches
from ulmfit.errors import UserError


def review_lengths(n, seed=0):
    """Lengths like those of IMDb's reviews: log-normal, mean about 290."""
    return np.clip(np.random.RandomState(seed).lognormal(5.45, 0.65, n), 10, 3000).astype(np.int64)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 64, 130, 1001])
@pytest.mark.parametrize("batch_size", [2, 3, 8, 64])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_document_once_in_steps_of_even_size(n, batch_size, shuffle):
    batches = DocumentBatches(review_lengths(n), batch_size=batch_size, seed=1, shuffle=shuffle)
    for epoch in range(2):
        plan = batches.plan(epoch)
        assert len(plan) == batches.steps_per_epoch
        sizes = [len(indices) for indices in plan]
        assert sorted(np.concatenate(plan).tolist()) == list(range(n))
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2 or n < 3
        if batch_size > 2 or n % 2 == 0:
            assert len(plan) == -(-n // batch_size)
    if not shuffle:
        assert np.concatenate(plan).tolist() == list(range(n))


def test_epochs_differ_and_are_functions_of_the_seed():
    lengths = review_lengths(500)
    plans = [
        DocumentBatches(lengths, batch_size=16, seed=seed).plan(epoch)
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    flat = [np.concatenate(plan).tolist() for plan in plans]
    assert flat[0] == flat[1] and len(set(map(tuple, flat))) == 3


def test_a_step_holds_neighbouring_lengths_and_steps_come_in_any_order():
    lengths = review_lengths(25_000)
    plan = DocumentBatches(lengths, batch_size=64, seed=0).plan(0)
    assert all((np.diff(lengths[indices]) >= 0).all() for indices in plan)
    padded = sum(lengths[indices].max() * len(indices) for indices in plan)
    assert lengths.sum() / padded > 0.88
    means = np.array([lengths[indices].mean() for indices in plan[:50]])
    assert 10 < (np.diff(means) > 0).sum() < 40


def test_every_state_goes_on_where_it_was_taken():
    lengths = review_lengths(50)
    run = list(itertools.islice(DocumentBatches(lengths, batch_size=8, seed=2).batches(), 17))
    assert [(epoch, step) for _, epoch, step, _ in run] == [(n // 7, n % 7) for n in range(17)]
    for done in range(1, 17):
        state = json.loads(json.dumps(run[done - 1][3]))
        resumed = DocumentBatches(lengths, batch_size=8, seed=2).batches(state)
        for (indices, *place), (others, *other_place) in zip(run[done:], resumed, strict=False):
            assert np.array_equal(indices, others) and place == other_place
    for change, word in [({"batch_size": 9}, "batch size"), ({"seed": 3}, "seed")]:
        with pytest.raises(UserError, match=f"another {word}"):
            next(DocumentBatches(lengths, **{"batch_size": 8, "seed": 2} | change).batches(run[0][3]))
    with pytest.raises(UserError, match="another corpus"):
        next(DocumentBatches(lengths[:-1], batch_size=8, seed=2).batches(run[0][3]))


def test_what_cannot_make_a_step():
    with pytest.raises(UserError, match="--batch-size 1 "):
        DocumentBatches(review_lengths(9), batch_size=1, seed=0)
    with pytest.raises(UserError, match="no documents"):
        DocumentBatches(np.array([]), batch_size=8, seed=0)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64, 200])
@pytest.mark.parametrize("num_ranks", [1, 2, 5, 64])
@pytest.mark.parametrize("micro_batches", [1, 3, 4])
def test_dealing_is_a_partition_by_length(n, num_ranks, micro_batches):
    lengths = review_lengths(n, seed=n)
    dealt = assign_to_ranks(lengths, num_ranks=num_ranks, micro_batches=micro_batches)
    assert len(dealt) == num_ranks and all(len(parts) == micro_batches for parts in dealt)
    everything = np.concatenate([part for parts in dealt for part in parts])
    assert sorted(everything.tolist()) == list(range(n)) and everything.dtype == np.int64
    for parts in dealt:
        mine = lengths[np.concatenate(parts)]
        assert (np.diff(mine) <= 0).all()  # micro-batches are from the longest to the shortest, and inside
    # Over all ranks too: no document of a later micro-batch is longer than one of an earlier.
    classes = [np.concatenate([lengths[parts[m]] for parts in dealt]) for m in range(micro_batches)]
    classes = [part for part in classes if len(part)]
    assert all(one.min() >= other.max() for one, other in itertools.pairwise(classes))
    again = assign_to_ranks(lengths, num_ranks=num_ranks, micro_batches=micro_batches)
    assert all(
        np.array_equal(a, b) for one, other in zip(dealt, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def cost(lengths, backprop_tokens, overhead=16, forward=1 / 3):
    """Cost of a micro-batch, time step by time step: rows that are trained or read there, and the step itself."""
    total = 0.0
    for start in range(0, int(lengths.max(initial=0)), 10):
        live, trained = lengths > start, (lengths > start) & (start >= lengths - backprop_tokens)
        rows = forward * live.sum() + (1 - forward) * trained.sum()
        total += 10 * (rows + overhead * (1 if trained.any() else forward))
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "batch_size"), [(2, 64), (8, 256), (64, 2048)])
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("backprop_tokens", [10_000, 400])
def test_ranks_are_balanced_and_little_is_padding(num_ranks, batch_size, micro_batches, backprop_tokens):
    lengths = review_lengths(25_000)
    mean = slowest = tokens = read = 0
    for indices in DocumentBatches(lengths, batch_size=batch_size, seed=0).plan(0)[::3]:
        step = lengths[indices]
        costs = []
        for parts in assign_to_ranks(
            step, num_ranks=num_ranks, micro_batches=micro_batches, backprop_tokens=backprop_tokens
        ):
            costs.append(sum(cost(step[part], backprop_tokens) for part in parts))
            for part in parts:
                tokens += step[part].sum()
                for start in range(0, int(step[part].max(initial=0)), 72):
                    # What an encoder reads that drops the documents that have ended.
                    live = step[part][step[part] > start]
                    read += len(live) * min(72, live.max() - start)
        mean, slowest = mean + np.mean(costs), slowest + max(costs)
    assert mean / slowest >= 0.97
    assert 1 - tokens / read < 0.04 + 0.03 * (num_ranks == 64)


def test_memory_of_micro_batches_is_even():
    lengths = review_lengths(64)
    dealt = assign_to_ranks(lengths, num_ranks=1, micro_batches=4)[0]
    tokens = np.array([lengths[part].sum() for part in dealt])
    assert tokens.max() / tokens.mean() < 1.15


@pytest.mark.parametrize("backwards", [False, True])
def test_collate_pads_on_the_right_from_the_longest_to_the_shortest(fakes, make_store, backwards):
    documents = fakes[2](20, longest=9)
    store = make_store(documents)
    indices, positions = [3, 8, 1, 15], [10, 11, 12, 13]
    batch = collate(store, indices, positions, pad_id=1, backwards=backwards)
    ordered = sorted(zip(indices, positions, strict=True), key=lambda pair: -len(documents[pair[0]]))
    assert batch.indices.tolist() == [index for index, _ in ordered]
    assert batch.positions.tolist() == [position for _, position in ordered]
    assert batch.lengths.tolist() == [len(documents[index]) for index, _ in ordered]
    assert batch.tokens.shape == (4, max(len(documents[index]) for index in indices))
    for row, index in zip(batch.tokens.tolist(), batch.indices.tolist(), strict=True):
        document = documents[index][::-1] if backwards else documents[index]
        assert row == document + [1] * (len(row) - len(document))
    assert all(tensor.dtype == torch.int64 for tensor in (batch.tokens, batch.lengths, batch.positions, batch.indices))


def test_a_batch_without_documents(fakes, make_store):
    batch = collate(make_store(fakes[2](5)), np.array([], dtype=np.int64), [], pad_id=1)
    assert batch.tokens.shape == (0, 0) and batch.lengths.shape == batch.positions.shape == (0,)
    assert batch.tokens.dtype == batch.positions.dtype == torch.int64


@pytest.mark.parametrize("budget", [1, 500, 4000, 10**9])
def test_evaluation_batches_keep_the_budget(budget):
    lengths = review_lengths(300)
    batches = evaluation_batches(lengths, token_budget=budget, max_rows=300)
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    assert all(lengths[batch].max() * len(batch) <= budget or len(batch) == 1 for batch in batches)
    assert (np.diff(lengths[np.concatenate(batches)]) <= 0).all()
    assert len(batches) == {1: 300, 10**9: 1}.get(budget, len(batches))
    assert evaluation_batches(np.array([], dtype=np.int64), token_budget=5) == []
    assert [len(batch) for batch in evaluation_batches(lengths, max_rows=128)] == [128, 128, 44]
