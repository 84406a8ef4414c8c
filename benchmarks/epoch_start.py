"""What a rank does at the start of an epoch of a large corpus: time and memory by the number of ranks.

    python benchmarks/epoch_start.py --documents 100000000 --ranks 1 8 64 512

The corpus is synthetic: lengths of documents (20 to 1,000 tokens) and no tokens. Each number of ranks is measured in a
process of its own, for the middle rank; memory is the peak above that of the lengths and offsets themselves. With
--check every part is compared with the whole permutation, as one process sorts it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ulmfit.batches.lm import CachedRows, _JoinedText

ROWS = 512


class Columns:
    """What an epoch's order needs of a token cache."""

    fingerprint = "synthetic"

    def __init__(self, num_documents: int) -> None:
        self.lengths = np.random.default_rng(0).integers(20, 1000, num_documents, dtype=np.int32)
        self.offsets = np.zeros(num_documents + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=self.offsets[1:])
        self.num_documents, self.num_tokens = num_documents, int(self.offsets[-1])

    def of_epoch(self, seed: int, epoch: int) -> Columns:
        return self

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        raise AssertionError("there are no tokens")


def peak() -> float:
    """GiB of the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def of_rank(corpus: Columns, ranks: int, rank: int) -> _JoinedText:
    rows = range(ROWS * rank // ranks, ROWS * (rank + 1) // ranks)
    return _JoinedText(CachedRows(corpus, batch_size=ROWS, bptt=72, seed=0, rows=rows), epoch=1)


def measure(num_documents: int, ranks: int, results: multiprocessing.Queue) -> None:
    corpus = Columns(num_documents)
    before, begun = peak(), time.process_time()
    text = of_rank(corpus, ranks, ranks // 2)
    results.put((time.process_time() - begun, peak() - before, len(text._offsets)))


def check(num_documents: int, ranks: list[int]) -> None:
    corpus = Columns(num_documents)
    whole = of_rank(corpus, 1, 0)
    for number in ranks:
        for rank in {0, number // 2, number - 1}:
            part = of_rank(corpus, number, rank)
            first = int(np.searchsorted(whole._bounds, part._bounds[0]))
            last = first + len(part._offsets)
            assert np.array_equal(part._offsets, whole._offsets[first:last])
            assert np.array_equal(part._bounds, whole._bounds[first : last + 1])
    print("every part that was looked at is that of the whole permutation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    print("| ranks | CPU seconds | peak GiB | documents of the rank |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for ranks in arguments.ranks:
        results = context.Queue()
        process = context.Process(target=measure, args=(arguments.documents, ranks, results))
        process.start()
        process.join()
        assert process.exitcode == 0
        seconds, memory, documents = results.get()
        print(f"| {ranks} | {seconds:.1f} | {memory:.2f} | {documents:,} |", flush=True)
    if arguments.check:
        check(arguments.documents, arguments.ranks)


if __name__ == "__main__":
    main()
