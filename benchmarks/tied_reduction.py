"""A step of two processes over a slow link: the tied gradient reduced by DDP, and in two parts (tied_reduction.py).

    python benchmarks/tied_reduction.py --mb-per-second 5 --lstm-seconds 2

The link is simulated: transfers follow one another, each takes its bytes divided by the speed, and whoever needs the
result waits until then. So is the LSTM's backward pass, by a pause, so that the result does not depend on the machine.
Prints the mean seconds a step, and the megabytes that are sent when nothing is left to compute.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.distributed.ranks import on_ranks
from tests.training.steps import Trainer
from ulmfit.distributed import runtime as runtime_module
from ulmfit.model.awd_lstm import AWDLSTMConfig

VOCAB, WIDTH, STEPS = 30_000, 64, 4


class Link:
    """The time at which each transfer is done."""

    def __init__(self, bytes_per_second: float) -> None:
        self._speed, self._free, self._lock = bytes_per_second, 0.0, threading.Lock()
        self.computing = True  # whether there is something to hide behind
        self.late = 0  # bytes asked for when there was nothing

    def send(self, values: Tensor) -> float:
        with self._lock:
            now = time.monotonic()
            self.late += 0 if self.computing else values.nbytes
            self._free = max(now, self._free) + values.nbytes / self._speed
            return self._free


def until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


class Delayed:
    """A reduction in progress whose result arrives over the link."""

    def __init__(self, work: Any, arrives: float) -> None:
        self._work, self._arrives = work, arrives

    def wait(self) -> None:
        self._work.wait()
        until(self._arrives)


class Pause(torch.autograd.Function):
    """Identity whose backward pass takes `seconds`; with its end the computation ends."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seconds: float, link: Link) -> Tensor:
        ctx.seconds, ctx.link = seconds, link
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.seconds)
        ctx.link.computing = False
        return grad, None, None


def measure(split: bool, megabytes: float, seconds: float) -> tuple[float, float, list[float]]:
    """(seconds a step, MB a step that are sent when nothing is left to compute, losses)."""
    runtime_module.SPLIT_ON = {"cpu"} if split else set()
    trainer = Trainer("lm", "fp32", rows=4, bptt=8, sizes=AWDLSTMConfig(VOCAB, WIDTH, 64, 2))
    link, reduce = Link(megabytes * 1e6), dist.all_reduce

    def slow_reduce(values: Tensor, *args: Any, async_op: bool = False, **options: Any) -> Any:
        work = reduce(values, *args, async_op=True, **options)
        delayed = Delayed(work, link.send(values))
        return delayed if async_op else delayed.wait()

    def hook(state: None, bucket: dist.GradBucket) -> Any:
        values = bucket.buffer()
        arrives = link.send(values)

        def arrived(future: Any) -> Tensor:
            until(arrives)
            return future.value()[0].div_(2)

        return reduce(values, async_op=True).get_future().then(arrived)

    dist.all_reduce = slow_reduce
    hook.__annotations__.clear()  # DDP compares them by identity, and here they are strings
    trainer.engine.model.register_comm_hook(None, hook)
    # The output layer's gradient is the first one of the pass; this comes between it and the embedding's.
    trainer.net.encoder.layers[0].register_forward_hook(
        lambda _, __, out: (Pause.apply(out[0], seconds, link), *out[1:])
    )
    losses = []
    for number in range(STEPS + 1):
        if number == 1:  # the first step sets DDP up
            begun, link.late = time.monotonic(), 0
        link.computing = True
        losses.append(trainer.step().item())
    taken = (time.monotonic() - begun) / STEPS
    dist.all_reduce = reduce
    return taken, link.late / STEPS / 1e6, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb-per-second", type=float, default=5.0)
    parser.add_argument("--lstm-seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| reduction | s a step | MB late | last loss |\n|---|---|---|---|")
    for split in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            (seconds, late, losses), _ = on_ranks(
                2,
                lambda rank, split=split: measure(split, arguments.mb_per_second, arguments.lstm_seconds),
                Path(folder),
            )
        print(f"| {'in two parts' if split else 'DDP'} | {seconds:.3f} | {late:.2f} | {losses[-1]:.6f} |", flush=True)


if __name__ == "__main__":
    main()
