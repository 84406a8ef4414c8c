"""Backward pass, clipping, optimizer step and their checkpoint state.

The loop uses only the protocol `Engine`. `PlainEngine` is for one process or DDP (by accelerate). It gives the same
model on any number of ranks and the same bits after an interruption. The losses of DeepSpeedEngine
(distributed/zero.py) and FSDPEngine (distributed/fsdp.py) differ from its losses by at most 1e-4. Every engine reads
the checkpoints of every other one, on any number of ranks.
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

from ulmfit.distributed.memory import Passes
from ulmfit.distributed.optimizer_state import load_optimizer_state, optimizer_state
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.private_api import forget_prepared, leave_to_others, skip_step_where
from ulmfit.training.tied_reduction import TiedReduction

TIED_WEIGHT = "encoder.embedding.weight"


class Engine(Passes, Protocol):
    """The interface between the loop, the tasks and a way to train on one or many processes."""

    @property
    def model(self) -> nn.Module:
        """The network of the current stage, ready to be called for training."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer of the current stage."""
        ...

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Start a stage with the network and a new optimizer."""

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step. Returns two 0-d tensors: the gradient norm before clipping, and 1 if the step was skipped."""
        ...

    def state(self) -> dict[str, Any]:
        """The checkpoint state of the current stage, without the model."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state` of any engine, after `begin_stage`."""


class PlainEngine:
    """One process, or one copy of the model in each process, with gradients averaged over ranks (DDP).

    Attributes:
        model: the network of the current stage, ready to be called for training.
        optimizer: torch's optimizer of the current stage.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._accelerator = runtime, runtime.accelerator
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer
        self._reduces = False
        self._tied: TiedReduction | None = None

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Start a stage with the network and a new optimizer.

        The network is wrapped again in each stage, because DDP decides on construction which gradients it reduces.
        """
        accelerator = self._accelerator
        forget_prepared(accelerator)
        bare = accelerator.unwrap_model(net, keep_fp32_wrapper=False)
        if self._tied is not None:
            self._tied.close()
            self._tied = None
        if self._runtime.splits_tied_gradient and isinstance(bare, LanguageModelNet):
            trained = bare.encoder.embedding.weight.requires_grad
            self._tied = TiedReduction(bare, self._runtime) if trained else None
            leave_to_others(bare, [TIED_WEIGHT] if trained else [])
        with warnings.catch_warnings():
            # torch 2.13 renamed broadcast_buffers; torch 2.11 knows only the old name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model = accelerator.prepare_model(bare, device_placement=False)
        if self._runtime.compress_gradients and self._runtime.world_size > 1:
            cast(DistributedDataParallel, self.model).register_comm_hook(None, _average_in_bf16)
        self.optimizer = optimizer
        # accelerate's wrapper applies the loss scaler of fp16.
        self._stepper = accelerator.prepare_optimizer(optimizer, device_placement=False)

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Context of one micro-batch's forward and backward pass. Gradients are reduced in the last one only."""
        self._reduces = last
        if self._tied is not None:
            self._tied.begin(last=last)
        return nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches. They are averaged over ranks."""
        if self._reduces:
            self._runtime.progress.waits()
        self._accelerator.backward(loss)

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step. Returns two 0-d tensors: the gradient norm before clipping, and 1 if the step was skipped.

        A step with a gradient that is not finite is skipped. The device decides this, so the host does not wait. The
        ranks need not communicate, because the norm is equal on all of them after the reduction.
        """
        if self._tied is not None:
            self._tied.finish()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self._accelerator.clip_grad_norm_(parameters, clip or math.inf)
        found_inf = (~torch.isfinite(norm)).float()
        if self._accelerator.scaler is None:
            skip_step_where(self.optimizer, found_inf)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        return norm, found_inf

    def full_weights(self) -> AbstractContextManager:
        """Context in which `net` of `begin_stage` holds the complete current weights. Here it always does."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """The checkpoint state of the current stage, without the model: AdamW's moments and the loss scale."""
        scaler = self._accelerator.scaler
        return {
            "optimizer": optimizer_state(self.optimizer),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state`, after `begin_stage`."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])


def _average_in_bf16(group, bucket):
    """DDP communication hook that averages a bucket of gradients in bf16. Sums over micro-batches stay fp32.

    It wraps torch's hook under another name, because DDP recognises that one by name and refuses it without NCCL,
    although gloo can sum bf16 too. It has no annotations: DDP compares them by identity, and here they are strings.
    """
    return bf16_compress_hook(group, bucket)


def build_engine(runtime: Runtime) -> Engine:
    """The engine that the launcher requested. FSDP with one process has nothing to shard: it gets the plain engine."""
    if runtime.engine.startswith("zero"):
        from ulmfit.distributed.zero import DeepSpeedEngine

        return DeepSpeedEngine(runtime)
    if runtime.engine == "fsdp2" and runtime.world_size > 1:
        from ulmfit.distributed.fsdp import FSDPEngine

        return FSDPEngine(runtime)
    return PlainEngine(runtime)
