"""Texts to ids and texts to a vocabulary, beside fastai 2 with spaCy, on one core and on all.

    python benchmarks/tokenizer.py --peer PEER/bin/python --data imdb/unsup.parquet

Both go from texts to ids in memory and learn a vocabulary from them. Every round has documents that neither has seen,
as a corpus does (spaCy caches words). fastai runs its own TokenizeWithRules(SpacyTokenizer()), Numericalize and
Counter with make_vocab; on all cores it starts its processes (parallel_tokenize) and ours its threads
(RAYON_NUM_THREADS). Printed: medians of microseconds per 1,000 characters, the ratios of the rounds, and the share of
equal tokens under the rules fastai2.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import sys
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path

import side_by_side as sides


def read_texts(path: str, column: str, number: int) -> list[str]:
    """`number` documents drawn with a fixed seed."""
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()
    return random.Random(0).sample(texts, min(number, len(texts)))


def edits(ours: list[str], theirs: list[str]) -> int:
    """Tokens to insert, delete or replace, from the longest matching blocks (an upper bound)."""
    codes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in codes if kind != "equal")


def serve_ours(rounds: list[list[str]]) -> None:
    from ulmfit.tokenizer.tokenizer import Tokenizer

    tokenizers = {rules: Tokenizer.train(rounds[0], rules=rules) for rules in ("fastai1", "fastai2")}
    turns = count()

    def measure() -> dict[str, float]:
        texts = rounds[next(turns)]
        per_kb = 1e9 / sum(map(len, texts))
        found: dict[str, float] = {}
        for rules, tokenizer in tokenizers.items():
            found |= sides.wall_and_cpu(f"{rules} to ids", partial(tokenizer.encode_flat, texts))
            found |= sides.wall_and_cpu(f"{rules} vocabulary", partial(Tokenizer.train, texts, rules=rules))
        return {name: seconds * per_kb for name, seconds in found.items()}

    sides.serve(measure, last=lambda: {"tokens": tokenizers["fastai2"].tokenize(rounds[-1])})


def serve_peer(rounds: list[list[str]], workers: int) -> None:
    from collections import Counter

    from fastai.text.core import SpacyTokenizer, TokenizeWithRules, parallel_tokenize
    from fastai.text.data import Numericalize, make_vocab

    alone, turns, tokens = TokenizeWithRules(SpacyTokenizer()), count(), []

    def tokenize(texts: list[str]) -> list[list[str]]:
        if workers == 1:
            return [list(document) for document in alone(texts)]
        found = parallel_tokenize(texts, SpacyTokenizer(), n_workers=workers)
        return [list(document) for _, document in sorted(found, key=lambda pair: pair[0])]

    numericalize = Numericalize(vocab=make_vocab(Counter(token for text in tokenize(rounds[0]) for token in text)))

    def measure() -> dict[str, float]:
        texts = rounds[next(turns)]
        per_kb = 1e9 / sum(map(len, texts))
        stamps = [(time.perf_counter(), time.process_time())]

        def stamp() -> None:
            stamps.append((time.perf_counter(), time.process_time()))

        tokens[:] = tokenize(texts)
        stamp()
        _ = [numericalize(text) for text in tokens]
        stamp()
        make_vocab(Counter(token for text in tokens for token in text), min_freq=2)
        stamp()
        found = {}
        for kind, suffix in enumerate(("", "_cpu")):
            tokenized, numbered, counted = (b[kind] - a[kind] for a, b in zip(stamps, stamps[1:], strict=False))
            found |= {f"to ids{suffix}": tokenized + numbered, f"vocabulary{suffix}": tokenized + counted}
        return {name: seconds * per_kb for name, seconds in found.items()}

    sides.serve(measure, last=lambda: {"tokens": tokens})


def report(found: dict[str, sides.Side], suffix: str) -> None:
    peer = found.get("peer")
    for name in [name for name in found["ours"].rounds[0] if not name.endswith("_cpu")]:
        beside, same = "", name.split(" ", 1)[1] + suffix
        if peer:
            times = sides.ratio(peer.values(same), found["ours"].values(name + suffix))
            beside = f"  fastai + spaCy {peer.median(same):7,.0f}  {times}"
        print(f"  {name:20} {found['ours'].median(name + suffix):7,.0f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a parquet file")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--documents", type=int, default=500, help="of a round")
    parser.add_argument("--texts", help=argparse.SUPPRESS)
    sides.add_options(parser, rounds=5)
    options = parser.parse_args()
    if options.side:
        rounds = json.loads(Path(options.texts).read_text(encoding="utf-8"))
        with sides.protocol():
            return serve_ours(rounds) if options.side == "ours" else serve_peer(rounds, options.threads)

    # One part for the vocabulary to begin with, one for the round that warms up.
    number = options.documents
    texts = read_texts(options.data, options.text_column, number * (options.rounds + 1))
    rounds = [texts[start : start + number] for start in range(0, len(texts), number)]
    print(f"{sides.machine()}\n{len(rounds)} x {number} documents, {sum(map(len, texts)) / 1000:,.0f} KB")
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "texts.json")
        given.write_text(json.dumps(rounds), encoding="utf-8")
        for threads in dict.fromkeys((1, options.threads or os.cpu_count())):
            env = sides.environment(1) | {"RAYON_NUM_THREADS": str(threads)}
            found = sides.alternate(options, [*sys.argv, "--texts", str(given), "--threads", str(threads)], env)
            print(f"{threads} {'core' if threads == 1 else 'cores'}, wall: microseconds per KB")
            report(found, "")
            if threads == 1:
                print("1 core, CPU time: microseconds per KB")
                report(found, "_cpu")
    if options.peer:
        ours, theirs = (found[name].facts["tokens"] for name in ("ours", "peer"))
        wrong, total = sum(map(edits, ours, theirs)), sum(map(len, theirs))
        print(f"fastai2: {100 - 100 * wrong / total:.4f} % of {total:,} tokens equal")


if __name__ == "__main__":
    main()
