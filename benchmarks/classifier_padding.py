"""What batches of documents compute beyond their tokens, and how evenly a step is dealt to ranks; fastai's beside it.

    ULMFIT_DATA=DATA python benchmarks/classifier_padding.py --peer PEER/bin/python

Lengths are those of IMDb's 25,000 training reviews in our tokens ($ULMFIT_DATA/imdb/train.parquet); without the data
they are drawn (log-normal, mean 290). Nothing is trained: both orders of the documents are the real ones (ours from
DocumentBatches and assign_to_ranks, fastai's from its SortedDL, cut over ranks as its DistributedDL does, each rank a
contiguous part of the order), and the tokens of the encoders' windows are counted, which is checked on both real
encoders.

Padding: share of the computed tokens that are none. Balance of a step: mean / max over ranks of what they compute, the
mean of an epoch's steps weighted by cost. It is given for tokens, and for the cost: a token that is read without
gradient (before a document's last 1,400) counts a third, and a time step 16 tokens besides, since it costs something
however few documents it reads: that is what a latency-bound GPU waits for.
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
import torch

from ulmfit.batches.documents import FORWARD, TIME_STEP_OVERHEAD, DocumentBatches, assign_to_ranks
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.tokenizer.tokenizer import Tokenizer

WINDOW, MAX_LEN = 72, 1400

PEER = r"""
import json, sys
import numpy as np
import torch
from fastai.text.all import SentenceEncoder, SortedDL, TensorText, pad_input_chunk
lengths, batch_size, window = json.load(sys.stdin)
np.random.seed(0)
loader = SortedDL(list(range(len(lengths))), res=lengths, bs=batch_size, shuffle=True)
order = [int(i) for i in loader.get_idxs()]

class Count(torch.nn.Module):
    read = 0
    def forward(self, tokens):
        self.read += tokens.numel()
        return tokens[..., None].float()

count = Count()
texts = pad_input_chunk([(TensorText(torch.full((lengths[i],), 5)),) for i in order[:batch_size]], seq_len=window)
SentenceEncoder(window, count)(torch.stack([text for text, in texts]))
print(json.dumps([order, count.read]))
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
    print(
        f"lengths: {len(lengths)} IMDb reviews, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, "
        f"longest {lengths.max()}"
    )
    return lengths


def computed_ours(lengths: np.ndarray) -> tuple[int, float]:
    """Tokens that ClassifierNet reads: each window its live rows, as wide as the longest reaches; and their cost."""
    longest = lengths.max(initial=0)
    starts = np.arange(0, longest, WINDOW)
    widths = np.minimum(WINDOW, longest - starts)
    live = (lengths[None, :] > starts[:, None]).sum(1)
    forward = (lengths[None, :] > (starts + WINDOW + MAX_LEN - 1)[:, None]).sum(1)
    return int((live * widths).sum()), spent(live, forward, widths)


def computed_peer(lengths: np.ndarray) -> tuple[int, float]:
    """Tokens that SentenceEncoder reads: whole windows of padding stand in front of a row, the rest behind it; a
    window has as many rows as have a word in its first column. And their cost."""
    longest = lengths.max(initial=0)
    begins = (longest - lengths) // WINDOW * WINDOW
    starts = np.arange(0, longest, WINDOW)
    widths = np.minimum(WINDOW, longest - starts)
    live = ((begins <= starts[:, None]) & (begins + lengths > starts[:, None])).sum(1)
    forward = live * (starts + WINDOW <= longest - MAX_LEN)
    return int((live * widths).sum()), spent(live, forward, widths)


def spent(live: np.ndarray, forward: np.ndarray, widths: np.ndarray) -> float:
    """Cost of windows of `live` rows, `forward` of them read without gradient, in trained tokens; a time step costs
    what some rows do besides."""
    rows = live - (1 - FORWARD) * forward
    steps = np.where(forward < live, 1, FORWARD)
    return float(((rows + TIME_STEP_OVERHEAD["cpu"] * steps) * widths).sum())


def check_ours() -> None:
    """`computed_ours` counts what the real network reads."""
    net = ClassifierNet(AWDLSTMConfig(8, embedding_size=2, hidden_size=2, num_layers=1), 2, bptt=WINDOW)
    read = []
    net.encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    lengths = np.random.default_rng(0).integers(1, 400, 32)
    with torch.no_grad():
        net.encode(torch.zeros(32, lengths.max(), dtype=torch.long), torch.from_numpy(lengths))
    assert sum(read) == computed_ours(lengths)[0]


def deal_ours(lengths: np.ndarray, ranks: int, per_rank: int) -> Iterator[list[np.ndarray]]:
    """For each step of an epoch the lengths that each rank holds."""
    for indices in DocumentBatches(lengths, batch_size=per_rank * ranks, seed=0).plan(0):
        step = lengths[indices]
        shares = [
            np.concatenate(parts)
            for parts in assign_to_ranks(step, num_ranks=ranks, micro_batches=1, backprop_tokens=MAX_LEN)
        ]
        assert sorted(np.concatenate(shares)) == list(range(len(step))), "each on one rank"
        yield [step[share] for share in shares]


def deal_peer(lengths: np.ndarray, order: Sequence[int], ranks: int, per_rank: int) -> Iterator[list[np.ndarray]]:
    """Contiguous parts of the order, one a rank, each read by batches."""
    share = -(-len(order) // ranks)
    parts = lengths[np.resize(order, share * ranks)].reshape(ranks, share)
    for first in range(0, share, per_rank):
        yield list(parts[:, first : first + per_rank])


def summary(steps: list[list[np.ndarray]], computed) -> tuple[float, float, float]:
    """Padding, balance by tokens, balance by cost."""
    tokens, costs = np.moveaxis(np.array([[computed(part) for part in step] for step in steps]), 2, 0)
    real = sum(int(part.sum()) for step in steps for part in step)

    def balance(each: np.ndarray) -> float:
        return each.mean(1).sum() / each.max(1).sum()

    return 1 - real / tokens.sum(), balance(tokens), balance(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.add_peer(parser)
    parser.add_argument("--per-rank", type=int, default=32, help="documents of a rank's batch (default 32)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 64])
    options = parser.parse_args()

    print(sides.machine())
    lengths = review_lengths()
    check_ours()
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    order = None
    if options.peer:
        found = subprocess.run(
            [options.peer, "-c", PEER],
            text=True,
            check=True,
            input=json.dumps([lengths.tolist(), options.per_rank, WINDOW]),
            stdout=subprocess.PIPE,
        )
        order, read = json.loads(found.stdout)
        assert sorted(order) == list(range(len(lengths)))
        assert read == computed_peer(lengths[order[: options.per_rank]])[0]
    print(f"{'':28}{'padding':>9}{'balance':>9}{'balance by cost':>17}")
    for ranks in options.ranks:
        rows = {"ours": (deal_ours(lengths, ranks, options.per_rank), computed_ours)}
        if order is not None:
            rows["fastai"] = (deal_peer(lengths, order, ranks, options.per_rank), computed_peer)
        rows["random order"] = (deal_peer(lengths, shuffled, ranks, options.per_rank), computed_ours)
        for name, (steps, computed) in rows.items():
            padding, by_tokens, by_cost = summary(list(steps), computed)
            print(f"{ranks:3} ranks  {name:19}{padding:9.1%}{by_tokens:9.3f}{by_cost:17.3f}")


if __name__ == "__main__":
    main()
