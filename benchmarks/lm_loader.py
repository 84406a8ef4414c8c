"""Batches of the language model without a model: tokens a second, beside what a training step needs and fastai's.

    python benchmarks/lm_loader.py --peer PEER/bin/python
    python benchmarks/lm_loader.py --need 400000             # of a GPU's step, instead of measuring one here

Ours reads a token cache on disk (CachedRows), alone and through the Prefetcher as the trainer does. fastai's
LMDataLoader is measured twice: on words that Numericalize turns into ids at every access, as its data block does, and
on tensors of ids made beforehand. The documents are random words with the lengths of film reviews (log-normal). The
first epoch of ours is checked: every token is a target once, and each target is the next input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from types import SimpleNamespace

import numpy as np
import side_by_side as sides
import torch
from lm_step import SIZES, build_ours


def lengths_of(documents: int) -> np.ndarray:
    """Tokens of each document: mean 290, as IMDb's reviews have."""
    return np.random.default_rng(0).lognormal(np.log(230), 0.68, documents).astype(np.int64).clip(10, 3000)


def make_store(folder: str, lengths: np.ndarray, vocab_size: int, classes: int = 0):
    """A token cache of random ids, and labels of that many classes, written by the real builder."""
    from ulmfit.batches.cache import build_or_open

    class Corpus:
        name, skipped, fingerprint = "train", {}, "random"

        def batches(self, start: int | None, until: None = None) -> Iterator[SimpleNamespace]:
            for first in range(start or 0, len(lengths), 1000):
                rows = np.arange(first, min(first + 1000, len(lengths)))
                yield SimpleNamespace(texts=lengths[rows], labels=rows % max(1, classes), rows=rows, after=first + 1000)

        def check(self) -> None:
            pass

    class Words:
        fingerprint = "random"

        def __len__(self) -> int:
            return vocab_size

        def encode_flat(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng(int(texts.sum()))  # called from several threads
            return rng.integers(10, vocab_size, texts.sum(), dtype=np.int32), texts

    return build_or_open(Corpus(), Words(), folder, with_labels=classes > 0)


def check(source) -> None:
    """An epoch's targets are all tokens but the first, and rows go on from batch to batch."""
    seen, before = [], None
    for batch in source.epoch_batches(0):
        counted = batch.targets >= 0
        assert torch.equal(batch.tokens[:, 1:][counted[:, 1:]], batch.targets[:, :-1][counted[:, 1:]])
        assert before is None or torch.equal(batch.tokens[:, 0][counted[:, 0]], before[counted[:, 0]])
        before = batch.targets[:, -1]
        seen.append(batch.targets[counted].bincount(minlength=source.store.vocab_size))
    ids, _ = source.store.read(np.arange(len(source.store)))
    missing = np.bincount(ids, minlength=source.store.vocab_size) - sum(seen).numpy()
    assert missing.sum() == 1 and missing.min() == 0, "an epoch leaves out one token, the first"


def pace(batches: Iterable) -> float:
    """Tokens a second of a stretch of batches."""
    begun = time.perf_counter()
    tokens = sum(batch[0].numel() for batch in batches)
    return tokens / (time.perf_counter() - begun)


def serve_ours(options: argparse.Namespace) -> None:
    from ulmfit.batches.lm import CachedRows
    from ulmfit.batches.prefetch import Prefetcher

    with tempfile.TemporaryDirectory() as folder:
        store = make_store(folder, lengths_of(options.documents), options.vocab_size)
        source = CachedRows(store, batch_size=options.rows, bptt=options.bptt, seed=0, rows=range(options.rows))
        check(source)
        steps = min(options.steps, source.steps_per_epoch() - 1)

        def stretch(batches: Iterator) -> float:
            next(batches)  # the epoch's order is drawn before its first batch
            return pace((batch.tokens,) for batch, _ in islice(batches, steps))

        def measure() -> dict[str, float]:
            alone = stretch(source.batches())
            with Prefetcher(source.batches()) as batches:
                return {"alone": alone, "prefetched": stretch(batches)}

        sides.serve(measure)


def serve_peer(options: argparse.Namespace) -> None:
    from fastai.text.all import Datasets, LMDataLoader, LMTensorText, Numericalize

    # Fewer documents: its loader holds them all as Python lists, and its pace does not depend on their number.
    lengths = lengths_of(min(options.documents, 4000))
    rng = np.random.default_rng(1)
    ids = [rng.integers(10, options.vocab_size, length) for length in lengths]
    vocab = [f"word{i}" for i in range(options.vocab_size)]
    words = Datasets([[vocab[i] for i in text] for text in ids], [[Numericalize(vocab)]])
    settings = {"bs": options.rows, "seq_len": options.bptt, "shuffle": True, "lens": lengths.tolist()}
    loaders = {
        "words": LMDataLoader(words, **settings),
        "ids": LMDataLoader([(LMTensorText(text),) for text in ids], **settings),
    }
    steps = max(2, options.steps // 40)

    def stretch(loader) -> float:
        batches = iter(loader)
        next(batches)
        return pace(islice(batches, min(steps, len(loader) - 1)))

    sides.serve(lambda: {name: stretch(loader) for name, loader in loaders.items()})


def step_pace(options: argparse.Namespace) -> float:
    """Tokens a second of the trainer's step here."""
    if options.threads:
        torch.set_num_threads(options.threads)
    step, *_ = build_ours(options.preset, options.vocab_size, options.rows, options.bptt, options.precision)
    step()
    wall = sides.seconds(lambda: [step() for _ in range(options.train_steps)])
    return options.rows * options.bptt * options.train_steps / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, help="documents of 290 tokens on average")
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--bptt", type=int, default=72)
    parser.add_argument("--steps", type=int, default=2000, help="batches of a round (ours; the peer's 1/40 of it)")
    parser.add_argument("--need", type=float, help="tokens/s of a training step (default: measured here)")
    parser.add_argument("--preset", default="base", choices=SIZES, help="of the measured step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="of the measured step")
    parser.add_argument("--train-steps", type=int, default=2, help="steps to measure the need by")
    sides.add_options(parser, rounds=5)
    options = parser.parse_args()
    if options.side:
        with sides.protocol():
            return serve_ours(options) if options.side == "ours" else serve_peer(options)

    print(sides.machine())
    found = sides.alternate(options, sys.argv, sides.environment(options.threads))
    need = options.need or step_pace(options)
    print(f"batches of {options.rows} x {options.bptt}; a training step needs {need:,.0f} tokens/s")
    names = {
        "alone": "CachedRows",
        "prefetched": "CachedRows, Prefetcher",
        "words": "fastai LMDataLoader, words",
        "ids": "fastai LMDataLoader, ids",
    }
    best = found["peer"].values("ids") if options.peer else None
    for side in found.values():
        for key in side.rounds[0]:
            beside = f"  {sides.ratio(side.values(key), best)} of fastai from ids" if best else ""
            print(
                f"  {names[key]:28} {side.median(key):14,.0f} tokens/s  {side.median(key) / need:9,.1f} x the need"
                f"{beside}"
            )


if __name__ == "__main__":
    main()
