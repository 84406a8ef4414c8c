"""Several sources with weights, cached and streamed: exact shares, any number of ranks, any position."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from ulmfit.batches import mixed_stream, mixture
from ulmfit.batches.lm import CachedRows, StreamedRows, merge_states
from ulmfit.batches.mixed_stream import MixedStreamedRows
from ulmfit.batches.mixture import MixedStore, quotas
from ulmfit.batches.order import permutation, permuted_part
from ulmfit.errors import UserError

BATCH_SIZE, BPTT = 8, 5
WEIGHTS = (
    0.55,
    0.35,
    0.1,
)  # of 400, 30 and 2,000 documents: the second is read several times an epoch, the third in parts
FIRST_IDS = (10, 4_000, 5_000)  # of the sources, by which a token tells its source


def corpora(make_documents):
    sizes = (400, 30, 2000)
    return [make_documents(size, seed=size, first_id=first) for size, first in zip(sizes, FIRST_IDS, strict=True)]


@pytest.fixture
def mixed(fakes, make_store):
    def make(weights=WEIGHTS):
        stores = [make_store(documents, vocab_size=30_000) for documents in corpora(fakes[2])]
        return MixedStore([(name, weight, store) for name, weight, store in zip("abc", weights, stores, strict=True)])

    return make


def cached(store, rows=range(BATCH_SIZE), **options):
    return CachedRows(store, batch_size=BATCH_SIZE, bptt=12, seed=3, rows=rows, **options)


def deal(num_ranks):
    each = BATCH_SIZE // num_ranks
    return [range(rank * each, (rank + 1) * each) for rank in range(num_ranks)]


def take(batches, count):
    return list(itertools.islice(batches, count))


def source_of(tokens):
    return np.searchsorted(FIRST_IDS, tokens, side="right") - 1


def epoch_tokens(source, epoch):
    """The tokens of an epoch in the order in which they are read, row by row: all but the last of the text."""
    batches = list(source.epoch_batches(epoch))
    rows = [torch.cat([batch.tokens[row][batch.targets[row] >= 0] for batch in batches]) for row in range(BATCH_SIZE)]
    return torch.cat(rows).numpy(), int(batches[-1].targets[-1][batches[-1].targets[-1] >= 0][-1])


def test_a_part_of_a_pass_is_that_of_the_whole_order_and_little_is_sorted(mixed, monkeypatch):
    store, sorted_ = mixed(), []

    def whole(lengths, begin, end, *place):
        return permutation(len(lengths), *place), 0

    def part(*arguments):
        order, position = permuted_part(*arguments)
        sorted_.append((len(arguments[0]), len(order)))
        return order, position

    for epoch in range(4):
        monkeypatch.setattr(mixture, "permuted_part", whole)
        expected = store.of_epoch(3, epoch)
        monkeypatch.setattr(mixture, "permuted_part", part)
        found = store.of_epoch(3, epoch)
        assert np.array_equal(found.offsets, expected.offsets) and np.array_equal(found.lengths, expected.lengths)
    largest = [number for documents, number in sorted_ if documents == 2000]
    assert len(largest) == 4 and max(largest) < 400
    assert mixed((0.5, 0.5, 1e-9)).of_epoch(3, 0).num_documents > 0


def test_shares_are_exact_and_no_text_is_read_again_before_all_others(mixed):
    store = mixed()
    sizes = [part.num_tokens for part in store.stores]
    assert sum(store.quotas) == store.num_tokens == sum(sizes)
    assert all(abs(quota - weight * sum(sizes)) < 1 for quota, weight in zip(store.quotas, WEIGHTS, strict=True))
    assert store.quotas[1] > 5 * sizes[1] and store.quotas[2] < sizes[2] / 5
    source, read = cached(store), np.zeros(30_000, dtype=int)
    for epoch in range(5):
        tokens, last = epoch_tokens(source, epoch)
        counts = np.bincount(source_of(np.append(tokens, last)), minlength=3)
        assert counts.tolist() == store.quotas
        np.add.at(read, np.append(tokens, last), 1)
        for number, (first, size) in enumerate(zip(FIRST_IDS, sizes, strict=True)):
            passes = (epoch + 1) * store.quotas[number] / size
            seen = read[first : first + size]
            assert {*seen.tolist()} <= {int(passes), int(passes) + 1} and seen.sum() == (epoch + 1) * store.quotas[
                number
            ]


def test_epochs_and_passes_differ_in_their_order_and_sources_are_shuffled_among_each_other(mixed):
    source = cached(mixed())
    first, second = (epoch_tokens(source, epoch)[0] for epoch in (0, 1))
    assert not np.array_equal(first, second)
    changes = np.count_nonzero(np.diff(source_of(first)))
    assert changes > 400  # of about 1,300 pieces
    of_b = [tokens[source_of(tokens) == 1] for tokens in (first, second)]
    assert not np.array_equal(*(part[:60] for part in of_b))


@pytest.mark.parametrize("backwards", [False, True])
def test_any_ranks_go_on_from_any_step_of_a_cached_mixture(mixed, backwards):
    whole = take(cached(mixed(), backwards=backwards).batches(), 250)
    assert whole[-1][0].epoch == 1
    for num in (2, 4):
        ranks = [take(cached(mixed(), rows, backwards=backwards).batches(), 250) for rows in deal(num)]
        for (batch, state), *parts in zip(whole, *ranks, strict=True):
            assert torch.equal(batch.tokens, torch.cat([part.tokens for part, _ in parts]))
            assert torch.equal(batch.sources, sum(part.sources for part, _ in parts))
            assert all(other == state for _, other in parts)
    for done in (1, 150, 240):
        state = json.loads(json.dumps(whole[done - 1][1]))
        for batch, other in zip(
            take(cached(mixed(), backwards=backwards).batches(state), 3), whole[done:], strict=False
        ):
            assert torch.equal(batch[0].tokens, other[0].tokens) and torch.equal(batch[0].targets, other[0].targets)


def test_without_weights_each_token_is_read_once_an_epoch(mixed):
    store = mixed((None, None, None))
    assert store.passes == [1, 1, 1] and store.weights == [part.num_tokens / store.num_tokens for part in store.stores]
    tokens, last = epoch_tokens(cached(store), 1)
    assert np.bincount(np.append(tokens, last)).max() == 1 and len(tokens) + 1 == store.num_tokens


def test_the_position_of_other_weights_is_refused(mixed):
    _, state = next(cached(mixed()).batches())
    with pytest.raises(UserError, match="another corpus or tokenizer"):
        next(cached(mixed((0.5, 0.4, 0.1))).batches(state))
    next(cached(mixed((5.5, 3.5, 1))).batches(state))  # the same shares


def test_documents_of_a_mixture_are_those_of_its_sources(mixed, fakes):
    store = mixed()
    documents = [document for part in corpora(fakes[2]) for document in part]
    order = np.random.RandomState(0).permutation(len(documents))[:50]
    ids, lengths = store.read(order)
    assert ids.tolist() == [token for index in order for token in documents[index]]
    assert lengths.tolist() == [len(documents[index]) for index in order]


def test_quotas_sum_to_the_whole():
    assert quotas([1 / 3, 1 / 3, 1 / 3], 100) == [34, 33, 33]
    for seed in range(50):
        weights = np.random.RandomState(seed).dirichlet(np.ones(7)).tolist()
        found = quotas(weights, 10_007)
        assert sum(found) == 10_007 and all(abs(a - b * 10_007) < 1 for a, b in zip(found, weights, strict=True))


# Streams


@pytest.fixture
def stream(fakes):
    tokenizer_of, split_of, make_documents = fakes

    def make(rows=range(BATCH_SIZE), weights=WEIGHTS, **options):
        sources = [
            (name, weight, split_of(documents, batch_size=7))
            for name, weight, documents in zip("abc", weights, corpora(make_documents), strict=True)
        ]
        defaults = {"batch_size": BATCH_SIZE, "bptt": BPTT, "seed": 3, "window": 25}
        return MixedStreamedRows(sources, tokenizer_of(30_000), rows=rows, **defaults | options)

    return make


STEPS = 300


def test_any_ranks_go_on_from_any_step_of_a_streamed_mixture(stream):
    whole = take(stream().batches(), STEPS)
    ranks = {num: [take(stream(rows).batches(), STEPS) for rows in deal(num)] for num in (2, 4)}
    for num, runs in ranks.items():
        for (batch, state), *parts in zip(whole, *runs, strict=True):
            assert torch.equal(batch.tokens, torch.cat([part.tokens for part, _ in parts])), num
            assert torch.equal(batch.sources, sum(part.sources for part, _ in parts))
            merged = merge_states([other for _, other in parts])
            assert merged["positions"] == state["positions"]
    for done in range(1, STEPS - 4, 59):
        for before, after in [(1, 4), (4, 2), (2, 1)]:
            saved = [whole[done - 1][1]] if before == 1 else [run[done - 1][1] for run in ranks[before]]
            state = json.loads(json.dumps(merge_states(saved)))
            resumed = [stream(rows).batches(state) for rows in deal(after)]
            for batch, _ in whole[done : done + 4]:
                pieces = [next(rank)[0] for rank in resumed]
                assert torch.equal(batch.tokens, torch.cat([piece.tokens for piece in pieces]))
                assert torch.equal(batch.targets, torch.cat([piece.targets for piece in pieces]))
    assert take(stream().batches(whole[100][1]), 50)[-1][1] == whole[150][1]


def test_a_row_reads_whole_documents_in_the_order_of_the_streams_of_its_sources(stream, fakes):
    source = stream()
    text = torch.cat([batch.tokens for batch, _ in take(source.batches(), STEPS)], dim=1).numpy()
    for number in range(3):
        alone = StreamedRows(source.streams[number].split, fakes[0](30_000), batch_size=BATCH_SIZE, bptt=BPTT, seed=3,
                             rows=range(BATCH_SIZE), window=25)  # fmt: skip
        alone_text = torch.cat([batch.tokens for batch, _ in take(alone.batches(), STEPS)], dim=1).numpy()
        for row in range(BATCH_SIZE):
            mine = text[row][source_of(text[row]) == number]
            assert np.array_equal(mine, alone_text[row][: len(mine)]) and len(mine) > 60
    starts = {document[0] for part in corpora(fakes[2]) for document in part}
    for row in range(BATCH_SIZE):
        assert all(int(text[row][place]) in starts for place in np.flatnonzero(np.diff(source_of(text[row]))) + 1)


@pytest.mark.parametrize("ahead", [1, 40])
def test_no_row_reads_more_of_a_source_than_its_share_and_the_bound(stream, monkeypatch, ahead):
    monkeypatch.setattr(mixed_stream, "AHEAD", ahead)
    read = np.zeros(3)
    rows = np.zeros((BATCH_SIZE, 3))
    for batch, _ in take(stream().batches(), STEPS):
        read += batch.sources.numpy()
        for row in range(BATCH_SIZE):
            rows[row] += np.bincount(source_of(batch.tokens[row].numpy()), minlength=3)
        longest = 12
        assert (rows <= np.array(WEIGHTS) * (rows.sum(1, keepdims=True) + ahead) + longest).all()
    assert read.tolist() == rows.sum(0).tolist() and np.abs(read / read.sum() - WEIGHTS).max() < 0.02


def test_rows_differ_in_the_sources_that_they_begin_with(stream):
    batch, _ = next(stream(range(64), batch_size=64).batches())
    counts = np.bincount(source_of(batch.tokens[:, 0].numpy()), minlength=3)
    assert counts[0] > 20 and counts[1] > 10 and counts[2] > 0


def test_rows_that_wait_for_little_read_the_same(stream):
    free, tight = take(stream().batches(), STEPS), take(stream(max_waiting=900).batches(), STEPS)
    for (batch, state), (other, other_state) in zip(free, tight, strict=True):
        assert torch.equal(batch.tokens, other.tokens) and state["positions"] == other_state["positions"]


def test_the_position_of_other_streams_is_refused(stream):
    _, state = next(stream().batches())
    with pytest.raises(UserError, match="another weights"):
        next(stream(weights=(0.5, 0.4, 0.1)).batches(state))
    with pytest.raises(UserError, match="another corpus"):
        next(stream(window=24).batches(state))
