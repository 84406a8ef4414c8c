"""Backward, clipping, optimizer step and their checkpoint state.

The loop knows the protocol `Engine` alone. `PlainEngine` is one process, or DDP by accelerate. It gives the same model
on any number of ranks and the same bits after an interruption. DeepSpeedEngine (distributed/zero.py) and FSDPEngine
(distributed/fsdp.py) give its losses within 1e-4. Any engine reads the checkpoints of the others, on any number of ranks.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from ulmfit.distributed.optimizer_state import load_optimizer_state, optimizer_state
from ulmfit.distributed.runtime import Runtime
from ulmfit.private_api import forget_prepared, skip_step_where


class Engine(Protocol):
    """What the loop and the tasks need of a way to train on one or many processes.

    Attributes:
        model: the network of the current stage, ready to be called for training.
        optimizer: torch's optimizer of the current stage.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the network and a stage's fresh optimizer."""

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Around one micro-batch's forward and backward pass."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches."""

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step: the gradient norm before clipping, and 1.0 where the step was skipped."""
        ...

    def full_weights(self) -> AbstractContextManager:
        """Within it the network holds whole, current weights on every rank, for reading only."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the current stage beside the model."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state` of any engine gave, after `begin_stage`."""


class PlainEngine:
    """One process, or data-parallel copies whose gradients are averaged (DDP).

    Attributes:
        model: the network of the current stage, ready to be called for training.
        optimizer: torch's optimizer of the current stage.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._accelerator = runtime, runtime.accelerator
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer
        self._reduces = False

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the network and a stage's fresh optimizer.

        Wrapped anew at each stage, because DDP fixes what it reduces when it is built.
        """
        accelerator = self._accelerator
        forget_prepared(accelerator)
        bare = accelerator.unwrap_model(net, keep_fp32_wrapper=False)
        with warnings.catch_warnings():
            # torch 2.13 has another name for broadcast_buffers, which 2.11 does not know yet.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model = accelerator.prepare_model(bare, device_placement=False)
        if self._runtime.compress_gradients and self._runtime.world_size > 1:
            cast(DistributedDataParallel, self.model).register_comm_hook(None, _average_in_bf16)
        self.optimizer = optimizer
        # accelerate's wrapper puts the loss scaler of fp16 around the step.
        self._stepper = accelerator.prepare_optimizer(optimizer, device_placement=False)

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Around one micro-batch's forward and backward: ranks reduce gradients in the last one only."""
        self._reduces = last
        return nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches; ranks are averaged."""
        if self._reduces:
            self._runtime.progress.waits()
        self._accelerator.backward(loss)

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step: the gradient norm before clipping, and 1.0 where the step was skipped.

        A step without a finite gradient is skipped. That is decided on the device, without waiting for it:
        the norm is equal on all ranks after the reduction.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self._accelerator.clip_grad_norm_(parameters, clip or math.inf)
        found_inf = (~torch.isfinite(norm)).float()
        if self._accelerator.scaler is None:
            skip_step_where(self.optimizer, found_inf)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        return norm, found_inf

    def full_weights(self) -> AbstractContextManager:
        """Within it `net` of `begin_stage` holds whole, current weights on every rank, for reading only."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the current stage beside the model: moments and loss scale."""
        scaler = self._accelerator.scaler
        return {
            "optimizer": optimizer_state(self.optimizer),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave, after `begin_stage`."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])


def _average_in_bf16(group, bucket):
    """DDP's reduction of a bucket of gradients, sent as bf16. What micro-batches and the optimizer add up stays fp32.

    torch's hook under another name: by its own DDP takes it for NCCL's alone, but gloo sums bf16 too. (DDP compares
    annotations by identity, which those of this file, as text, do not pass.)
    """
    return bf16_compress_hook(group, bucket)


def build_engine(runtime: Runtime) -> Engine:
    """The engine that the launcher asked for. FSDP over one process has nothing to shard and is the plain one."""
    if runtime.engine.startswith("zero"):
        from ulmfit.distributed.zero import DeepSpeedEngine

        return DeepSpeedEngine(runtime)
    if runtime.engine == "fsdp2" and runtime.world_size > 1:
        from ulmfit.distributed.fsdp import FSDPEngine

        return FSDPEngine(runtime)
    return PlainEngine(runtime)
