"""Ranks as forks of the test's process: a second of a core less for each than a launch, for nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(
    number: int, action: Callable[[int], Any], folder: Path, *, killed: Collection[int] = (), seconds: float = 240.0
) -> list[Any]:
    """Run action(rank) on `number` ranks of a gloo group, and return the results by rank, but of those that are `killed`.

    Results travel by torch.save. The environment is that of torchrun, so that a Runtime or a training can be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, number, action, folder)) for rank in range(number)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + seconds
    for process in ranks:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for rank in hanging:  # Python waits at its end for processes that it has started
        ranks[rank].kill()
        ranks[rank].join()
    failed = [(folder / f"error-{rank}").read_text() for rank in range(number) if (folder / f"error-{rank}").exists()]
    assert not failed, "\n".join(failed)
    assert not hanging, f"ranks {hanging} did not end within {seconds:g} seconds"
    expected = [-signal.SIGKILL if rank in killed else 0 for rank in range(number)]
    assert [process.exitcode for process in ranks] == expected, [process.exitcode for process in ranks]
    left = [rank for rank in range(number) if rank not in killed]
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in left]


def _rank(rank: int, number: int, action: Callable[[int], Any], folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29999",  # not used: the group is there already
    }
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), number)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
        torch.save(action(rank), folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)  # the others wait for this rank; their connection breaks
    sys.stdout.flush()
    os._exit(0)  # without what pytest registered for its own end
