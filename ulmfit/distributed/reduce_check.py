"""One process of an all-reduce over some nodes: `python -m ulmfit.distributed.reduce_check HOST PORT PREFIX RANK SIZE LOCAL LIMIT`.

It prints the seconds of an all-reduce of `SIZE_MIB`, or ends with an error. It is a process of its own because a collective
that hangs can only be killed.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

SIZE_MIB = 64
ROUNDS = 3


def reduce_seconds(device: torch.device, rank: int, size: int) -> float:
    """The fastest of some all-reduces of SIZE_MIB (a collective).

    Raises:
        RuntimeError: the sum is wrong.
    """
    best = float("inf")
    for _ in range(ROUNDS):
        values = torch.full((SIZE_MIB * 2**20 // 4,), float(rank + 1), device=device)
        begun = time.perf_counter()
        dist.all_reduce(values)
        wrong = bool((values != size * (size + 1) / 2).any())  # waits for a GPU
        best = min(best, time.perf_counter() - begun)
        if wrong:
            raise RuntimeError("the sum of an all-reduce is wrong")
    return best


def main(host: str, port: int, prefix: str, rank: int, size: int, local: int, limit: float) -> None:
    """Join the group of this prefix and print the seconds."""
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=limit), wait_for_workers=False)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore(prefix, store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=limit),
    )
    print(reduce_seconds(device, rank, size), flush=True)
    dist.barrier()  # a process that leaves early breaks the last all-reduce of others
    dist.destroy_process_group()


if __name__ == "__main__":
    _host, _port, _prefix, _rank, _size, _local, _limit = sys.argv[1:]
    main(_host, int(_port), _prefix, int(_rank), int(_size), int(_local), float(_limit))
