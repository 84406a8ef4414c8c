"""The data and masks of 512 ranks, each made as on a cluster, in one process: they are those of one rank, dealt out."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ulmfit.batches.documents import DocumentBatches, assign_to_ranks
from ulmfit.batches.lm import CachedRows, StreamedRows, merge_states
from ulmfit.distributed.runtime import Runtime
from ulmfit.training.masks import Masks

RANKS = 512


def own_rows(num_rows, rank):
    return Runtime.own_rows(SimpleNamespace(rank=rank, world_size=RANKS), num_rows)


def take(source, count, state=None):
    return list(itertools.islice(source.batches(state), count))


def joined(parts, name):
    """One tensor of all ranks' rows for each step."""
    return [torch.cat([getattr(batch, name) for batch, _ in step]) for step in zip(*parts, strict=True)]


def test_every_token_of_a_cached_corpus_is_read_by_exactly_one_rank(make_store, fakes):
    documents = fakes[2](1500)
    rows = 2 * RANKS
    settings = {"batch_size": rows, "bptt": 4, "seed": 3}
    store = make_store(documents, vocab_size=sum(map(len, documents)) + 10)
    whole = CachedRows(store, rows=range(rows), **settings)
    steps = whole.steps_per_epoch() + 1  # one of the next epoch
    expected = take(whole, steps)
    parts = [take(CachedRows(store, rows=own_rows(rows, rank), **settings), steps) for rank in range(RANKS)]
    for name in ("tokens", "targets"):
        for ours, theirs in zip(joined(parts, name), [getattr(batch, name) for batch, _ in expected], strict=True):
            assert torch.equal(ours, theirs)
    epoch = torch.cat([step.flatten() for step in joined(parts, "targets")[:-1]])
    counted, times = epoch[epoch >= 0].unique(return_counts=True)  # all ids of this corpus differ
    assert len(counted) == store.num_tokens - 1 and (times == 1).all()
    # The position is that of one rank, whatever the number of ranks and rows.
    for step in range(steps):
        states = [part[step][1] for part in parts]
        assert merge_states(states) == expected[step][1] and len(json.dumps(states[0])) < 200


def test_every_row_of_a_stream_is_read_by_exactly_one_rank_and_goes_on_on_one(fakes):
    tokenizer, split, make_documents = fakes
    documents = make_documents(900, longest=8)
    settings = {"batch_size": RANKS, "bptt": 3, "seed": 3, "window": 100}

    def source(rows):
        return StreamedRows(split(documents, batch_size=100), tokenizer(10_000), rows=rows, **settings)

    expected = take(source(range(RANKS)), 3)
    parts = [take(source(own_rows(RANKS, rank)), 2) for rank in range(RANKS)]
    for step, tokens in enumerate(joined(parts, "tokens")):
        assert torch.equal(tokens, expected[step][0].tokens)
    merged = merge_states([part[1][1] for part in reversed(parts)])
    assert merged["positions"] == expected[1][1]["positions"] and merged["rows"] == [0, RANKS]
    ((following, _),) = take(source(range(RANKS)), 1, merged)
    assert torch.equal(following.tokens, expected[2][0].tokens)


def test_the_positions_of_a_stream_are_gathered_in_little_memory():
    """256 rows a rank after a long time: what a checkpoint gathers, and what merging it takes."""
    rows = 256
    states = [
        {
            "source": "s" * 32,
            "batch_size": RANKS * rows,
            "step": 10**6,
            "num_documents": 10**9,
            "rows": [rank * rows, (rank + 1) * rows],
            "positions": [[10**9 + row, 1000 + row] for row in range(rows)],
            "place": {"number": rank, "epoch": 1},
        }
        for rank in range(RANKS)
    ]
    assert sum(len(pickle.dumps(state)) for state in states) < 32 * RANKS * rows  # bytes
    tracemalloc.start()
    merged = merge_states(states)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merged["rows"] == [0, RANKS * rows] and len(merged["positions"]) == RANKS * rows
    assert merged["place"] == {"number": 0, "epoch": 1}
    assert peak < 32 * RANKS * rows


@pytest.mark.parametrize("rows", [64, 3, 1])
def test_the_masks_of_all_ranks_are_those_of_one(rows):
    """Also where a rank's rows begin within a block of rows that are drawn together."""
    total = RANKS * rows + RANKS // 2 * (rows == 3)  # not the same number on all ranks
    whole = Masks(5, 7, num_rows=total, rows=range(total))
    for place, width, p in (("hidden", 0, 1), 3, 0.25), (("input",), 2, 0.5):
        expected = whole.per_row(p, width, *place)
        ranks = [Masks(5, 7, num_rows=total, rows=own_rows(total, rank)) for rank in range(RANKS)]
        assert torch.equal(torch.cat([rank.per_row(p, width, *place) for rank in ranks]), expected)
        assert abs(expected.mean().item() - 1) < 6 * (p / (1 - p) / expected.numel()) ** 0.5  # six standard errors
    shared = whole.shared(0.5, (20, 3), "weights")
    assert all(torch.equal(rank.shared(0.5, (20, 3), "weights"), shared) for rank in ranks[:: RANKS // 8])


def test_every_document_of_a_classifiers_step_is_read_by_exactly_one_rank():
    lengths = np.random.RandomState(0).randint(1, 900, 5000)
    for plan in DocumentBatches(lengths, batch_size=1200, seed=1).plan(0):
        dealt = assign_to_ranks(lengths[plan], num_ranks=RANKS, micro_batches=2)
        positions = np.concatenate([part for rank in dealt for part in rank])
        assert len(dealt) == RANKS and np.array_equal(np.sort(positions), np.arange(len(plan)))
