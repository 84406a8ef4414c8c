"""A started run, before any data is read: options checked, process group joined."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ulmfit.config import TrainConfig, changed
from ulmfit.config_check import check
from ulmfit.console import say
from ulmfit.cores import machine_cores
from ulmfit.data.in_memory import in_memory
from ulmfit.distributed.early_stop import EarlyStop
from ulmfit.distributed.group import Group
from ulmfit.distributed.launcher_options import with_launcher_options
from ulmfit.distributed.runtime import Runtime, open_runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.excerpts import hide_values, values_shown
from ulmfit.forks import is_forked
from ulmfit.option_types import normalized
from ulmfit.reports import check_installed
from ulmfit.run.directory import check_movable, check_output
from ulmfit.training.begun import Begun, read_begun
from ulmfit.turns import own_turn

if TYPE_CHECKING:
    from ulmfit.training.by_hand import ByHand


@dataclass
class Session:
    """A started run: the options are checked and the process group is joined, but no data is read yet."""

    config: TrainConfig
    runtime: Runtime
    stop: StopRequest
    started: float
    begun: Begun | None = None  # the earlier run in the output directory
    early_stop: EarlyStop | None = None
    by_hand: ByHand | None = None  # stages instead of the recipe's
    silent: bool = False  # of a command whose output is its result

    def end_set_up(self) -> None:
        """From now on the loop looks for requests to stop, and collectives do not exchange mistakes (a collective)."""
        self.runtime.group.end_set_up()
        if self.early_stop is not None:
            self.early_stop.close()

    def say(self, sentence: str) -> None:
        """Print a line for the user, on rank 0; nothing where the session is silent."""
        if self.runtime.is_main and not self.silent:
            say(sentence)


@contextmanager
def open_session(config: TrainConfig, stop: StopRequest | None) -> Iterator[Session]:
    """Join the process group, check the options, and leave the group at the end.

    Args:
        config: not modified. The session holds a copy whose values have the types that the command line gives.
        stop: the stop request of a script; without one, Ctrl-C requests a stop (`StopRequest.on_interrupt`).
    """
    with own_turn():
        started = time.monotonic()  # --max-time does not count the wait
        begun, given = None, config
        taken: list[str] = []

        def prepare(group: Group) -> TrainConfig:
            nonlocal begun, given, taken
            given, taken = with_launcher_options(normalized(config))
            given.data = in_memory(given.data)
            check_output(given.output_dir, resume=given.resume)
            if given.resume == "never":
                check_movable(given.output_dir)
            begun = group.broadcast(read_begun(given) if group.rank == 0 else None)  # disks may be local to a machine
            if begun is None:
                check(given)
                if group.rank == 0:  # the others report nothing
                    check_installed(given.report_to)
                return given
            filled = begun.fill(given)
            if not filled.samples:
                hide_values()
            return with_stored_threads(filled, begun, is_main=group.rank == 0)

        handling = StopRequest.on_interrupt() if stop is None else nullcontext(stop)
        with (
            values_shown(bool(config.samples)),
            handling as request,
            ExitStack() as after,
            open_runtime(config, prepare) as (runtime, resolved),
        ):
            early = EarlyStop(
                request,
                rank=runtime.rank,
                world_size=runtime.world_size,
                store=runtime.store(),
                tell=tell_stopped_early,
            )
            after.callback(early.close)  # when the ranks have exchanged why they stop
            session = Session(resolved, runtime, request, started, begun, early)
            for sentence in taken:
                session.say(sentence)
            if begun is not None and (sentence := begun.taken(given, resolved)):
                session.say(sentence)
            if is_forked() and runtime.threads > 1:
                session.say(
                    f"--threads {runtime.threads}: this process was forked from one that has used torch, so one thread is used; the "
                    "last bits may be others"
                )
            elif runtime.threads > machine_cores():
                session.say(
                    f"--threads {runtime.threads}: this machine has {machine_cores()} cores, so {machine_cores()} threads "
                    "are used; the last bits may be others"
                )
            yield session


def tell_stopped_early() -> None:
    """Print a line for the user, of a run that was stopped before its first step."""
    print("stopped before the first step; what was built is kept, and the same command goes on from there", flush=True)


def with_stored_threads(config: TrainConfig, begun: Begun, *, is_main: bool) -> TrainConfig:
    """The configuration with the run's first thread count, unless --threads is given.

    torch splits sums by the number of threads, so another number changes the last bits of the results.
    """
    threads = begun.stored.get("threads")
    if config.threads is not None or not isinstance(threads, int):
        return config
    if is_main and threads != torch.get_num_threads() and threads <= machine_cores():
        say(f"using {threads} CPU threads, as this run did when it began")
    return changed(config, threads=threads)
