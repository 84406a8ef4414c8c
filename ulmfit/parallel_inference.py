"""Inference by torch: batches of documents of similar lengths, and on the CPU several batches in parallel.

A matrix product of a few dozen rows is more efficient on one core than on two. So two batches in parallel, each in one
thread, give 1.2 to 1.4 times the throughput in fp32 and twice the throughput in int8 (preset small, two cores).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from ulmfit.batches.documents import evaluation_batches, pad
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.ngrams import NGramNet
from ulmfit.private_api import torch_library

Result = TypeVar("Result")

FEWEST_ROWS = 16  # minimum size of a batch on the CPU, if there are enough documents
ROWS_FOR_THREADS = 8  # fewer rows are read by one thread: waiting for others costs more than they bring
WINDOW_TOKENS = 2048


class TorchReader:
    """A net that gives probabilities of documents. It has the interface of `exported.reader.OnnxReader`."""

    def __init__(
        self, net: ClassifierNet | NGramNet, *, pad_id: int, backwards: bool, temperature: float | None = None
    ) -> None:
        self.net, self._pad_id, self._backwards, self._temperature = net, pad_id, backwards, temperature

    def probabilities(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, C] of documents, int arrays of at least one id each."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        device = next(self.net.parameters()).device
        window_tokens = WINDOW_TOKENS if device.type == "cpu" else None

        def read(indices: np.ndarray) -> np.ndarray:
            ids = np.concatenate([documents[index] for index in indices])
            tokens = pad(ids, lengths[indices], pad_id=self._pad_id, backwards=self._backwards)
            logits = self.net(
                torch.from_numpy(tokens).to(device), torch.from_numpy(lengths[indices]), window_tokens=window_tokens
            ).logits
            logits = logits.float()
            if self._temperature is not None:
                logits = logits / self._temperature
            return self.net.probabilities(logits).cpu().numpy()

        result = np.empty((len(documents), self.net.num_classes), dtype=np.float32)
        batches = reading_batches(lengths, self.net, device)
        small = len(documents) < ROWS_FOR_THREADS
        found = read_side_by_side(read, batches, device, single_in_one_thread=small)
        for indices, rows in zip(batches, found, strict=True):
            result[indices] = rows
        return result


def reading_batches(lengths: np.ndarray, net: ClassifierNet | NGramNet, device: torch.device) -> list[np.ndarray]:
    """Divide all documents into batches of similar lengths, longest first.

    On the CPU a batch has the number of rows with the highest throughput, or fewer, to have two batches per thread. On
    a GPU batches have the size of `evaluation_batches`.
    """
    if device.type != "cpu":
        return evaluation_batches(lengths)
    share = -(-len(lengths) // (2 * torch.get_num_threads()))
    return evaluation_batches(lengths, max_rows=min(net.rows_of_a_core, max(FEWEST_ROWS, share)))


def read_side_by_side(
    read: Callable[[np.ndarray], Result],
    batches: Sequence[np.ndarray],
    device: torch.device,
    *,
    single_in_one_thread: bool = False,
) -> Iterator[Result]:
    """Yield `read(batch)` for every batch, in order, without gradient.

    On the CPU, as many batches are read in parallel as torch has threads, each with one thread. A single batch uses all
    threads, or one with `single_in_one_thread`.
    """

    def without_gradient(batch: np.ndarray) -> Result:
        with torch.inference_mode():  # set here, because it is a setting of the thread
            return read(batch)

    one_thread = _limiter()
    threads = torch.get_num_threads() if device.type == "cpu" and one_thread else 1
    workers = min(threads, len(batches))
    if workers == 0 or threads == 1 or (workers == 1 and not single_in_one_thread):
        yield from map(without_gradient, batches)
        return
    executor = ThreadPoolExecutor(workers, "read", initializer=one_thread)
    try:
        yield from executor.map(without_gradient, batches)
    finally:
        executor.shutdown(cancel_futures=True)


@functools.cache
def _limiter() -> Callable[[], None] | None:
    """A function that limits torch's operators in the calling thread to one thread; None if that is not possible.

    torch.set_num_threads would also change the initial value for threads that other code starts meanwhile. The
    thread counts of OpenMP and MKL, which torch's operators use, are per thread.
    """
    library = ctypes.CDLL(torch_library())  # loaded already; symbols of the libraries that it links are found too
    set_openmp = getattr(library, "omp_set_num_threads", None)
    set_mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)
    if set_openmp is None:
        return None

    def one_thread() -> None:
        # The first call in a thread sets the process's number of threads. Later it would undo the limit.
        torch.get_num_threads()
        set_openmp(1)
        if set_mkl is not None:
            set_mkl(1)

    return one_thread
