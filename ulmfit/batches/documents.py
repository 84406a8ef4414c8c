"""Classifier batches: documents of neighbouring lengths make a step, dealt to ranks at equal cost.

Three levels, each a pure function: `DocumentBatches` says which documents make step t (the mathematics),
`assign_to_ranks` cuts a step into ranks and micro-batches (memory and balance, never the mathematics), `collate` makes
the padded tensor of one micro-batch. A document's place in its step is its position; the trainer draws masks
and orders pooled vectors by it, so that nothing depends on how the step was dealt.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.order import permutation
from ulmfit.batches.position import check_identity
from ulmfit.errors import UserError

POOL_STEPS = 50  # steps' worth of shuffled documents that are sorted by length together
TIME_STEP_OVERHEAD = 16  # what a time step costs however few documents it reads, in documents
FORWARD = 1 / 3  # what a token costs that is read without gradient
EVALUATION_ROWS = 256  # enough for matrix products at full pace; a window of so many rows bounds the memory
EVALUATION_TOKENS = 262_144  # padded tokens of one batch of documents: 2 MiB of ids
_STEPS = 1  # marks the order of an epoch's steps, apart from that of its documents


class DocumentBatches:
    """Which documents make each step of each epoch.

    An epoch has ceil(n / batch_size) steps whose sizes differ by at most one; every document is in one of
    them. Documents are shuffled by (seed, epoch), sorted by length inside pools of 50 steps, cut into steps,
    and the steps shuffled. No step holds a single document unless there are fewer than 3 (BatchNorm needs
    two): where `batch_size` 2 leaves one over, its step has three.

    Args:
        lengths: tokens of each document, int [n].
        batch_size: documents of a step, over all ranks.
        shuffle: False leaves documents in the order of the corpus, neither shuffled nor sorted.

    Raises:
        UserError: batch_size below 2, or no documents.
    """

    def __init__(self, lengths: np.ndarray, *, batch_size: int, seed: int, shuffle: bool = True) -> None:
        if batch_size < 2:
            raise UserError(
                f"--batch-size {batch_size} is too small for the classifier's batch normalisation; "
                "give 2 documents a step or more"
            )
        self.lengths = np.array(lengths, dtype=np.int64)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        n = len(self.lengths)
        if n == 0:
            raise UserError("there are no documents to make batches of; check the data and its columns")
        self.steps_per_epoch = max(1, min(-(-n // batch_size), n // 2))
        self._cuts = np.arange(self.steps_per_epoch + 1, dtype=np.int64) * n // self.steps_per_epoch
        digest = hashlib.sha256(np.ascontiguousarray(self.lengths, dtype="<i8").data).hexdigest()
        self._identity = {"source": digest[:32], "batch_size": batch_size, "seed": seed}

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The document indices of each step of an epoch, int64, in order of length within a step."""
        n, steps = len(self.lengths), self.steps_per_epoch
        if not self.shuffle:
            return np.split(np.arange(n), self._cuts[1:-1])
        order = permutation(n, self.seed, epoch)
        pool = np.repeat(np.arange(steps) // POOL_STEPS, np.diff(self._cuts))
        order = order[np.lexsort((self.lengths[order], pool))]
        parts = np.split(order, self._cuts[1:-1])
        return [parts[step] for step in permutation(steps, self.seed, epoch, _STEPS)]

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[np.ndarray, int, int, dict[str, Any]]]:
        """(indices, epoch, step_in_epoch, state to go on after it) of all epochs from 0 on, endlessly.

        The state is small and JSON-able. UserError if it is of other documents, batch size or seed.
        """
        check_identity(state, self._identity)
        epoch, start = (state["epoch"], state["step"]) if state else (0, 0)
        while True:
            plan = self.plan(epoch)
            for step in range(start, len(plan)):
                done = step == len(plan) - 1
                following = {"epoch": epoch + done, "step": 0 if done else step + 1}
                yield plan[step], epoch, step, self._identity | following
            epoch, start = epoch + 1, 0


def _added_cost(length: int, begin: int, units: float, first: int | None, overhead: float) -> tuple[float, int]:
    """What a document adds to the cost of a micro-batch of longer ones, and the first time step trained then.

    The encoder reads window after window and drops documents that have ended, so it computes about their tokens
    (`units`, of which those before `begin` are read without gradient); and each time step of the longest costs a fixed
    `overhead` besides (kernel launches, the recurrence's latency), less where no document is trained on. Equal tokens
    alone is not equal time. `first` is the first time step trained before, None for an empty micro-batch. As no
    document is longer than one before it, the time steps at which it is trained and they are not lie between its own
    first and theirs.
    """
    if first is None:
        return units * (1 + overhead), begin
    more = max(0, min(first, length) - begin)
    return units + overhead * (1 - FORWARD) * more, min(first, begin)


def assign_to_ranks(
    lengths_of_step: np.ndarray,
    *,
    num_ranks: int,
    micro_batches: int,
    backprop_tokens: int | None = None,
    overhead: float = TIME_STEP_OVERHEAD,
) -> list[list[np.ndarray]]:
    """Cut one step into ranks and micro-batches.

    The documents, from the longest to the shortest, are first cut into `micro_batches` classes of equal
    work, so that neighbouring lengths meet in a micro-batch and memory is even. Each class is then dealt
    over the ranks, a document at a time to the rank whose total cost is lowest: ranks work on the same
    lengths at the same time, and what one class leaves uneven the next, of shorter documents, evens out.

    Args:
        lengths_of_step: tokens of the step's documents, int [n].
        backprop_tokens: last tokens of a document that are trained on (None: all); those before are read forward alone.

    Returns:
        [rank][micro-batch] -> positions in the step, int64, from the longest document to the shortest; every
        position is in exactly one of them, and some may be empty.
    """
    lengths = np.asarray(lengths_of_step)
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    begins = np.zeros_like(lengths) if backprop_tokens is None else np.maximum(lengths - backprop_tokens, 0)
    units = lengths - (1 - FORWARD) * begins  # work, in tokens that are trained on
    ends = np.cumsum(units)
    # The class of a document is where its middle falls, so a class is never off by a whole document.
    middles = (ends - units / 2) / max(1.0, ends[-1] if len(ends) else 0.0)
    classes = np.minimum((middles * micro_batches).astype(np.int64), micro_batches - 1)
    dealt: list[list[list[int]]] = [[[] for _ in range(micro_batches)] for _ in range(num_ranks)]
    heap = [(0.0, rank) for rank in range(num_ranks)]
    firsts: dict[tuple[int, int], int] = {}
    columns = (column.tolist() for column in (order, classes, lengths, begins, units))
    for position, part, length, begin, cost in zip(*columns, strict=True):
        spent, rank = heap[0]
        added, firsts[rank, part] = _added_cost(length, begin, cost, firsts.get((rank, part)), overhead)
        dealt[rank][part].append(position)
        heapq.heapreplace(heap, (spent + added, rank))
    return [[np.array(part, dtype=np.int64) for part in parts] for parts in dealt]


@dataclass(frozen=True)
class DocumentBatch:
    """One micro-batch, its documents from the longest to the shortest.

    tokens: int64 [n, T], padded on the right with `pad_id` to the longest; [0, 0] without documents.
    lengths: int64 [n].
    positions: int64 [n], the documents' places in the global step.
    indices: int64 [n], their numbers in the corpus.
    """

    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    indices: Tensor


def collate(
    store: TokenStore,
    indices: Sequence[int] | np.ndarray,
    positions: Sequence[int] | np.ndarray,
    *,
    pad_id: int,
    backwards: bool = False,
) -> DocumentBatch:
    """The batch of documents `indices` of a token cache, which have the places `positions` in their step.

    backwards reverses each document's ids, padding still on the right.
    """
    indices = np.asarray(indices, dtype=np.int64)
    order = np.argsort(-store.lengths[indices], kind="stable")
    ids, lengths = store.read(indices[order])
    positions = np.asarray(positions, dtype=np.int64)[order]
    return DocumentBatch(
        torch.from_numpy(pad(ids, lengths, pad_id=pad_id, backwards=backwards)),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(positions),
        torch.from_numpy(indices[order]),
    )


def pad(ids: np.ndarray, lengths: np.ndarray, *, pad_id: int, backwards: bool = False) -> np.ndarray:
    """Documents given one after another (ids [sum of lengths]) as rows: int64 [n, T], padded on the right."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if backwards:
        ends = np.cumsum(lengths)
        # Token k of a document that is tokens start to end stands at start + end - 1 - k.
        ids = ids[np.repeat(2 * ends - lengths - 1, lengths) - np.arange(len(ids))]
    tokens = np.full((len(lengths), int(lengths.max(initial=0))), pad_id, dtype=np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = ids
    return tokens


def evaluation_batches(
    lengths: np.ndarray, *, token_budget: int = EVALUATION_TOKENS, max_rows: int = EVALUATION_ROWS
) -> list[np.ndarray]:
    """Batches of all documents for reading without gradient, from the longest to the shortest.

    Each holds at most `max_rows` documents and at most `token_budget` tokens with padding (its number of documents
    times its longest), or a single document. The longest come first: what does not fit into memory fails at once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(token_budget // longest, max_rows))
        batches.append(order[start : start + size])
        start += size
    return batches
