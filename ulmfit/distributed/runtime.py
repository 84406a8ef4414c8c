"""Device, precision, determinism and collectives of a run (the process group itself is in group.py)."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor

from ulmfit import __version__
from ulmfit.config import TrainConfig
from ulmfit.cores import machine_cores
from ulmfit.distributed.group import Group
from ulmfit.distributed.left_scoring import LeftScoring
from ulmfit.distributed.progress import Progress
from ulmfit.distributed.sharding import processes_only, wanted_engine
from ulmfit.distributed.torch_settings import TorchSettings, allowed_tf32, seed_everything
from ulmfit.errors import EvaluationStopped, StoppedEarly, UserError
from ulmfit.forks import is_forked, one_thread_in_forks
from ulmfit.private_api import forget_prepared
from ulmfit.turns import own_turn

Result = TypeVar("Result")
# Bytes that the ranks send to rank 0 at a time: its device holds no more of their values at once (see `Runtime.collect`).
COLLECTED = 64 * 2**20
SPLIT_ON = {"cuda"}  # types of devices, see `Runtime.splits_tied_gradient`
MIXED_PRECISION = {"fp32": "no", "fp64": "no", "fp16": "fp16", "bf16": "bf16"}


class Runtime:
    """One process's view of the run: rank, world size, device and collectives.

    Attributes:
        engine: plain, fsdp2, zero1, zero2 or zero3, as requested from the launcher.
        compress_gradients: whether gradients are averaged over ranks in bf16.
        splits_tied_gradient: whether the tied weight's gradient is reduced in two parts (see tied_reduction.py). Only
            on GPUs: on a CPU the reduction takes the cores from the computation behind which it would hide.
        stop_scoring: whether this rank was asked to leave an evaluation unfinished.
        threads: CPU threads as asked for, or by default those of torch. Not more are used than the machine has cores.

    Args:
        group: a joined group; by default it is joined here.

    Raises:
        UserError: precision or engine is not available on this device, or the group cannot be used.
    """

    def __init__(self, config: TrainConfig, group: Group | None = None) -> None:
        self.group = group or Group()
        self.rank, self.world_size, self.device = self.group.rank, self.group.world_size, self.group.device
        self.is_main = self.rank == 0
        self.progress = Progress(self.device)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)  # of an earlier training in this process
        if config.precision == "fp16" and not on_gpu:
            raise UserError("--precision fp16 needs a GPU; use fp32 (or bf16) on this machine")
        self.engine = wanted_engine(config)
        self.compress_gradients = config.compress_gradients
        self.splits_tied_gradient = (
            self.device.type in SPLIT_ON and self.world_size > 1 and not config.compress_gradients
        )
        self.stop_scoring: Callable[[], bool] = lambda: False
        self._left_scoring = LeftScoring(self.store())
        self._settings = TorchSettings()
        one_thread_in_forks()
        if config.threads is not None and not is_forked():
            torch.set_num_threads(min(config.threads, machine_cores()))
        self.threads = config.threads or torch.get_num_threads()
        if not on_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, else warns that it is so
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before cuBLAS starts
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        if on_gpu or config.deterministic:
            in_cudnn = self._settings.tf32_in_cudnn
            self._settings.allow_tf32(
                *allowed_tf32(config.precision, deterministic=config.deterministic, in_cudnn=in_cudnn)
            )
        # find_unused_parameters, because parameters may have no gradient in a step (frozen layers, a rank without
        # documents) and the reduction must not wait for them. It also prevents DDP from rebuilding buckets, so that a
        # resumed run sums in the same order as an uninterrupted one. Buffers (BatchNorm statistics) need no broadcast,
        # because all ranks compute the same.
        ddp = DistributedDataParallelKwargs(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        with processes_only():
            self.accelerator = Accelerator(
                cpu=not on_gpu, mixed_precision=MIXED_PRECISION[config.precision], kwargs_handlers=[ddp]
            )
        seed_everything(config.seed)

    def own_rows(self, num_rows: int) -> range:
        """The contiguous rows of the global batch that belong to this rank; may be empty."""
        return range(num_rows * self.rank // self.world_size, num_rows * (self.rank + 1) // self.world_size)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context without communication: sums and gathers return only the values of this process."""
        world_size, self.world_size = self.world_size, 1
        try:
            yield
        finally:
            self.world_size = world_size

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over ranks, equal on all ranks (a collective)."""
        if not self._meets():
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def leaves_scoring(self) -> bool:
        """Whether to leave an evaluation unfinished, as this rank or another one was asked to. Scores ask it after each
        batch."""
        return self._left_scoring.is_left(self.stop_scoring())

    def end_scoring(self, unfinished: bool) -> None:
        """Agree on whether all ranks have scored their part to the end (a collective).

        Raises:
            EvaluationStopped: one has not; raised on all ranks.
        """
        stopped = self.max([unfinished])[0]
        self._left_scoring.ended()
        if stopped:
            raise EvaluationStopped

    def max(self, values: list[float]) -> list[float]:
        """The element-wise maximum of numbers over ranks (a collective)."""
        if not self._meets():
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def max_later(self, values: list[float]) -> Callable[[], list[float]]:
        """Start the reduction of `max` without waiting for other ranks or the device (a collective, in training only).

        Returns:
            A function that waits for the result and returns it. Called a step later, it does not wait: on a GPU the
            reduction is queued before the next step, so the device has work while the host reads.
        """
        if self.world_size == 1:
            numbers = [float(value) for value in values]
            return lambda: numbers
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.device.type != "cuda":
            work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)

            def reduced() -> list[float]:
                self.progress.waits()
                work.wait()
                return tensor.tolist()

            return reduced
        on_device = tensor.pin_memory().to(self.device, non_blocking=True)
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX)  # the stream waits for it, and the host does not
        copied = torch.empty_like(tensor, pin_memory=True)
        copied.copy_(on_device, non_blocking=True)
        event = torch.cuda.Event()
        event.record()

        def arrived() -> list[float]:
            self.progress.waits()
            event.synchronize()
            return copied.tolist()

        return arrived

    def collect(self, values: Tensor) -> Tensor | None:
        """Concatenate the ranks' tensors, of equal shape, along their first dimension on rank 0 (a collective).

        They are sent in pieces of rows, so that the device of rank 0 needs little memory for them at any number of
        ranks, and the other ranks need none.

        Returns:
            A tensor on the CPU, without gradient; None on the other ranks.
        """
        values = values.detach()
        if not self._meets():
            return values.cpu()
        whole = values.new_empty((self.world_size, *values.shape), device="cpu") if self.is_main else None
        row_bytes = max(1, values[:1].nbytes)
        at_a_time = max(1, COLLECTED // (self.world_size * row_bytes))
        for piece in torch.arange(len(values)).split(at_a_time):
            rows = slice(int(piece[0]), int(piece[-1]) + 1)
            own = values[rows].contiguous()
            if whole is None:
                dist.gather(own, dst=0)
                continue
            parts = [torch.empty_like(own) for _ in range(self.world_size)]
            dist.gather(own, parts, dst=0)
            for rank, part in enumerate(parts):
                whole[rank, rows] = part
        return None if whole is None else whole.flatten(0, 1)

    def gather(self, values: Tensor) -> Tensor:
        """Stack the ranks' tensors, of equal shape, along a new first dimension, without gradient (a collective)."""
        if not self._meets():
            return values.detach().unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.detach().contiguous())
        return torch.stack(parts)

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """Concatenate the ranks' lists of picklable objects, in the order of ranks, on every rank (a collective)."""
        return gather_object(values) if self._meets() else values

    def collect_objects(self, value: Any) -> list[Any] | None:
        """The ranks' picklable objects, in the order of ranks, on rank 0; None on the others (a collective)."""
        if not self._meets():
            return [value]
        found: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, found, dst=0)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object on every rank (a collective)."""
        if not self._meets():
            return value
        holder = [value]
        broadcast_object_list(holder, from_process=0)
        return holder[0]

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run `action()` on rank 0 and return its result on all ranks (a collective).

        Raises:
            UserError, StoppedEarly: `action` raised it; raised on every rank.
        """
        if self.world_size == 1:
            return action()
        self._meets()  # check for mistakes of other ranks now, not after the action, which may take long
        value: Any = None
        mistake: UserError | StoppedEarly | None = None
        if self.is_main:
            try:
                value = action()
            except (UserError, StoppedEarly) as error:
                mistake = error
        self.progress.waits()
        self.group.check_in(mistake)
        return self.broadcast(value)

    def main_first(self, action: Callable[[], Result]) -> Result:
        """Run `action()` on every rank, first on rank 0, so that caches are filled and a mistake is reported once."""
        done: list[Result] = []
        self.on_main(lambda: done.append(action()))
        return done[0] if done else action()

    def store(self) -> Any:
        """The key-value store of the process group; None for a single process."""
        return self.group.store()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._meets():
            self.accelerator.wait_for_everyone()

    def close(self, *, in_order: bool = True) -> None:
        """End the run: free objects that refer to the process group, and restore torch's and accelerate's settings.

        C++ objects of DDP and FSDP refer to the group and are in reference cycles. They are collected here. Otherwise
        the garbage collector would free them later, in any thread or during interpreter shutdown.

        Args:
            in_order: False if ranks may be in different collectives. Then the group cannot be used again.
        """
        forget_prepared(self.accelerator)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for other programs, and the next training has buffers of other sizes
        self._settings.restore()
        self.group.close(in_order=in_order)

    def _meets(self) -> bool:
        """Whether a collective has to communicate. In set-up, first exchange mistakes with the other ranks."""
        if self.world_size == 1:
            return False
        self.progress.waits()
        if self.group.setting_up:
            self.group.check_in()
        return True


@contextmanager
def open_runtime(
    config: TrainConfig, prepare: Callable[[Group], TrainConfig] | None = None
) -> Iterator[tuple[Runtime, TrainConfig]]:
    """Join the process group, and end its use at the end. A UserError of one rank is raised on all ranks.

    Args:
        prepare: returns the configuration to use, or raises UserError. It is called after the group is joined, so that
            the error reaches all ranks.
    """
    with own_turn():
        yield from _opened(config, prepare)


def _opened(
    config: TrainConfig, prepare: Callable[[Group], TrainConfig] | None
) -> Iterator[tuple[Runtime, TrainConfig]]:
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
    except (UserError, StoppedEarly):
        close(group.setting_up)
        raise
    except BaseException:
        # The ranks may be in different collectives, so do not wait for them.
        close(False)
        raise
    close(True)


def environment() -> dict[str, Any]:
    """Versions of packages and git commit, for config.json."""
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
        | {name: found for name in packages if (found := _version(name)) is not None},
        "git_commit": commit,
    }


def _version(package: str) -> str | None:
    """The version of a package; None if it is not installed, as `datasets` on a machine that has prepared tokens."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
