"""What batches of documents compute beyond their tokens, and how evenly a step is dealt to ranks; fastai's beside it.

    ULMFIT_DATA=DATA python benchmarks/classifier_padding.py --peer PEER/bin/python

Lengths are those of IMDb's 25,000 training reviews in our tokens ($ULMFIT_DATA/imdb/train.parquet); without the data
they are drawn (log-normal, mean 290). Nothing is trained: both orders of the documents are the real ones (ours from
DocumentBatches and deal, fastai's from its SortedDL, cut over ranks as its DistributedDL does, each rank a contiguous
part of the order), and the encoders' windows are counted. A fastai window reads the rows that have begun, padded at
the end; ours reads those that have not ended.

Padding: share of the computed tokens that are none. Balance of a step: mean / max over ranks of what they compute, the
mean of an epoch's steps weighted by cost. It is given for tokens, and for tokens + 16 a time step, since a time step
costs something however few documents it reads: that is what a latency-bound GPU waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import side_by_side as sides

from ulmfit.batches.documents import TIME_STEP_OVERHEAD, DocumentBatches, deal
from ulmfit.text.tokenizer import Tokenizer

WINDOW = 72

PEER = r"""
import json, sys
import numpy as np
from fastai.text.all import SortedDL
lengths, batch_size = json.load(sys.stdin)
np.random.seed(0)
loader = SortedDL(list(range(len(lengths))), res=lengths, bs=batch_size, shuffle=True)
print(json.dumps([int(i) for i in loader.get_idxs()]))
"""


def review_lengths() -> np.ndarray:
    """Tokens of IMDb's training reviews, or a draw like them."""
    folder = os.environ.get("ULMFIT_DATA")
    if not folder:
        print("lengths: drawn, log-normal (ULMFIT_DATA is not set)")
        return np.random.default_rng(0).lognormal(np.log(230), 0.68, 25_000).astype(np.int64).clip(10, 3000)
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(Path(folder, "imdb", "train.parquet"), columns=["text"])["text"].to_pylist()
    lengths = np.asarray(Tokenizer.train(texts[::50]).encode_flat(texts)[1], dtype=np.int64)
    print(f"lengths: {len(lengths)} IMDb reviews, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, "
          f"longest {lengths.max()}")
    return lengths


def computed_ours(lengths: np.ndarray) -> int:
    """Tokens that ClassifierNet reads: each window its live rows, as wide as the longest reaches."""
    starts = np.arange(0, lengths.max(initial=0), WINDOW)
    live = (lengths[None, :] > starts[:, None]).sum(1)
    return int((live * np.minimum(WINDOW, lengths.max(initial=0) - starts)).sum())


def computed_peer(lengths: np.ndarray) -> int:
    """Tokens that SentenceEncoder reads: a row begins where its whole windows of padding in front end."""
    longest = lengths.max(initial=0)
    return int((longest - (longest - lengths) // WINDOW * WINDOW).sum())


def deal_ours(lengths: np.ndarray, ranks: int, per_rank: int) -> Iterator[list[np.ndarray]]:
    """For each step of an epoch the lengths that each rank holds."""
    for indices in DocumentBatches(lengths, batch_size=per_rank * ranks, seed=0).plan(0):
        step = lengths[indices]
        assert sorted(np.concatenate(shares := [np.concatenate(parts) for parts in deal(
            step, num_ranks=ranks, micro_batches=1)])) == list(range(len(step))), "each document on one rank"
        yield [step[share] for share in shares]


def deal_peer(lengths: np.ndarray, order: Sequence[int], ranks: int, per_rank: int) -> Iterator[list[np.ndarray]]:
    """Contiguous parts of the order, one a rank, each read by batches."""
    share = -(-len(order) // ranks)
    parts = lengths[np.resize(order, share * ranks)].reshape(ranks, share)
    for first in range(0, share, per_rank):
        yield list(parts[:, first:first + per_rank])


def summary(steps: list[list[np.ndarray]], computed) -> tuple[float, float, float]:
    """Padding, balance by tokens, balance with the cost of time steps."""
    tokens = np.array([[computed(part) for part in step] for step in steps], dtype=float)
    longest = np.array([[part.max(initial=0) for part in step] for step in steps], dtype=float)
    real = sum(int(part.sum()) for step in steps for part in step)

    def balance(cost: np.ndarray) -> float:
        return cost.mean(1).sum() / cost.max(1).sum()

    return 1 - real / tokens.sum(), balance(tokens), balance(tokens + TIME_STEP_OVERHEAD * longest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.add_peer(parser)
    parser.add_argument("--per-rank", type=int, default=32, help="documents of a rank's batch (default 32)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 64])
    options = parser.parse_args()

    print(sides.machine())
    lengths = review_lengths()
    # A row of equal documents is read without waste, whichever way it is counted.
    assert computed_ours(np.full(3, 100)) == computed_peer(np.full(3, 100)) == 300
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    order = None
    if options.peer:
        found = subprocess.run([options.peer, "-c", PEER], input=json.dumps([lengths.tolist(), options.per_rank]),
                               text=True, stdout=subprocess.PIPE, check=True)
        order = json.loads(found.stdout)
        assert sorted(order) == list(range(len(lengths)))
    print(f"{'':28}{'padding':>9}{'balance':>9}{'with the cost of time steps':>29}")
    for ranks in options.ranks:
        rows = {"ours": (deal_ours(lengths, ranks, options.per_rank), computed_ours)}
        if order is not None:
            rows["fastai"] = (deal_peer(lengths, order, ranks, options.per_rank), computed_peer)
        rows["random order"] = (deal_peer(lengths, shuffled, ranks, options.per_rank), computed_ours)
        for name, (steps, computed) in rows.items():
            padding, by_tokens, by_cost = summary(list(steps), computed)
            print(f"{ranks:3} ranks  {name:19}{padding:9.1%}{by_tokens:9.3f}{by_cost:29.3f}")


if __name__ == "__main__":
    main()
