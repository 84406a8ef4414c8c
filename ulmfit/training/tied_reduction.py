"""Averages the gradient of the tied embedding over ranks, most of it while the LSTM still computes.

The weight is used twice: in the output layer, whose gradient is the first one of the backward pass, and in the
embedding, whose gradient is the last one. DDP waits for the sum of both, the largest gradient of all, and nothing is
left to compute while it is sent. Here the output layer's part is sent at once, behind the backward pass of the LSTM.
The embedding's part is zero but for the words of the step, so that only their rows are sent at the end. The words of
all ranks are known from the forward pass on. If they are more than half of the vocabulary, as in a step of hundreds of
ranks, the two parts would together take more time than they save; the sum is then sent at the end.

The choice depends on the data of the step alone, so a resumed run makes it again. The result differs from that of DDP
in the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ulmfit.distributed.runtime import Runtime
from ulmfit.model.language_model import LanguageModelNet

MOST_WORDS = 0.5  # share of the vocabulary up to which the rows of a step's words are sent apart


class TiedReduction:
    """The reduction of one network's tied weight, which DDP leaves alone.

    Args:
        net: gets hooks, until `close`. Its weight must have the same values on all ranks.
    """

    def __init__(self, net: LanguageModelNet, runtime: Runtime) -> None:
        self._net, self._runtime = net, runtime
        self._weight = net.encoder.embedding.weight
        self._training = self._last = False
        self._decoder: Tensor | None = None  # the output layer's part, [V, E]
        self._sent: Any = None  # its reduction, in progress
        self._words: Callable[[], Tensor]  # of all ranks, int64, on the CPU
        self._rows: Tensor | None = None  # those words; None if the sum of both parts is to be sent
        self._seen = torch.zeros(len(self._weight), dtype=torch.uint8, device=self._weight.device)
        self._hook = net.encoder.embedding.register_forward_pre_hook(self._on_words)
        net.output_weight = self._output_weight
        dist.broadcast(self._weight.data, src=0)  # as DDP does

    def close(self) -> None:
        """Remove the hooks."""
        self._hook.remove()
        self._net.output_weight = None

    def begin(self, *, last: bool) -> None:
        """A micro-batch follows. The gradients of all micro-batches are sent in the last one."""
        self._training, self._last = True, last

    def finish(self) -> None:
        """Wait for the reductions, after the backward pass of the last micro-batch: `grad` is the mean over ranks."""
        embedding, decoder = self._weight.grad, self._decoder
        assert embedding is not None and decoder is not None, "after a backward pass"
        if self._rows is None:
            total = embedding.add_(decoder)
            dist.all_reduce(total)
        else:
            rows = self._rows.to(embedding.device, non_blocking=True)
            part = embedding.index_select(0, rows)
            dist.all_reduce(part)
            self._sent.wait()
            total = decoder.index_add_(0, rows, part)
        self._weight.grad = total.div_(self._runtime.world_size)
        self._decoder = self._sent = self._rows = None
        self._training = False
        self._seen.zero_()

    def _on_words(self, embedding: torch.nn.Module, arguments: tuple[Tensor]) -> None:
        """Before the embedding of tokens: note the words of this step; in the last micro-batch, exchange them."""
        if not (self._training and torch.is_grad_enabled()):
            return
        self._seen.index_fill_(0, arguments[0].flatten(), 1)
        if self._last:
            self._words = _union(self._seen)

    def _output_weight(self, weight: Tensor) -> Tensor:
        """The weight, for the output layer. Its gradient comes to `_on_decoder` and does not reach the parameter."""
        if not (self._training and torch.is_grad_enabled()):
            return weight
        return _Apart.apply(weight, self._on_decoder)

    def _on_decoder(self, grad: Tensor) -> None:
        self._decoder = grad if self._decoder is None else self._decoder.add_(grad)
        if not self._last:
            return
        words = self._words()
        if len(words) <= MOST_WORDS * len(self._weight):
            self._rows = words
            self._sent = dist.all_reduce(self._decoder, async_op=True)


class _Apart(torch.autograd.Function):
    """Identity whose gradient is given to a function and not to its input."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.take(grad.contiguous())
        return None, None


def _union(seen: Tensor) -> Callable[[], Tensor]:
    """Start to exchange flags [V] uint8, and return a function that waits for the indices that any rank has flagged.

    On a GPU the exchange is queued before the rest of the step: who waits for it later does not drain the queue.
    """
    if seen.device.type != "cuda":
        work = dist.all_reduce(seen, op=dist.ReduceOp.MAX, async_op=True)

        def words() -> Tensor:
            work.wait()
            return seen.nonzero().squeeze(1)

        return words
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    copied = torch.empty(seen.shape, dtype=seen.dtype, pin_memory=True)
    copied.copy_(seen, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def words_of_gpu() -> Tensor:
        event.synchronize()
        return copied.nonzero().squeeze(1).pin_memory()

    return words_of_gpu
