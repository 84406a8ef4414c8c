"""Out of memory: advice which option to change, and the search for a number of micro-batches that fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError

MARGIN = 0.08  # share of a GPU's memory that is kept free, for fragmentation and other libraries

# Only torch's GPU allocator has its own error class. Its CPU allocator, the CUDA runtime (if another program took the
# memory), cuBLAS and cuDNN raise a RuntimeError.
_WORDS = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED",
          "Triton Error [CUDA]: out of memory")  # fmt: skip


class Passes(Protocol):
    """The part of an engine that a task's step uses: forward and backward passes. A memory trial has only this part."""

    @property
    def model(self) -> Callable[..., Any]:
        """The network of the current stage, ready to be called for training."""
        ...

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Context of one micro-batch's forward and backward pass. `last`: it is the step's last one."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches."""

    def full_weights(self) -> AbstractContextManager:
        """Context in which the network holds the complete current weights on every rank, for reading only."""
        ...


class Trial(Protocol):
    """The part of a task (`Task` of training/task.py) that a trial uses."""

    micro_batches: int

    @property
    def net(self) -> nn.Module: ...
    @property
    def most_micro_batches(self) -> int: ...
    def step(self, engine: Passes, batch: Any, number: int) -> Any: ...
    def largest_batch(self) -> Any: ...
    def reset_hidden(self) -> None: ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of the device or machine is exhausted."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in _WORDS)


def advice(micro_batches: int, most: int) -> str:
    """Advice for the user if a step does not fit into memory."""
    if micro_batches < most:
        return (
            f"give --micro-batches {2 * micro_batches} (now {micro_batches}), which trains the same model in less "
            "memory, or --micro-batches auto on a GPU"
        )
    return "use more processes, a smaller --bptt or a smaller --preset"


class _Alone:
    """The engine of a trial: forward and backward pass of this process, without collectives."""

    def __init__(self, net: nn.Module, runtime: Runtime) -> None:
        self._net, self._runtime = net, runtime

    def model(self, *arguments: Any, **options: Any) -> Any:
        with self._runtime.accelerator.autocast():
            return self._net(*arguments, **options)

    def accumulate(self, *, last: bool) -> nullcontext:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def full_weights(self) -> nullcontext:
        return nullcontext()


def fit_micro_batches(task: Trial, runtime: Runtime) -> int:
    """Find the smallest power of two of micro-batches with which the largest step fits on all ranks (a collective).

    Each rank tries its own part of the largest step, with all layers trained and memory for AdamW's moments. Weights,
    statistics, hidden state and gradients are unchanged afterwards. Sets `task.micro_batches`.

    Raises:
        UserError: even the largest number does not fit on some rank; raised on all ranks.
    """
    kept = {name: tensor.detach().cpu().clone() for name, tensor in task.net.state_dict().items()}
    trained = [parameter.requires_grad for parameter in task.net.parameters()]
    micro_batches = 1
    while True:
        task.micro_batches = micro_batches
        # The ranks agree before one raises, because the others would wait for it in the next collective.
        if not runtime.max([not _fits(task, runtime)])[0]:
            break
        micro_batches *= 2
        if micro_batches > task.most_micro_batches:
            raise UserError(
                f"a step of --batch-size does not fit the GPU's memory, cut as finely as it can be; {advice(1, 1)}"
            )
    for parameter, requires_grad in zip(task.net.parameters(), trained, strict=True):
        parameter.requires_grad_(requires_grad)
    task.net.load_state_dict(kept)
    task.reset_hidden()
    return micro_batches


def _fits(task: Trial, runtime: Runtime) -> bool:
    held: list[Tensor] = []
    try:
        task.net.train().requires_grad_(True)
        for parameter in task.net.parameters():
            held += [torch.empty_like(parameter), torch.empty_like(parameter)]
        if runtime.device.type == "cuda":
            total = torch.cuda.get_device_properties(runtime.device).total_memory
            held.append(torch.empty(int(MARGIN * total), dtype=torch.uint8, device=runtime.device))
        batch = task.largest_batch()
        with runtime.alone():
            task.step(_Alone(task.net, runtime), batch, 0)
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        held.clear()
        task.net.zero_grad(set_to_none=True)
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(runtime.device)  # the log shows the peak of training only
