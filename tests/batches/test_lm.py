from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from tests import golden as reference
from ulmfit.batches import lm
from ulmfit.batches.lm import CachedRows, StreamedRows, merge_states
from ulmfit.batches.order import permutation
from ulmfit.batches.stream import OVERHEAD
from ulmfit.errors import UserError

DEALINGS = (1, 2, 4)


def take(batches, count):
    return list(itertools.islice(batches, count))


def deal_rows(batch_size, num_ranks):
    each = batch_size // num_ranks
    return [range(rank * each, (rank + 1) * each) for rank in range(num_ranks)]


def assert_equal(batch, other):
    assert torch.equal(batch.tokens, other.tokens) and torch.equal(batch.targets, other.targets)
    assert batch.tokens.dtype == other.targets.dtype == torch.int64
    for name in ("num_targets", "reset", "epoch", "step_in_epoch", "lr_scale"):
        assert getattr(batch, name) == getattr(other, name)


def joined(parts):
    """The batch of all ranks, from those of one step."""
    first = parts[0]
    assert all(
        (part.num_targets, part.reset, part.epoch, part.step_in_epoch, part.lr_scale)
        == (first.num_targets, first.reset, first.epoch, first.step_in_epoch, first.lr_scale)
        for part in parts
    )
    return type(first)(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.targets for part in parts]),
        first.num_targets,
        first.reset,
        first.epoch,
        first.step_in_epoch,
        first.lr_scale,
    )


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


STREAMS = [
    # documents, batch_size, bptt, window, backwards
    (23, 4, 5, 6, False),
    (23, 4, 5, 6, True),
    (40, 8, 3, 40, False),
    (40, 4, 9, 1000, True),
    (7, 12, 4, 2, False),
    (1, 4, 3, 10, False),
]
STEPS = 60


@pytest.mark.parametrize(("num_documents", "batch_size", "bptt", "window", "backwards"), STREAMS)
class TestStreamedRows:
    @pytest.fixture
    def documents(self, fakes, num_documents):
        return fakes[2](num_documents, seed=num_documents)

    @pytest.fixture
    def source(self, fakes, documents, batch_size, bptt, window, backwards):
        return lambda rows=None, **more: StreamedRows(
            fakes[1](documents),
            fakes[0](),
            batch_size=batch_size,
            bptt=bptt,
            seed=3,
            rows=rows or range(batch_size),
            window=window,
            backwards=backwards,
            **more,
        )

    def test_rows_are_the_documents_dealt_in_turn(self, source, documents, batch_size, bptt, window, backwards):
        needed = STEPS * bptt + 1
        rows, number = [[] for _ in range(batch_size)], 0
        for epoch in itertools.count():
            dealt = []
            for index, start in enumerate(range(0, len(documents), window)):
                part = documents[start : start + window]
                for place in permutation(len(part), 3, epoch, index):
                    dealt.append(part[place])
                    rows[number % batch_size].extend(part[place][::-1] if backwards else part[place])
                    number += 1
            assert sorted(dealt) == documents
            if min(map(len, rows)) >= needed:
                break
        run = take(source().batches(), STEPS)
        for row in range(batch_size):
            assert torch.cat([batch.tokens[row] for batch, _ in run]).tolist() == rows[row][: needed - 1]
            assert torch.cat([batch.targets[row] for batch, _ in run]).tolist() == rows[row][1:needed]
        for step, (batch, _) in enumerate(run):
            assert batch.tokens.shape == batch.targets.shape == (batch_size, bptt)
            assert (batch.num_targets, batch.reset, batch.step_in_epoch) == (batch_size * bptt, step == 0, step)

    @pytest.mark.parametrize("num_ranks", DEALINGS)
    def test_any_ranks_read_what_one_rank_reads_also_after_a_change(self, source, batch_size, num_ranks):
        whole = take(source().batches(), STEPS)
        parts = [take(source(rows).batches(), STEPS) for rows in deal_rows(batch_size, num_ranks)]
        for (batch, state), *ranks in zip(whole, *parts, strict=True):
            assert_equal(batch, joined([part for part, _ in ranks]))
            merged = merge_states([part_state for _, part_state in ranks][::-1])
            assert merged["positions"] == state["positions"] and merged["rows"] == [0, batch_size]
        for done in range(1, STEPS - 4, 3):
            state = json.loads(json.dumps(merge_states([part[done - 1][1] for part in parts])))
            assert merge_states([state] * num_ranks) == state  # saved again before any step
            for other_ranks in DEALINGS:
                resumed = [source(rows).batches(state) for rows in deal_rows(batch_size, other_ranks)]
                for batch, state_after in whole[done : done + 4]:
                    pieces = [next(rank) for rank in resumed]
                    assert_equal(batch, joined([piece for piece, _ in pieces]))
                    assert merge_states([piece for _, piece in pieces])["positions"] == state_after["positions"]

    def test_a_bound_on_what_waits_changes_nothing(self, source, batch_size):
        free, tight = source(), source(max_waiting=1)
        for (batch, state), (other, other_state) in zip(
            take(free.batches(), STEPS), take(tight.batches(), STEPS), strict=True
        ):
            assert_equal(batch, other)
            assert state["positions"] == other_state["positions"]
        assert tight.num_passes > free.num_passes + batch_size - 2  # every row has its own reader by now


def test_what_waits_is_bounded(fakes):
    # Row 0 gets all the long documents, so the others' documents would pile up while it is read.
    split = fakes[1]([[7] * (60 if n % 4 == 0 else 2) for n in range(400)])
    waiting = {}
    for limit in (2**26, 100):
        stream = StreamedRows(
            split, fakes[0](), batch_size=4, bptt=4, seed=0, rows=range(4), window=1, max_waiting=limit
        )
        batches, largest = stream.batches(), 0
        for _ in range(200):
            next(batches)
            rows = batches.gi_frame.f_locals["rows"]
            largest = max(largest, sum(row.available for row in rows))
        waiting[limit] = largest
    assert waiting[2**26] > 1000 and waiting[100] <= 100 + 60 * 4


def test_what_short_documents_take_beside_their_tokens_is_bounded_too(fakes):
    split = fakes[1]([[7] * (90 if n % 4 == 0 else 1) for n in range(400)])
    most = {}
    for limit in (2**26, 50 * OVERHEAD):
        batches = StreamedRows(
            split, fakes[0](), batch_size=4, bptt=4, seed=0, rows=range(4), window=1, max_waiting=limit
        ).batches()
        most[limit] = 0
        for _ in range(150):
            next(batches)
            most[limit] = max(most[limit], sum(len(row.waiting) for row in batches.gi_frame.f_locals["rows"]))
    assert most[2**26] > 200 and most[50 * OVERHEAD] <= 55


def test_a_rank_tokenises_only_its_own_rows(fakes):
    make_tokenizer, make_split, make_documents = fakes
    documents = make_documents(100)
    encoded = []
    for rows in deal_rows(8, 4):
        tokenizer = make_tokenizer()
        take(
            StreamedRows(
                make_split(documents), tokenizer, batch_size=8, bptt=4, seed=0, rows=rows, window=48
            ).batches(),
            1,
        )
        encoded.append(set(tokenizer.encoded))
    assert sum(map(len, encoded)) == len(set.union(*encoded))
    assert all(len(texts) == 12 for texts in encoded)  # a quarter of one window


def test_resuming_opens_the_pass_of_the_position_and_tokenises_only_what_is_needed(fakes):
    make_tokenizer, make_split, make_documents = fakes
    documents = make_documents(50, longest=4)

    def source(tokenizer, split):
        return StreamedRows(split, tokenizer, batch_size=2, bptt=4, seed=0, rows=range(2), window=10)

    _, state = take(source(make_tokenizer(), make_split(documents)).batches(), 60)[-1]
    assert state["num_documents"] == 50 and min(document for document, _ in state["positions"]) > 100
    tokenizer, split = make_tokenizer(), make_split(documents)
    next(source(tokenizer, split).batches(state))
    assert split.passes == 1 and len(tokenizer.encoded) <= 20


def test_streams_that_cannot_be(fakes):
    make_tokenizer, make_split, make_documents = fakes
    options = {"batch_size": 2, "bptt": 5, "seed": 0, "rows": range(2), "window": 4}
    with pytest.raises(UserError, match="'train' holds no documents"):
        next(StreamedRows(make_split([]), make_tokenizer(), **options).batches())
    split = make_split(make_documents(9))
    batches = StreamedRows(split, make_tokenizer(), **options).batches()
    next(batches)
    split.documents = split.documents + split.documents[:1]
    with pytest.raises(UserError, match="documents, now"):
        take(batches, 100)
    split = make_split(make_documents(9))
    split.check = lambda: (_ for _ in ()).throw(UserError("7 % of the rows were skipped."))
    with pytest.raises(UserError, match="7 %"):
        take(StreamedRows(split, make_tokenizer(), **options).batches(), 100)
