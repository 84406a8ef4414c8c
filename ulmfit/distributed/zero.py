"""DeepSpeed ZeRO: moments (stage 1), also gradients (stage 2), also weights (stage 3) sharded over the ranks.

DeepSpeed is called directly, in fp32, with autocast around the forward pass as in the other engines. It shards a copy
of the network, made at the start of a stage. The task's own network stays an ordinary module, which is updated only in
`full_weights`. This costs each rank one more copy of the weights, but DeepSpeed's changes to a module need not be
undone. The new copy gives DeepSpeed only the layers that the stage trains; no other way to freeze layers works
with all three ZeRO stages.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ulmfit import private_api
from ulmfit.distributed.optimizer_state import use_parameters
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.sharding import zero_settings

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """An `Engine` (training/engine.py) that trains a copy of the network by DeepSpeed."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._deepspeed = _import_deepspeed()
        self._settings = zero_settings()
        self._net: nn.Module | None = None
        self._reduction = ExitStack()
        self.model: Any  # DeepSpeed's engine: a module with attributes that have no type stubs
        self.optimizer: torch.optim.Optimizer

    def begin_stage(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Start a stage with the network and a new optimizer. Its parameters are replaced by DeepSpeed's partitions."""
        if self._net is not None:
            self._refresh()
            self.model.destroy()
        self._net, self.optimizer = net, optimizer
        inner = copy.deepcopy(net)
        accelerator = self._runtime.accelerator
        private_api.forget_prepared(accelerator)
        # This adds only autocast for mixed precision: in evaluation mode accelerate does not wrap in DDP.
        inner = accelerator.prepare_model(inner, device_placement=False, evaluation_mode=True)
        self._parameters = dict(inner.named_parameters())
        use_parameters(optimizer, self._parameters)
        trained = sum(p.numel() for p in inner.parameters() if p.requires_grad)
        self.model, *_ = self._deepspeed.initialize(
            model=inner,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                # The task itself divides a step into micro-batches and normalises its loss.
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # Untested are optimizers other than DeepSpeed's own and Adam. AdamW is element-wise, so it can work on
                # partitions.
                "zero_allow_untested_optimizer": True,
                # Size of the reduction buffer; DeepSpeed's default is 2 GB.
                "zero_optimization": {"reduce_bucket_size": trained} | self._settings,
            },
        )

    def accumulate(self, *, last: bool) -> AbstractContextManager:
        """Context of one micro-batch's forward and backward pass. Gradients are reduced in `update` only."""
        if not self.model.inside_no_sync_ctxt:
            # One reduction per step, in the order of the parameters. By default DeepSpeed reduces in the order in which
            # autograd finishes the gradients, which may differ between ranks with documents of different lengths.
            self._reduction.enter_context(self.model.coalesce_grad_reduction())
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of earlier micro-batches. They are averaged over ranks."""
        self.model.backward(loss)

    def update(self, clip: float) -> tuple[Tensor, Tensor]:
        """Clip and step. Returns two 0-d tensors: the gradient norm before clipping (infinite if it was not finite),
        and 1 if the step was skipped."""
        self._runtime.progress.waits()
        self._reduction.close()
        zero = self.model.optimizer
        zero.clip_grad = clip
        self.model.step()
        device = self._runtime.device
        norm = torch.as_tensor(private_api.zero_gradient_norm(zero), dtype=torch.float32, device=device)
        return norm, torch.tensor(float(zero.overflow), device=device)

    @contextmanager
    def full_weights(self) -> Iterator[None]:
        """Context in which `net` of `begin_stage` holds the complete current weights on all ranks, for reading only."""
        self._refresh()
        yield

    def _refresh(self) -> None:
        """Copy the current weights to the task's network (a collective)."""
        assert self._net is not None, "begin_stage comes first"
        gathered: AbstractContextManager = nullcontext()
        if self._settings["stage"] == 3:
            gathered = self._deepspeed.zero.GatheredParameters(list(self._parameters.values()))
        with gathered:
            self._net.load_state_dict(self.model.module.state_dict())

    def state(self) -> dict[str, Any]:
        """The checkpoint state of the current stage, with complete moments, as in `PlainEngine` (a collective)."""
        if not self.optimizer.state:  # all steps so far were skipped
            return {"optimizer": {}, "scaler": None}
        self._link_moments()
        get = self._deepspeed.utils.safe_get_full_optimizer_state
        named = {}
        for group, partition in zip(self.optimizer.param_groups, self._partitions(), strict=True):
            step = self.optimizer.state[partition]["step"]
            for name in group["names"]:
                parameter = self._parameters[name]
                named[name] = {"step": step.clone()} | {key: get(parameter, key).cpu() for key in MOMENTS}
        return {"optimizer": named, "scaler": None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state` of any engine, after `begin_stage`."""
        if not state["optimizer"]:
            return
        for group, partition in zip(self.optimizer.param_groups, self._partitions(), strict=True):
            step = state["optimizer"][group["names"][0]]["step"]
            self.optimizer.state[partition] = {"step": step.to(partition.device).clone()} | {
                key: torch.zeros_like(partition) for key in MOMENTS
            }
        self._link_moments()
        for name, moments in state["optimizer"].items():
            for key in MOMENTS:
                value = moments[key].to(self._runtime.device)
                self._deepspeed.utils.safe_set_full_optimizer_state(self._parameters[name], value, key)

    def _partitions(self) -> list[Tensor]:
        """This rank's flat partition of each parameter group, which the optimizer updates."""
        return private_api.zero_partitions(self.model.optimizer, self._settings["stage"])

    def _link_moments(self) -> None:
        """In stages 1 and 2, link each parameter to its part of the flat moments. Stage 3 does not need this."""
        if self._settings["stage"] < 3:
            private_api.link_zero_moments(self.model.optimizer)


def _import_deepspeed() -> Any:
    """Import the package and set it up to use the existing process group."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls functions that torch 2.13 renamed, which would give hundreds of warnings.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    private_api.without_shared_memory_reduction()
    if not dist.is_initialized():  # one process
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed
