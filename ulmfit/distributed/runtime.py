"""The device, the arithmetic and what ranks say to each other (the process group itself is in group.py)."""

from __future__ import annotations

import gc
import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor

from ulmfit import __version__
from ulmfit.config import TrainConfig
from ulmfit.distributed.group import Group
from ulmfit.distributed.progress import Progress
from ulmfit.distributed.sharding import processes_only, wanted_engine
from ulmfit.errors import UserError
from ulmfit.private_api import forget_prepared

Result = TypeVar("Result")
MIXED_PRECISION = {"fp32": "no", "fp64": "no", "fp16": "fp16", "bf16": "bf16"}


class Runtime:
    """One process's view of the run: rank, world size, device and collectives.

    Attributes:
        engine: plain, fsdp2, zero1, zero2 or zero3, as the launcher asked.
        compress_gradients: whether ranks average their gradients in bf16.

    Args:
        group: a joined one; by default it is joined here.

    Raises:
        UserError: the precision or the engine is not to be had on this device, or the group cannot be used.
    """

    def __init__(self, config: TrainConfig, group: Group | None = None) -> None:
        self.group = group or Group()
        self.rank, self.world_size, self.device = self.group.rank, self.group.world_size, self.group.device
        self.is_main = self.rank == 0
        self.progress = Progress(self.device)
        on_gpu = self.device.type == "cuda"
        if config.precision == "fp16" and not on_gpu:
            raise UserError("--precision fp16 needs a GPU; use fp32 (or bf16) on this machine")
        self.engine = wanted_engine(config)
        self.compress_gradients = config.compress_gradients
        self._settings = _Settings()
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
        with processes_only():
            self.accelerator = Accelerator(
                cpu=not on_gpu, mixed_precision=MIXED_PRECISION[config.precision], kwargs_handlers=[ddp]
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
        if not self._meets():
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def max(self, values: list[float]) -> list[float]:
        """The element-wise largest over ranks of a few numbers."""
        if not self._meets():
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's tensor (all of one shape), stacked along a new first dimension; no gradient."""
        if not self._meets():
            return values.detach().unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.detach().contiguous())
        return torch.stack(parts)

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """The ranks' lists of picklable objects, joined in the order of ranks, on every rank."""
        return gather_object(values) if self._meets() else values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object on every rank."""
        if not self._meets():
            return value
        holder = [value]
        broadcast_object_list(holder, from_process=0)
        return holder[0]

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run `action()` on rank 0 and give its result to all; its UserError is raised on every rank."""
        if self.world_size == 1:
            return action()
        self._meets()  # a mistake that another rank has found already need not wait for the end of the action
        value, mistake = None, None
        if self.is_main:
            try:
                value = action()
            except UserError as error:
                mistake = error
        self.progress.waits()
        self.group.check_in(mistake)
        return self.broadcast(value)

    def main_first(self, action: Callable[[], Result]) -> Result:
        """Run `action()` on every rank, on rank 0 before the others (it fills caches, and a mistake is found once)."""
        done: list[Result] = []
        self.on_main(lambda: done.append(action()))
        return done[0] if done else action()

    def store(self) -> Any:
        """The key-value store that the ranks met in; None for a single process."""
        return self.group.store()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._meets():
            self.accelerator.wait_for_everyone()

    def close(self, *, in_order: bool = True) -> None:
        """End the run: let go of what holds on to the process group, and leave torch and accelerate as they were.

        What DDP and FSDP made in C++ refers to the group and lies in reference cycles: left to the garbage
        collector it would go later, in any thread, or while the interpreter is being taken down.

        Args:
            in_order: the ranks are at the same place, so that the group can be used again.
        """
        forget_prepared(self.accelerator)
        gc.collect()
        self._settings.restore()
        self.group.close(in_order=in_order)

    def _meets(self) -> bool:
        """Whether there are others to meet in a collective that now begins; in set-up, ask them for mistakes first."""
        if self.world_size == 1:
            return False
        self.progress.waits()
        if self.group.setting_up:
            self.group.check_in()
        return True


class _Settings:
    """What torch holds for the whole process and a run may change."""

    def __init__(self) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        self._threads, self._deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        self._cudnn = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32

    def restore(self) -> None:
        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(self._deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = self._cudnn[:2]
        torch.backends.cuda.matmul.allow_tf32 = self._cudnn[2]


@contextmanager
def open_runtime(
    config: TrainConfig, prepare: Callable[[Group], TrainConfig] | None = None
) -> Iterator[tuple[Runtime, TrainConfig]]:
    """Join the ranks, and leave them at the end; a user's mistake that one rank finds is raised on all.

    Args:
        prepare: gives the configuration to use, or raises UserError; called once the ranks can tell each other.
    """
    group = Group()
    runtime: Runtime | None = None

    def close(in_order: bool) -> None:
        if runtime is None:
            group.close(in_order=in_order)
        else:
            runtime.close(in_order=in_order)

    try:
        with group.mistakes_end_all():
            config = prepare(group) if prepare else config
            runtime = Runtime(config, group)
            yield runtime, config
    except UserError:
        close(group.setting_up)
        raise
    except BaseException:
        # The ranks may be at different places, and to leave the group in good order would mean to wait for them.
        close(False)
        raise
    close(True)


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
        "versions": {"ulmfit": __version__, "python": platform.python_version()}
        | {name: version(name) for name in packages},
        "git_commit": commit,
    }
