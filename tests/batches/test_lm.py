from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from tests import golden as reference
from tests.batches.dealing import DEALINGS, assert_equal, deal_rows, joined, take
from ulmfit.batches import lm
from ulmfit.batches.lm import CachedRows, StreamedRows, merge_states
from ulmfit.batches.order import permutation
from ulmfit.errors import UserError


def test_a_permutation_depends_on_its_place_alone():
    assert sorted(permutation(100, 1, 2, 3).tolist()) == list(range(100))
    assert np.array_equal(permutation(100, 1, 2, 3), permutation(100, 1, 2, 3))
    drawn = {tuple(permutation(100, *place).tolist()) for place in [(1,), (2,), (1, 0), (1, 1), (1, 1, 0)]}
    assert len(drawn) == 5


CONFIGS = [
    # documents, batch_size, bptt, options
    (30, 4, 7, {}),
    (30, 8, 5, {"shuffle": False}),
    (30, 4, 7, {"backwards": True}),
    (57, 8, 3, {"backwards": True, "shuffle": False}),
    (80, 4, 12, {"jitter": True}),
    (80, 4, 12, {"jitter": True, "backwards": True}),
    (5, 4, 100, {}),
    (13, 12, 1, {}),
    (1, 4, 2, {}),
]


@pytest.mark.parametrize(("num_documents", "batch_size", "bptt", "options"), CONFIGS)
class TestCachedRows:
    @pytest.fixture
    def documents(self, fakes, num_documents):
        # One long document, so that a single one fills four rows.
        return fakes[2](num_documents, seed=num_documents) + [list(range(900, 921))]

    @pytest.fixture
    def source(self, make_store, documents, batch_size, bptt, options):
        store = make_store(documents)
        return lambda rows=None, **more: CachedRows(
            store, batch_size=batch_size, bptt=bptt, seed=3, rows=rows or range(batch_size), **options | more
        )

    def test_every_token_is_target_once_and_follows_its_input(self, source, documents, batch_size, options):
        corpus = list(itertools.chain(*documents))
        follows = {}
        for document in documents:
            document = document[::-1] if options.get("backwards") else document
            follows.update(zip(document, document[1:], strict=False))
        texts = []
        for epoch in range(2):
            rows = [[] for _ in range(batch_size)]
            steps = list(source().epoch_batches(epoch))
            assert len(steps) == source().steps_per_epoch(epoch)
            for step, batch in enumerate(steps):
                assert (batch.epoch, batch.step_in_epoch, batch.reset) == (epoch, step, step == 0)
                counted = batch.targets != -100
                assert batch.num_targets == int(counted.sum())
                assert (batch.tokens[~counted] == 1).all()
                if step < len(steps) - 1:
                    assert counted.all()
                else:  # only the last column may be masked
                    assert counted[:, :-1].all() and counted[:, -1].any()
                for row in range(batch_size):
                    tokens = batch.tokens[row][counted[row]].tolist()
                    targets = batch.targets[row][counted[row]].tolist()
                    assert tokens[1:] == targets[:-1]
                    if rows[row] and tokens:
                        assert rows[row][-1][1] == tokens[0]
                    rows[row].extend(zip(tokens, targets, strict=True))
            sizes = [len(row) for row in rows]
            assert max(sizes) - min(sizes) <= 1
            pairs = list(itertools.chain(*rows))
            text = [pairs[0][0], *(target for _, target in pairs)]
            assert Counter(text) == Counter(corpus)  # every token; and as target, each but the first
            assert [token for token, _ in pairs] == text[:-1]  # rows are cuts of one text
            # Whole documents, one after another: inside a document each token is followed by its next.
            assert all(follows.get(token, target) == target for token, target in pairs)
            texts.append(text)
        if options.get("shuffle", True) and len(documents) > 2:
            assert texts[0] != texts[1]
        elif not options.get("shuffle", True):
            assert texts[0] == texts[1] == (corpus[::-1] if options.get("backwards") else corpus)

    @pytest.mark.parametrize("num_ranks", DEALINGS)
    def test_ranks_together_read_what_one_rank_reads(self, source, batch_size, num_ranks):
        whole = list(source().epoch_batches(1))
        parts = [list(source(rows).epoch_batches(1)) for rows in deal_rows(batch_size, num_ranks)]
        assert len(whole) == len(parts[0])
        for batch, *ranks in zip(whole, *parts, strict=True):
            assert_equal(batch, joined(ranks))

    def test_every_state_goes_on_where_it_was_taken(self, source, batch_size):
        steps = source().steps_per_epoch(0) + source().steps_per_epoch(1) + 2
        run = take(source().batches(), steps)
        assert run[-1][0].epoch >= 2
        for done in range(1, steps):
            state = json.loads(json.dumps(merge_states([run[done - 1][1]] * 2)))
            half = deal_rows(batch_size, 2)[1]
            for (batch, state_after), (other, other_state) in zip(
                run[done : done + 4], source(half).batches(state), strict=False
            ):
                assert_equal(
                    other,
                    joined(
                        [
                            type(batch)(
                                batch.tokens[half.start :],
                                batch.targets[half.start :],
                                batch.num_targets,
                                batch.reset,
                                batch.epoch,
                                batch.step_in_epoch,
                                batch.lr_scale,
                            )
                        ]
                    ),
                )
                assert state_after == other_state


def test_batch_size_does_not_change_what_validation_counts(fakes, make_store):
    documents = fakes[2](40)
    store = make_store(documents)
    corpus = list(itertools.chain(*documents))
    for batch_size in (1, 2, 3, 7, 16, 50, len(corpus) - 1):
        rows = CachedRows(store, batch_size=batch_size, bptt=6, seed=0, rows=range(batch_size), shuffle=False)
        grid = torch.cat([batch.targets for batch in rows.epoch_batches(0)], dim=1)
        assert grid[grid != -100].tolist() == corpus[1:]


def test_jitter_scales_the_learning_rate_and_is_bounded(make_store):
    store = make_store([[5] * 60_001])
    source = CachedRows(store, batch_size=2, bptt=70, seed=1, rows=range(1), jitter=True)
    steps = list(source.epoch_batches(0))[:-1]
    lengths = np.array([batch.tokens.shape[1] for batch in steps])
    assert [batch.lr_scale for batch in steps] == [length / 70 for length in lengths]
    assert 5 <= lengths.min() and lengths.max() <= 95 and len(set(lengths)) > 10
    halved = lengths < 52
    assert 0.01 < halved.mean() < 0.12 and abs(lengths[~halved].mean() - 69.5) < 1
    other = [batch.tokens.shape[1] for batch in source.epoch_batches(1)]
    assert other[: len(lengths)] != lengths.tolist()
    plain = CachedRows(store, batch_size=2, bptt=70, seed=1, rows=range(1))
    assert {batch.lr_scale for batch in plain.epoch_batches(0)} == {1.0}


def test_jitter_is_drawn_once_an_epoch(make_store, monkeypatch):
    """The loop asks for the length of an epoch at every step, while batches are read ahead into the next."""
    drawn = []
    real = lm.generator
    monkeypatch.setattr(lm, "generator", lambda *parts: drawn.append(parts) or real(*parts))
    source = CachedRows(make_store([[5] * 601]), batch_size=2, bptt=20, seed=1, rows=range(2), jitter=True)
    asked = set()
    for batch, _ in source.batches():
        if batch.epoch == 3:
            break
        for epoch in {max(0, batch.epoch - 1), batch.epoch}:
            asked.add((epoch, source.steps_per_epoch(epoch)))
    assert [parts[1] for parts in drawn if parts[2:] == (lm._JITTER,)] == [0, 1, 2, 3]
    assert len(asked) == 3


def test_backwards_reads_the_joined_text_from_its_end_as_fastai(make_store):
    golden = reference.table(1)
    documents = [list(range(2, 9)), list(range(20, 33)), list(range(40, 52))]
    for backwards in (False, True):
        theirs = np.array(golden[f"lm_batches_v1_backwards{backwards}"])  # [step, row, (input, target), T]
        rows = CachedRows(
            make_store(documents), batch_size=3, bptt=5, seed=0, rows=range(3), shuffle=False, backwards=backwards
        )
        batch = next(iter(rows.epoch_batches(0)))
        # Their later rows start elsewhere: they cut 32 tokens into 3 rows without a target for each end.
        assert batch.tokens[0].tolist() == theirs[0, 0, 0].tolist()
        assert batch.targets[0].tolist() == theirs[0, 0, 1].tolist()


def test_a_corpus_too_small_names_the_option(make_store):
    store = make_store([[1, 2, 3], [4]])
    assert sum(1 for _ in CachedRows(store, batch_size=3, bptt=5, seed=0, rows=range(3)).epoch_batches(0)) == 1
    with pytest.raises(UserError, match="--batch-size to 3 or less"):
        CachedRows(store, batch_size=4, bptt=5, seed=0, rows=range(4))


def test_a_position_in_other_data_is_refused(fakes, make_store):
    documents = fakes[2](20)
    options = {"batch_size": 4, "bptt": 5, "seed": 0, "rows": range(4)}
    _, state = next(CachedRows(make_store(documents), **options).batches())
    for change, word in [
        ({"batch_size": 2, "rows": range(2)}, "batch size"),
        ({"bptt": 6}, "bptt"),
        ({"seed": 1}, "seed"),
    ]:
        with pytest.raises(UserError, match=f"another {word}"):
            next(CachedRows(make_store(documents), **options | change).batches(state))
    with pytest.raises(UserError, match="another corpus or tokenizer"):
        next(CachedRows(make_store(documents[1:]), **options).batches(state))
    with pytest.raises(UserError, match="another corpus or tokenizer"):
        next(StreamedRows(fakes[1](documents), fakes[0](), **options).batches(state))
