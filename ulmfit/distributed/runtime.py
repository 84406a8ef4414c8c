"""The process group, the device and what ranks say to each other. All of `torch.distributed` is here."""

from __future__ import annotations

import gc
import os
import platform
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ulmfit.config import TrainConfig
from ulmfit.distributed.progress import Progress
from ulmfit.distributed.sharding import processes_only, wanted_engine
from ulmfit.errors import UserError

MIXED_PRECISION = {"fp32": "no", "fp64": "no", "fp16": "fp16", "bf16": "bf16"}
# Ranks wait in a collective while rank 0 reads and tokenises a large corpus. A hang in training is the watchdog's.
GROUP_TIMEOUT = timedelta(hours=12)


class Runtime:
    """One process's view of the run: rank, world size, device and collectives.

    Attributes:
        engine: plain, fsdp2, zero1, zero2 or zero3, as the launcher asked.
        compress_gradients: whether ranks average their gradients in bf16.

    Raises:
        UserError: the launcher's world size and the process group's differ, or the precision or the engine
            is not to be had on this device.
    """

    def __init__(self, config: TrainConfig) -> None:
        on_gpu = torch.cuda.is_available()
        if config.precision == "fp16" and not on_gpu:
            raise UserError("--precision fp16 needs a GPU; use fp32 (or bf16) on this machine")
        self.engine = wanted_engine(config)
        self.compress_gradients = config.compress_gradients
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.threads = torch.get_num_threads()
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # cuDNN's is on by default
        # Parameters that took no part in a step (frozen layers, a rank without documents) must not stall
        # the reduction; and with unused-parameter search the buckets are never rebuilt, so that a resumed
        # run sums in the same order as one that was never stopped. The buffers (BatchNorm statistics)
        # are equal on all ranks by construction.
        ddp = DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        group = InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)
        join_after_restart("nccl" if on_gpu else "gloo")
        with processes_only():
            self.accelerator = Accelerator(
                cpu=not on_gpu, mixed_precision=MIXED_PRECISION[config.precision], kwargs_handlers=[ddp, group]
            )
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.progress = Progress(self.device)
        announced = int(os.environ.get("WORLD_SIZE", 1))
        if announced != self.world_size:
            raise UserError(
                f"the launcher started {announced} processes but the process group holds {self.world_size}, so each "
                "would train a model of its own; launch with `accelerate launch --multi_gpu` or `torchrun`"
            )
        seed_everything(config.seed)

    def own_rows(self, num_rows: int) -> range:
        """The contiguous share of global rows that this rank holds; may be empty."""
        return range(num_rows * self.rank // self.world_size, num_rows * (self.rank + 1) // self.world_size)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it this process meets no other: what would be summed or gathered over ranks is its own."""
        world_size, self.world_size = self.world_size, 1
        try:
            yield
        finally:
            self.world_size = world_size

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over ranks (a new tensor, equal on all of them)."""
        if self.world_size == 1:
            return values
        total = values.clone()
        self.progress.waits()
        dist.all_reduce(total)
        return total

    def max(self, values: list[float]) -> list[float]:
        """The element-wise largest over ranks of a few numbers."""
        if self.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.progress.waits()
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's tensor (all of one shape), stacked along a new first dimension; no gradient."""
        if self.world_size == 1:
            return values.detach().unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        self.progress.waits()
        dist.all_gather(parts, values.detach().contiguous())
        return torch.stack(parts)

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """The ranks' lists of picklable objects, joined in the order of ranks, on every rank."""
        if self.world_size == 1:
            return values
        self.progress.waits()
        return gather_object(values)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object on every rank."""
        if self.world_size == 1:
            return value
        holder = [value]
        self.progress.waits()
        broadcast_object_list(holder, from_process=0)
        return holder[0]

    def on_main(self, action: Any) -> Any:
        """Run `action()` on rank 0 and give its result to all; its UserError is raised on every rank."""
        outcome: tuple[str, Any] = ("", None)
        if self.is_main:
            try:
                outcome = ("ok", action())
            except UserError as error:
                outcome = ("user", str(error))
        kind, value = self.broadcast(outcome)
        if kind == "user":
            raise UserError(value)
        return value

    def store(self) -> Any:
        """The key-value store that the ranks met in; None for a single process."""
        return dist.distributed_c10d._get_default_store() if self.world_size > 1 else None

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.progress.waits()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, after all that holds on to it.

        What DDP and FSDP made in C++ refers to the group and lies in reference cycles: left to the garbage
        collector it would go later, in any thread, or while the interpreter is being taken down.
        """
        self.accelerator._models.clear()
        self.accelerator._optimizers.clear()
        gc.collect()
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def join_after_restart(backend: str) -> None:
    """Join the process group ourselves where a launcher has restarted its workers (`--max_restarts`).

    The launcher's store outlives its workers, and what the dead ones wrote there about themselves misleads the new
    ones in half of the restarts, for ever (pytorch#135712). A prefix of the attempt's own keeps them apart;
    accelerate uses the group that it finds.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return
    store, rank, world_size = next(rendezvous("env://", timeout=GROUP_TIMEOUT))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=GROUP_TIMEOUT,
    )


def seed_everything(seed: int) -> None:
    """Seed every generator. Initial weights are the only thing that these decide; data order and
    dropout derive their own seeds (training/masks.py)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def environment() -> dict[str, Any]:
    """Versions and commit, for config.json."""
    packages = ("torch", "accelerate", "datasets", "tokenizers", "tensorboard", "numpy")
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "git_commit": commit,
    }
