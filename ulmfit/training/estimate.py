"""Estimate of memory, disk and time of a run on the CPU, printed before its first step.

It is computed from the sizes of the model and the measured speed of one matrix product. On a machine that runs
nothing else, memory is right within 25 % and time within a factor of two. That is enough to distinguish an hour
from a week, and 2 GiB from 20.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from ulmfit.config import LMConfig, TrainConfig
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.training.optim import first_group
from ulmfit.training.task import PlannedStage, Task

GIB = 2**30
# Speed of a whole training step relative to one large matrix product. It is lower because the recurrence consists of
# small products.
STEP_EFFICIENCY = 0.6


class Estimate(NamedTuple):
    """Bytes and seconds.

    Attributes:
        memory: bytes of one process at its peak.
        memory_free: bytes available on the machine for all processes, including what this one uses already.
        disk: bytes of the checkpoints that are kept, of one more that is being written, and of the model.
        disk_free: free bytes on the disk of the run directory.
        step: seconds of a step, on average over the stages.
        whole: seconds of the whole run, without evaluations.
    """

    memory: float
    memory_free: float
    disk: float
    disk_free: float
    step: float
    whole: float


def flops_per_token(sizes: AWDLSTMConfig, *, output_words: int, first_trained: int) -> float:
    """Floating-point operations of a training step for one token.

    The forward pass takes 2 per weight. The backward pass takes 2 for the weights' gradients and 2 for the inputs',
    in the layers from the first trained group on.

    Args:
        output_words: width of the output layer, 0 for a classifier.
        first_trained: the first trained group; 0 is the embedding.
    """
    e, h, layers = sizes.embedding_size, sizes.hidden_size, sizes.num_layers
    widths = [e, *[h] * (layers - 1), e]
    total = 2.0 * e * output_words * 3
    for layer, (into, out) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
        forward = 2 * 4 * out * (into + out)
        total += forward * (3 if layer >= first_trained else 1)
    return total


def saved_bytes(sizes: AWDLSTMConfig, windows: Sequence[tuple[int, int]], itemsize: int) -> int:
    """Bytes that the forward pass saves for the backward pass on a CPU, without the output layer.

    Args:
        windows: (rows, tokens a row) of each encoder call with gradient. Each call saves a mask and a masked copy of
            every recurrent weight; with few rows these take more than the activations.
        itemsize: bytes of a number, 4 (float32) or 8 (float64).
    """
    e, h, layers = sizes.embedding_size, sizes.hidden_size, sizes.num_layers
    widths = [e, *[h] * (layers - 1), e]
    fused = itemsize == 4 and torch.backends.mkldnn.is_available()
    numbers = masks = 0  # counted apart, because masks are always float32
    for rows, tokens in windows:
        numbers += rows * tokens * 3 * e  # after the last layer: dropout or pooling, AR and TAR
        masks += sizes.vocab_size
        for into, out in zip(widths[:-1], widths[1:], strict=True):
            numbers += rows * tokens * (into + out)
            if fused:  # oneDNN saves gates and states, and reserves memory for the gradients of the states
                numbers += rows * (tokens * 4 * out + (tokens + 1) * (5 * out + 6 * max(into, out)))
            else:  # step by step: gates, states and their activations
                numbers += rows * tokens * 6 * out
            if sizes.weight_p:
                numbers += 4 * out * out
                masks += 4 * out * out
    return numbers * itemsize + masks * 4


def matrix_speed(dtype: torch.dtype, rounds: int = 6) -> float:
    """Floating-point operations per second of a large matrix product on this process's threads.

    It is the fastest of `rounds`, because other programs can only make a round slower.
    """
    a, b = torch.rand(512, 1024, dtype=dtype), torch.rand(1024, 1024, dtype=dtype)
    fastest = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        a @ b
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * 512 * 1024 * 1024 / fastest


def estimate(task: Task, plan: Sequence[PlannedStage], *, config: TrainConfig, runtime: Runtime) -> Estimate:
    """Estimate the run of `plan`, with each process on its share of the cores."""
    sizes, parameters = task.net.config, list(task.net.parameters())
    itemsize, dtype = parameters[0].element_size(), parameters[0].dtype
    weights = sum(p.numel() for p in parameters) * itemsize
    output_words = _output_words(sizes, config)
    # Loss: rows of logits and their exponentials, and a second gradient of the tied weights besides the embedding's;
    # for the sampled softmax also the gradient of the candidates.
    loss = itemsize * output_words * (3 * 512 + sizes.embedding_size)
    if output_words not in (0, sizes.vocab_size):
        loss += itemsize * sizes.vocab_size * sizes.embedding_size
    saved = max(saved_bytes(sizes, windows, itemsize) for windows in task.trained_windows())
    # The process holds the weights already. To be added: gradients, two moments, and while rank 0 saves, a copy of
    # weights and moments.
    memory = psutil.Process().memory_info().rss + (3 + 3 * runtime.is_main) * weights + loss + saved
    speed = matrix_speed(dtype) * STEP_EFFICIENCY * runtime.world_size
    steps = [planned.num_steps for planned in plan]
    work = [task.mean_tokens() * flops for flops in work_of_stages(task, plan, config)]
    whole = sum(flops * count for flops, count in zip(work, steps, strict=True)) / speed
    place = Path(config.output_dir).absolute()
    while not place.exists():
        place = place.parent
    return Estimate(
        memory,
        psutil.virtual_memory().available,
        weights * (3 * (config.keep + 1) + 1),
        shutil.disk_usage(place).free,
        whole / max(1, sum(steps)),
        whole,
    )


def work_of_stages(task: Task, plan: Sequence[PlannedStage], config: TrainConfig) -> list[float]:
    """Floating-point operations for a token in each stage."""
    sizes = task.net.config
    firsts = [first_group(planned.stage.freeze_to, task.groups) for planned in plan]
    words = _output_words(sizes, config)
    return [flops_per_token(sizes, output_words=words, first_trained=first) for first in firsts]


def _output_words(sizes: AWDLSTMConfig, config: TrainConfig) -> int:
    """Width of the output layer in training, 0 for a classifier."""
    return (config.sampled_softmax or sizes.vocab_size) if isinstance(config, LMConfig) else 0


def sentences(needs: Estimate, *, world_size: int, sampled: int | None = None) -> list[str]:
    """The estimate in sentences for the user, with a warning if memory or disk is too small."""
    each = " a process" if world_size > 1 else ""
    besides = f", which go by the full softmax; training steps sample {sampled:,} words" if sampled else ""
    lines = [
        f"needs about {needs.memory / GIB:.1f} GiB of memory{each}, {needs.disk / GIB:.1f} GiB of disk and "
        f"{_duration(needs.whole)} ({needs.step:.2g} s a step) besides evaluations{besides}"
    ]
    if needs.memory * world_size > needs.memory_free:
        lines.append(
            f"warning: only {needs.memory_free / GIB:.1f} GiB of memory are free; --micro-batches cuts a "
            "step without changing what is trained"
        )
    if needs.disk > needs.disk_free:
        lines.append(
            f"warning: only {needs.disk_free / GIB:.1f} GiB of disk are free; name another --output-dir, or --keep 1"
        )
    return lines


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
