"""Dropout masks and sampled words, as functions of (seed, step, place, global row).

The masks of AWD-LSTM are small: one factor per weight, per word, or per (row, feature). Those of rows are drawn in
blocks of 64 rows of the global batch, each with a generator of its own, and a process draws the blocks that its rows
are in. A generator is seeded by a hash of seed, step, place of use and block. So a mask does not depend on the number
of ranks or micro-batches, on the order of calls or on earlier draws. This is why a run gives the same model on any
number of processes and can resume at any step.

Definition 1, of versions up to 0.2.0, drew the rows of the global batch at once, on every process: gigabytes with
hundreds of processes. The first block of definition 2 is seeded in the same way, so that up to 64 rows the two agree.
A run keeps the definition that it began with (`training/begun.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit.device import to_device

DEFINITION = 2  # of the masks of rows; see above
BLOCK = 64  # rows of a block: small enough for the share of one process, large enough to draw at full speed


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed from integers and strings, the same on every machine.

    32 bits, because torch's CPU generator (mt19937) uses only 32 bits of its seed.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def draw_words(seed: int, step: int, probabilities: Tensor) -> Tensor:
    """Draw the candidates of the sampled softmax for a step: ids [n] int64, ascending, on the CPU.

    Word w is drawn with probability probabilities[w] ([V] float64), independently of the others. The result is the
    same for all ranks and micro-batches, and for training on CPU and GPU. It is drawn on the CPU, so the host knows n
    without waiting for a GPU.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, step, "candidates"))
    drawn = torch.rand(len(probabilities), dtype=torch.float64, generator=generator)
    return (drawn < probabilities).nonzero().squeeze(1)


class Masks:
    """Scaled Bernoulli masks for one micro-batch of one step.

    Args:
        seed: the run's seed.
        step: the global step, counted over all stages.
        num_rows: rows of the global batch.
        rows: indices of this micro-batch's rows in the global batch.
        device: where masks are drawn and used. CPU and CUDA generators give different numbers.
        definition: 1 or 2.

    Masks are drawn on the device to avoid a copy and the cost of drawing on the CPU: the masks of the base model's
    recurrent weights, 11.3M numbers, take about 0.1 s of a core each step. All GPUs of one kind give the same numbers.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        *,
        num_rows: int,
        rows: Sequence[int] | Tensor,
        device: torch.device | str = "cpu",
        definition: int = DEFINITION,
    ) -> None:
        self.seed, self.step, self.num_rows, self.definition = seed, step, num_rows, definition
        self.device = torch.device(device)
        self._block = max(1, num_rows) if definition == 1 else BLOCK
        self._blocks: Sequence[int]  # those that the rows are in, ascending
        self._mine: slice | Tensor  # the rows within these blocks
        if isinstance(rows, range):  # a slice, because a copy of its indices to a GPU would make the host wait
            first = rows.start // self._block
            self._blocks = range(first, -(-rows.stop // self._block)) if len(rows) else range(0)
            self._mine = slice(rows.start - first * self._block, rows.stop - first * self._block, rows.step)
        else:
            rows = torch.as_tensor(rows, dtype=torch.long)
            blocks, places = (rows // self._block).unique(return_inverse=True)
            self._blocks = blocks.tolist()
            self._mine = to_device(places * self._block + rows % self._block, self.device)
        self._generator = torch.Generator(device=self.device)

    def for_rows(self, rows: Sequence[int] | Tensor) -> Masks:
        """The masks of the same step for other rows of the global batch."""
        return Masks(
            self.seed, self.step, num_rows=self.num_rows, rows=rows, device=self.device, definition=self.definition
        )

    def _draw(self, mask: Tensor, p: float, place: tuple[int | str, ...]) -> None:
        """Fill `mask` with 0 and 1."""
        self._generator.manual_seed(derive_seed(self.seed, self.step, *place))
        mask.bernoulli_(1 - p, generator=self._generator)

    def shared(self, p: float, shape: tuple[int, ...], *place: int | str) -> Tensor | None:
        """A float32 mask of `shape`, the same for all rows; None if p is 0. Values are 0 or 1 / (1 - p)."""
        if p == 0:
            return None
        mask = torch.empty(shape, device=self.device)
        self._draw(mask, p, place)
        return mask.div_(1 - p)

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        """A float32 mask [rows, width], different for each row; None if p is 0. Values are 0 or 1 / (1 - p)."""
        if p == 0:
            return None
        sizes = [min(self._block, self.num_rows - block * self._block) for block in self._blocks]
        mask = torch.empty(sum(sizes), width, device=self.device)
        for block, part in zip(self._blocks, mask.split(sizes) if sizes else (), strict=True):
            self._draw(part, p, (*place, "block", block) if block else place)
        mask.div_(1 - p)
        return mask[self._mine] if isinstance(self._mine, slice) else mask.index_select(0, self._mine)
