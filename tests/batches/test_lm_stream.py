from __future__ import annotations

import itertools
import json

import pytest
import torch

from tests.batches.dealing import DEALINGS, assert_equal, deal_rows, joined, take
from ulmfit.batches.lm import StreamedRows, merge_states
from ulmfit.batches.order import permutation
from ulmfit.batches.stream import OVERHEAD
from ulmfit.errors import UserError

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
