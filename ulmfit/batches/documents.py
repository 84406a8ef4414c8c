"""Classifier batches. A step consists of documents of similar lengths and is divided between ranks at equal cost.

There are three levels, each a pure function. `DocumentBatches` chooses the documents of step t; this affects the
result of training. `assign_to_ranks` divides a step into ranks and micro-batches; this affects memory and balance, but
not the result. `collate` makes the padded tensor of one micro-batch. A document's index in its step is its position.
Masks and pooled vectors are ordered by position, so the result does not depend on how the step was divided.
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
from ulmfit.batches.order import Draw, permutation
from ulmfit.batches.position import check_identity
from ulmfit.errors import UserError

POOL_STEPS = 50  # number of steps whose documents are sorted by length together
# Fixed cost of a time step (kernel launches, latency of the recurrence), as a number of documents, by type of device.
# The CPU's is measured (benchmarks/classifier_padding.py). CUDA's is an estimate: on an H100 200 to 350 documents take as
# long as the latency of a step.
TIME_STEP_OVERHEAD = {"cpu": 16.0, "cuda": 256.0}
FORWARD = 1 / 3  # cost of a token read without gradient, relative to one read with gradient
EVALUATION_ROWS = 256  # enough for matrix products at full speed; more rows would only need more memory
EVALUATION_TOKENS = 262_144  # padded tokens of one batch of documents: 2 MiB of ids


class DocumentBatches:
    """Chooses the documents of each step of each epoch.

    An epoch has ceil(n / batch_size) steps, whose sizes differ by at most one. Every document is in exactly one.
    Documents are shuffled by (seed, epoch), sorted by length within pools of 50 steps, and divided into steps. Then
    the steps are shuffled. BatchNorm needs two documents, so no step has a single one unless the corpus has fewer than
    3: with `batch_size` 2 and an odd number of documents, one step has three.

    Args:
        lengths: tokens of each document, int [n].
        batch_size: documents of a step, over all ranks.
        shuffle: False keeps the documents in the order of the corpus, neither shuffled nor sorted.

    Raises:
        UserError: batch_size is below 2, or there are no documents.
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
        """The document indices of each step of an epoch, int64, sorted by length within a step."""
        n, steps = len(self.lengths), self.steps_per_epoch
        if not self.shuffle:
            return np.split(np.arange(n), self._cuts[1:-1])
        order = permutation(n, self.seed, epoch)
        pool = np.repeat(np.arange(steps) // POOL_STEPS, np.diff(self._cuts))
        order = order[np.lexsort((self.lengths[order], pool))]
        parts = np.split(order, self._cuts[1:-1])
        return [parts[step] for step in permutation(steps, self.seed, epoch, Draw.STEPS)]

    def batches(self, state: dict[str, Any] | None = None) -> Iterator[tuple[np.ndarray, int, int, dict[str, Any]]]:
        """Endlessly yield (indices, epoch, step_in_epoch, state after this step), from `state` or epoch 0 on.

        The state is small and JSON-able.

        Raises:
            UserError: the state belongs to other documents, another batch size or seed.
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
    """The cost that a document adds to a micro-batch of longer documents, and the new first time step with gradient.

    The cost has two parts. One is the document's tokens (`units`; those before `begin` are read without gradient and
    cost less), because the encoder drops documents that have ended. The other is a fixed `overhead` per time step of
    the longest document (kernel launches, latency of the recurrence), which is lower for time steps without gradient.

    `first` is the first time step with gradient so far, None for an empty micro-batch. Documents come longest first,
    so the time steps that get a gradient only by this document are those from its own first one to `first`.
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
    overhead: float = TIME_STEP_OVERHEAD["cpu"],
) -> list[list[np.ndarray]]:
    """Divide one step into ranks and micro-batches.

    The documents, longest first, are divided into `micro_batches` classes of equal work. So a micro-batch has similar
    lengths, and all need similar memory. Then each document of a class is assigned to the rank with the lowest total
    cost so far. So all ranks process similar lengths at the same time, and imbalance of one class is compensated by
    the next one, which has shorter documents.

    Args:
        lengths_of_step: tokens of the step's documents, int [n].
        backprop_tokens: number of a document's last tokens that are read with gradient (None: all).
        overhead: fixed cost of a time step, as a number of documents. It must be equal on all ranks.

    Returns:
        [rank][micro-batch] -> positions in the step, int64, longest document first. Every position occurs exactly
        once. Some micro-batches may be empty.
    """
    lengths = np.asarray(lengths_of_step)
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    begins = np.zeros_like(lengths) if backprop_tokens is None else np.maximum(lengths - backprop_tokens, 0)
    units = lengths - (1 - FORWARD) * begins  # cost in tokens read with gradient
    ends = np.cumsum(units)
    # The middle of a document's interval decides on its class, so the error of a class is less than a document.
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


def places_after_gather(positions: list[np.ndarray]) -> tuple[Tensor | None, int]:
    """Where each document's row is in the ranks' rows, which are padded to the most rows of a rank and concatenated.

    Args:
        positions: of each rank, the positions in the step of its documents, in the order of its rows.

    Returns:
        int64 [documents of the step], and the most rows of a rank. None in place of the first if a rank has so many
        that to gather them would move at least as many bytes as a sum over ranks, which moves every row twice.
    """
    most = max(map(len, positions))
    size = sum(map(len, positions))
    if len(positions) > 1 and len(positions) * most >= 2 * size:
        return None, most
    places = np.empty(size, dtype=np.int64)
    for rank, own in enumerate(positions):
        places[own] = rank * most + np.arange(len(own))
    return torch.from_numpy(places), most


@dataclass(frozen=True)
class DocumentBatch:
    """One micro-batch, longest document first.

    Attributes:
        tokens: int64 [n, T], padded on the right with `pad_id` to the longest; [0, 0] without documents.
        lengths: int64 [n].
        positions: int64 [n], the documents' indices in the global step.
        indices: int64 [n], the documents' indices in the corpus.
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
    """The batch of the documents `indices` of a token cache; `positions` are their indices in the step.

    `backwards` reverses the ids of each document. The padding stays on the right.
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
    """Arrange concatenated documents (ids [sum of lengths]) as rows: int64 [n, T], padded on the right."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if backwards:
        ends = np.cumsum(lengths)
        # If a document is ids[start:end], token k of the reversed one is ids[end - 1 - k].
        ids = ids[np.repeat(2 * ends - lengths - 1, lengths) - np.arange(len(ids))]
    tokens = np.full((len(lengths), int(lengths.max(initial=0))), pad_id, dtype=np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = ids
    return tokens


def evaluation_batches(
    lengths: np.ndarray, *, token_budget: int = EVALUATION_TOKENS, max_rows: int = EVALUATION_ROWS
) -> list[np.ndarray]:
    """Batches of all documents for reading without gradient.

    A batch has at most `max_rows` documents and at most `token_budget` tokens with padding (number of documents x
    longest length), or it is a single document. The longest documents come first, so that a lack of memory shows at
    once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(token_budget // longest, max_rows))
        batches.append(order[start : start + size])
        start += size
    return batches
