"""Documents read without gradient: which of them together, and on the CPU several batches at a time.

A matrix product of a few dozen rows keeps one core busier than it keeps two: reading two batches side by side, by a
thread each, gave 1.2 to 1.4 times the documents a second in fp32 and twice as many in int8 (preset small, two cores).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from ulmfit.batches.documents import evaluation_batches
from ulmfit.model.classifier import ClassifierNet
from ulmfit.private_api import torch_library

Result = TypeVar("Result")

FEWEST_ROWS = 16  # of a batch on the CPU, where there are documents enough


def reading_batches(lengths: np.ndarray, net: ClassifierNet, device: torch.device) -> list[np.ndarray]:
    """All documents in batches of like length, from the longest to the shortest: on the CPU of the rows that its
    encoder reads fastest, or fewer for two batches a thread; on a GPU as large as pays."""
    if device.type != "cpu":
        return evaluation_batches(lengths)
    share = -(-len(lengths) // (2 * torch.get_num_threads()))
    return evaluation_batches(lengths, max_rows=min(net.encoder.rows_of_a_core, max(FEWEST_ROWS, share)))


def read_side_by_side(
    read: Callable[[np.ndarray], Result], batches: Sequence[np.ndarray], device: torch.device
) -> Iterator[Result]:
    """`read(batch)` of every batch, in their order; without gradient.

    On the CPU as many are read at a time as torch has threads, each by one. A single batch has all of them.
    """

    def without_gradient(batch: np.ndarray) -> Result:
        with torch.inference_mode():  # a setting of the thread
            return read(batch)

    one_thread = _limiter()
    workers = min(torch.get_num_threads(), len(batches)) if device.type == "cpu" and one_thread else 1
    if workers <= 1:
        yield from map(without_gradient, batches)
        return
    executor = ThreadPoolExecutor(workers, "read", initializer=one_thread)
    try:
        yield from executor.map(without_gradient, batches)
    finally:
        executor.shutdown(cancel_futures=True)


@functools.cache
def _limiter() -> Callable[[], None] | None:
    """A function that gives the calling thread, and no other, one thread for its operators; None where torch has none.

    torch.set_num_threads would also set what every thread begins with that other code of the process starts meanwhile.
    The counts of OpenMP and of MKL, by which torch's operators go, are of a thread.
    """
    library = ctypes.CDLL(torch_library())  # in the process already; names are also looked for in what it links
    set_openmp = getattr(library, "omp_set_num_threads", None)
    set_mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)
    if set_openmp is None:
        return None

    def one_thread() -> None:
        torch.get_num_threads()  # the first time, a thread takes over the process's number, which would undo the limit
        set_openmp(1)
        if set_mkl is not None:
            set_mkl(1)

    return one_thread
