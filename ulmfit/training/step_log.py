"""The log line of a training step, and when its numbers are read.

On a GPU the host submits work ahead of the device. To read a number of the step that it has just submitted, it would
wait until the device has done all of it. Then the device would wait for the host to submit the next step. So on a GPU
the numbers are copied behind the step, and read when the next step has been submitted. On a CPU they are read at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ulmfit.device import HostCopy, to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.run.tracking import memory_mib

#: Called with those arguments of `Tracker.log_train` that are measured, and with the means of `StepResult.sums` behind
#: loss and accuracy. It may raise.
Log = Callable[[dict[str, Any], list[float]], None]


@dataclass(frozen=True)
class _Line:
    """A step that is to be logged.

    Attributes:
        values: float64 [2 + k + 3 x ranks]: skipped steps and gradient norm; the k mean values of the step; then for
            each rank its own work (seconds a step), its data wait (share) and its memory (MiB).
        num_means: k.
        steps, tokens: of the interval that ends with this step.
        log: called with the numbers; may raise.
    """

    values: HostCopy
    num_means: int
    steps: int
    tokens: int
    log: Log


class StepLog:
    """Counts what the loop does between logged steps, and reads the numbers of those that are logged.

    The loop calls `count` after each step, `record` after a step that is due, and `write` when the next step is
    submitted, and before anything that belongs behind the line: a checkpoint, an evaluation, a stage.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._late = reads_late(runtime.device)
        self._line: _Line | None = None
        # Where the interval began: for the throughput when numbers were read last, for the data wait when they were
        # recorded last. Both are the same on a CPU.
        self._read = self._recorded = time.perf_counter()
        self._waited, self._tokens, self._steps = 0.0, 0, 0

    def count(self, tokens: int, waited: float) -> None:
        """Count a step: its tokens over all ranks, and the seconds that this rank waited for data."""
        self._tokens += tokens
        self._waited += waited
        self._steps += 1

    def exclude(self, seconds: float) -> None:
        """Leave a time, of an evaluation or a checkpoint, out of the throughput."""
        self._read += seconds
        self._recorded += seconds

    def record(self, sums: Tensor, num_predictions: float, *, skipped: Tensor, norm: Tensor, log: Log) -> None:
        """Take the numbers of the step just submitted (a collective). On a CPU they are read and logged at once.

        Args:
            sums, num_predictions: of `StepResult`.
            skipped: 0-d, number of steps skipped in a row up to this one; norm: 0-d, the gradient norm.
            log: called with the numbers, now or later.
        """
        self.write()
        now = time.perf_counter()
        elapsed, self._recorded = max(1e-9, now - self._recorded), now
        means = self._runtime.sum(sums) / num_predictions
        own = torch.tensor([self._runtime.progress.own_work(), self._waited / elapsed, memory_mib()], dtype=means.dtype)
        ranks = self._runtime.gather(to_device(own, self._runtime.device))
        values = torch.cat([torch.stack([skipped.to(means), norm.to(means)]), means, ranks.flatten()])
        self._line = _Line(HostCopy(values), len(means), self._steps, self._tokens, log)
        self._waited, self._tokens, self._steps = 0.0, 0, 0
        if not self._late:
            self.write()

    def write(self) -> None:
        """Write the recorded line, if there is one. On a GPU the host waits until the device has done that step."""
        if self._line is None:
            return
        line, self._line = self._line, None
        others, means, ranks = line.values.read().tensor_split([2, 2 + line.num_means])
        skipped, norm = others.tolist()
        loss, accuracy, *more = means.tolist()
        work, waited, memory = ranks.view(-1, 3).unbind(1)
        now = time.perf_counter()
        elapsed, self._read = max(1e-9, now - self._read), now
        timing = {"step": elapsed / line.steps}
        if len(work) > 1:
            timing |= {
                "work": work.max().item(),
                "spread": (work.max() - work.min()).item(),
                "slowest_rank": int(work.argmax()),
            }
        numbers = {
            "loss": loss,
            "accuracy": accuracy,
            "grad_norm": norm,
            "skipped": int(skipped),
            "tokens_per_second": line.tokens / elapsed,
            "data_wait": waited.max().item(),
            "memory": memory.max().item(),
            "timing": timing,
        }
        line.log(numbers, more)


def reads_late(device: torch.device) -> bool:
    """Whether the numbers of a step are read after the next one is submitted."""
    return device.type == "cuda"
