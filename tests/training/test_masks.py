"""Dropout masks: the same for every division of the rows, drawn only where they are used, by a definition that stays."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.ranks import on_ranks
from tests.training import runs
from ulmfit import train_language_model
from ulmfit.training.masks import BLOCK, Masks, derive_seed

ROWS, WIDTH, P = 200, 7, 0.3  # three blocks and a short one


def masks(rows, *, num_rows: int = ROWS, **more) -> Masks:
    return Masks(5, 3, num_rows=num_rows, rows=rows, **more)


def drawn(rows, **more) -> torch.Tensor:
    return masks(rows, **more).per_row(P, WIDTH, "hidden", 1, 2)


def at_once(num_rows: int) -> torch.Tensor:
    """The mask of definition 1, as versions up to 0.2.0 drew it."""
    generator = torch.Generator().manual_seed(derive_seed(5, 3, "hidden", 1, 2))
    return torch.empty(num_rows, WIDTH).bernoulli_(1 - P, generator=generator).div_(1 - P)


@pytest.mark.parametrize("definition", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 8, 25, 200])
def test_every_number_of_ranks_gets_its_rows_of_one_mask(number, definition):
    whole = drawn(range(ROWS), definition=definition)
    shares = [range(ROWS * rank // number, ROWS * (rank + 1) // number) for rank in range(number)]
    assert torch.equal(torch.cat([drawn(share, definition=definition) for share in shares]), whole)
    everyone = masks(range(ROWS), definition=definition)
    again = [everyone.for_rows(share).per_row(P, WIDTH, "hidden", 1, 2) for share in shares]
    assert torch.equal(torch.cat(again), whole)


@pytest.mark.parametrize("definition", [1, 2])
@pytest.mark.parametrize("rows", [[], [3], [150, 2, 199, 64, 63], [199], list(range(199, -1, -1))])
def test_scattered_rows_get_those_of_the_whole(rows, definition):
    whole = drawn(range(ROWS), definition=definition)
    assert torch.equal(drawn(torch.tensor(rows, dtype=torch.long), definition=definition), whole[rows])
    assert torch.equal(drawn(rows, definition=definition), whole[rows])


@pytest.mark.parametrize("num_rows", [1, 32, BLOCK])
def test_a_batch_of_one_block_has_the_masks_of_earlier_versions(num_rows):
    assert torch.equal(drawn(range(num_rows), num_rows=num_rows), at_once(num_rows))


def test_definition_1_is_that_of_earlier_versions():
    assert torch.equal(drawn(range(ROWS), definition=1), at_once(ROWS))
    assert not torch.equal(drawn(range(ROWS)), at_once(ROWS))


def test_blocks_and_places_have_masks_of_their_own():
    whole = drawn(range(192), num_rows=192).split(BLOCK)
    other = masks(range(192), num_rows=192).per_row(P, WIDTH, "hidden", 1, 3).split(BLOCK)
    found = {tuple(part.flatten().tolist()) for part in (*whole, *other)}
    assert len(found) == 6
    assert abs(torch.cat(whole).mean().item() - 1) < 0.1


@pytest.mark.parametrize(
    "rows", [range(10, 20), range(60, 70), range(128, 192), range(190, 200), [1, 2, 130], range(5, 5)]
)
def test_a_rank_draws_the_blocks_of_its_rows_only(rows, monkeypatch):
    seen: list[int] = []
    draw = Masks._draw
    monkeypatch.setattr(Masks, "_draw", lambda self, mask, *more: seen.append(len(mask)) or draw(self, mask, *more))
    drawn(rows)
    assert seen == [min(BLOCK, ROWS - block * BLOCK) for block in sorted({row // BLOCK for row in rows})]


@pytest.mark.slow
def test_two_ranks_of_several_blocks_train_the_model_of_one(tmp_path):
    """160 rows: rank 0 draws the first two blocks, rank 1 the last two."""
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 60))
    options = {"data": data, "preset": "tiny", "max_steps": 3, "batch_size": 160, "bptt": 4, "precision": "fp64"}

    def train(rank: int) -> str:
        return train_language_model(runs.lm_config(tmp_path / "two", drop_mult=1.0, **options)).state

    train_language_model(runs.lm_config(tmp_path / "one", drop_mult=1.0, **options))
    assert on_ranks(2, train, tmp_path / "launch") == ["done", "done"]
    assert runs.losses(tmp_path / "two") == pytest.approx(runs.losses(tmp_path / "one"), rel=1e-10)
    assert runs.distance(runs.weights(tmp_path / "one"), runs.weights(tmp_path / "two")) < 1e-10
