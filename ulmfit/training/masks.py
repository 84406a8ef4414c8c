"""Dropout masks and sampled words as a function of (seed, step, place, global row), whatever rank or micro-batch asks.

Every mask of AWD-LSTM is small: one factor a weight, a word, or a (row, feature). So each process draws
the mask of the whole global batch from a generator seeded by a hash of where the mask is used, and takes
the rows that it holds. Nothing depends on how many processes there are, on the order of the calls or on
what was drawn before, which is what makes runs equal on any cluster and resumable at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit.device import to_device


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed from any mixture of integers and strings, equal on every machine.

    32 bits because torch's CPU generator (mt19937) uses no more than that of its seed.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def draw_words(seed: int, step: int, probabilities: Tensor) -> Tensor:
    """The candidates of the sampled softmax at a step: ids [n] int64, ascending, on the CPU.

    Word w is among them with probability probabilities[w] ([V] float64), independently of the others. The same for all
    ranks and micro-batches, and on the CPU and a GPU, which need not wait to learn how many they are.
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
        rows: which of them this micro-batch holds, in its order.
        device: where masks are drawn. CPU and CUDA generators give different numbers.

    They are drawn where they are used. All GPUs of a kind give the same numbers, and there is nothing to copy: on the
    CPU the masks of the base model's recurrent weights alone, 11.3M numbers, take some 0.1 s of a core each step.
    """

    def __init__(
        self, seed: int, step: int, *, num_rows: int, rows: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.num_rows = seed, step, num_rows
        self.device = torch.device(device)
        # A range is cut out by its ends; its numbers on a GPU would have the host wait for their copy.
        self.rows = rows if isinstance(rows, range) else to_device(torch.as_tensor(rows, dtype=torch.long), self.device)
        self._generator = torch.Generator(device=self.device)

    def for_rows(self, rows: Sequence[int] | Tensor) -> Masks:
        """The same step's masks for other rows of the global batch."""
        return Masks(self.seed, self.step, num_rows=self.num_rows, rows=rows, device=self.device)

    def _draw(self, p: float, shape: tuple[int, ...], place: tuple[int | str, ...]) -> Tensor:
        self._generator.manual_seed(derive_seed(self.seed, self.step, *place))
        mask = torch.empty(shape, device=self.device)
        return mask.bernoulli_(1 - p, generator=self._generator).div_(1 - p)

    def shared(self, p: float, shape: tuple[int, ...], *place: int | str) -> Tensor | None:
        """A float32 mask of `shape`, the same for all rows; None where p is 0. Values 0 or 1 / (1 - p)."""
        return None if p == 0 else self._draw(p, tuple(shape), place)

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        """A float32 mask [rows, width], each row its own; None where p is 0."""
        if p == 0:
            return None
        mask = self._draw(p, (self.num_rows, width), place)
        if isinstance(self.rows, range):
            return mask[self.rows.start : self.rows.stop : self.rows.step]
        return mask.index_select(0, self.rows)
