"""Our tokenizer against fastai 2 with spaCy, side by side on one core.

    python -m venv PEER && echo "torch==2.13.0" > constraints.txt
    PEER/bin/pip install -c constraints.txt fastai==2.8.12 spacy
    python benchmarks/tokenizer.py --peer PEER/bin/python --data imdb/unsup.parquet

Both go from texts to ids in memory, single-threaded and alternately (A B A B ...). Every round has documents
that neither has seen, as a corpus does (spaCy caches words); a first round warms both up. fastai runs its own
TokenizeWithRules(SpacyTokenizer()) and Numericalize in one process, which is what its workers run, less the
transfer between processes. Reported: medians over the rounds of wall and CPU time per 1,000 characters, their
ratios, and the share of equal tokens under the rules fastai2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # read once, when tokenizers is first used
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ulmfit.text.tokenizer import Tokenizer  # noqa: E402

PEER = r"""
import json, sys, time
from collections import Counter
from fastai.text.core import SpacyTokenizer, TokenizeWithRules
from fastai.text.data import Numericalize, make_vocab
rounds = json.load(open(sys.argv[1], encoding="utf-8"))
tokenize = TokenizeWithRules(SpacyTokenizer())
counts = Counter(token for doc in tokenize(rounds[0]) for token in doc)
numericalize = Numericalize(vocab=make_vocab(counts, min_freq=2))
print("ready", flush=True)
for texts in rounds:
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = [list(doc) for doc in tokenize(texts)]
    ids = [numericalize(doc) for doc in tokens]
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)
json.dump(tokens, open(sys.argv[2], "w", encoding="utf-8"))
"""


def read_texts(path: str, column: str, number: int) -> list[str]:
    """`number` documents drawn with a fixed seed."""
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()
    return random.Random(0).sample(texts, min(number, len(texts)))


def edits(ours: list[str], theirs: list[str]) -> int:
    """Tokens to insert, delete or replace, from the longest matching blocks (an upper bound)."""
    import difflib

    codes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in codes if kind != "equal")


def timed(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="python of a virtual environment with fastai and spacy")
    parser.add_argument("--data", required=True, help="a parquet file")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    number = arguments.documents
    texts = read_texts(arguments.data, arguments.text_column, number * (arguments.rounds + 1))
    rounds = [texts[start : start + number] for start in range(0, len(texts), number)]
    print(
        f"{len(rounds)} x {number} documents, {sum(map(len, texts)) / 1000:.0f} KB, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    tokenizers = {rules: Tokenizer.train(rounds[0], rules=rules) for rules in ("fastai1", "fastai2")}
    cost: dict[str, list[tuple[float, ...]]] = {name: [] for name in (*tokenizers, "peer")}
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "texts.json"), Path(folder, "tokens.json")
        given.write_text(json.dumps(rounds), encoding="utf-8")
        peer = subprocess.Popen(
            [arguments.peer, "-c", PEER, str(given), str(result)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert peer.stdout.readline() == "ready\n", "the peer did not start: see its message above"
        for batch in rounds:
            kilochars = sum(map(len, batch)) / 1000
            seconds = {
                rules: timed(partial(tokenizer.encode_flat, batch)) for rules, tokenizer in tokenizers.items()
            }
            peer.stdin.write("go\n")
            peer.stdin.flush()
            seconds["peer"] = json.loads(peer.stdout.readline())
            for name, pair in seconds.items():
                cost[name].append(tuple(value * 1e6 / kilochars for value in pair))
        peer.stdin.close()
        peer.wait()
        theirs = json.loads(result.read_text(encoding="utf-8"))

    median = {
        name: [statistics.median(column) for column in zip(*pairs[1:], strict=True)]
        for name, pairs in cost.items()
    }
    for name, (wall, cpu) in median.items():
        ratios = f"{median['peer'][0] / wall:5.1f}x wall {median['peer'][1] / cpu:5.1f}x CPU"
        print(
            f"{'fastai + spaCy' if name == 'peer' else 'ulmfit ' + name:16} {wall:7.0f} us/KB wall "
            f"{cpu:7.0f} us/KB CPU {'' if name == 'peer' else ratios}"
        )
    total = sum(map(len, theirs))
    wrong = sum(edits(a, b) for a, b in zip(tokenizers["fastai2"].tokenize(rounds[-1]), theirs, strict=True))
    print(f"fastai2: {100 - 100 * wrong / total:.4f} % of {total} tokens equal")


if __name__ == "__main__":
    main()
