"""Rows dealt to ranks, and batches compared and joined again."""

from __future__ import annotations

import itertools

import torch

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
