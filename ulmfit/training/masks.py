"""Dropout masks and sampled words, as functions of (seed, step, place, global row).

The masks of AWD-LSTM are small: one factor per weight, per word, or per (row, feature). Each process draws the mask
of the whole global batch and takes its own rows. The generator is seeded by a hash of seed, step and place of use.
So a mask does not depend on the number of ranks or micro-batches, on the order of calls or on earlier draws. This is
why a run gives the same model on any number of processes and can resume at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit.device import to_device


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

    Masks are drawn on the device to avoid a copy and the cost of drawing on the CPU: the masks of the base model's
    recurrent weights, 11.3M numbers, take about 0.1 s of a core each step. All GPUs of one kind give the same numbers.
    """

    def __init__(
        self, seed: int, step: int, *, num_rows: int, rows: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.num_rows = seed, step, num_rows
        self.device = torch.device(device)
        # A range is used as a slice, because a copy of its indices to a GPU would make the host wait.
        self.rows = rows if isinstance(rows, range) else to_device(torch.as_tensor(rows, dtype=torch.long), self.device)
        self._generator = torch.Generator(device=self.device)

    def for_rows(self, rows: Sequence[int] | Tensor) -> Masks:
        """The masks of the same step for other rows of the global batch."""
        return Masks(self.seed, self.step, num_rows=self.num_rows, rows=rows, device=self.device)

    def _draw(self, p: float, shape: tuple[int, ...], place: tuple[int | str, ...]) -> Tensor:
        self._generator.manual_seed(derive_seed(self.seed, self.step, *place))
        mask = torch.empty(shape, device=self.device)
        return mask.bernoulli_(1 - p, generator=self._generator).div_(1 - p)

    def shared(self, p: float, shape: tuple[int, ...], *place: int | str) -> Tensor | None:
        """A float32 mask of `shape`, the same for all rows; None if p is 0. Values are 0 or 1 / (1 - p)."""
        return None if p == 0 else self._draw(p, tuple(shape), place)

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        """A float32 mask [rows, width], different for each row; None if p is 0. Values are 0 or 1 / (1 - p)."""
        if p == 0:
            return None
        mask = self._draw(p, (self.num_rows, width), place)
        if isinstance(self.rows, range):
            return mask[self.rows.start : self.rows.stop : self.rows.step]
        return mask.index_select(0, self.rows)
