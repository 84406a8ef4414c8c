"""FSDP2: weights, gradients and moments sharded over the ranks by torch's `fully_shard`.

The whole network is one FSDP unit, so its weights are gathered once per forward pass, for any number of windows. With
smaller units, weights would be gathered in each window, and ranks whose documents have other numbers of windows would
wait for each other. What is sharded is a copy of the network, made at the start of a stage. The task's own network
stays an ordinary module, which is updated only in `full_weights`. This costs each rank one more copy of the weights,
but the sharding need not be undone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ulmfit.distributed.optimizer_state import load_optimizer_state, optimizer_state, use_parameters
from ulmfit.distributed.runtime import Runtime
from ulmfit.private_api import forget_prepared, skip_step_where

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    class _Sharded(FSDPModule, nn.Module):
        """The type of a module after `fully_shard`."""


class FSDPEngine:
    """An `Engine` (training/engine.py) that trains a sharded copy of the network."""

    def __init__(self, runtime: Runtime) -> None:
        self._accelerator, self._progress = runtime.accelerator, runtime.progress
        self._mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        self._net: nn.Module | None = None
        self.model: _Sharded
        self.optimizer: torch.optim.Optimizer

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Start a stage with the network and a new optimizer. The optimizer's parameters are replaced by the shards."""
        if self._net is not None:
            self._refresh()
        self._net = net
        # fully_shard changes the module's class to one with two bases, but its annotation has only the new one.
        self.model = cast("_Sharded", fully_shard(copy.deepcopy(net), mesh=self._mesh))
        use_parameters(optimizer, dict(self.model.named_parameters()))
        self.optimizer = optimizer
        # This adds only autocast for mixed precision: in evaluation mode accelerate does not wrap in DDP.
        forget_prepared(self._accelerator)
        self._accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Context of one micro-batch's forward and backward pass. Gradients are reduced in the last one only."""
        self.model.set_requires_gradient_sync(last)
        self._progress.waits()  # the forward pass is a collective: it gathers weights
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches. They are averaged over ranks."""
        loss.backward()

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step. Returns two 0-d tensors: the gradient norm before clipping, and 1 if the step was skipped."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        assert isinstance(total, DTensor), "every gradient is cut as its parameter is"
        norm = total.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(parameters, clip or math.inf, norm)
        found_inf = (~torch.isfinite(norm)).float()
        skip_step_where(self.optimizer, found_inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, found_inf

    @contextmanager
    def full_weights(self) -> Iterator[None]:
        """Context in which `net` of `begin_stage` holds the complete current weights on all ranks, for reading only."""
        self._refresh()
        yield

    def _refresh(self) -> None:
        """Copy the current weights to the task's network (a collective)."""
        assert self._net is not None, "begin_stage comes first"
        self._net.load_state_dict({name: _gathered(value) for name, value in self.model.state_dict().items()})

    def state(self) -> dict[str, Any]:
        """The checkpoint state of the current stage, with complete moments, as in `PlainEngine` (a collective)."""
        named = optimizer_state(self.optimizer)
        return {
            "optimizer": {
                name: {key: _gathered(value).cpu() for key, value in moments.items()} for name, moments in named.items()
            },
            "scaler": None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state` of any engine, after `begin_stage`."""
        parameters = dict(self.model.named_parameters())

        def shard(name: str, value: Tensor) -> Tensor:
            value, parameter = value.to(self._mesh.device_type), parameters[name]
            assert isinstance(parameter, DTensor), "fully_shard has cut every parameter"
            return distribute_tensor(value, self._mesh, parameter.placements) if value.ndim else value

        load_optimizer_state(
            self.optimizer,
            {
                name: {key: shard(name, value) for key, value in moments.items()}
                for name, moments in state["optimizer"].items()
            },
        )


def _gathered(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
