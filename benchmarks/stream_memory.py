"""Resident memory and speed of `StreamedRows` over a long stream, and what a resume at its end costs.

    python benchmarks/stream_memory.py --documents 1000000 --output runs/stream_memory.csv

Writes documents of Zipf-distributed words (5 to 400 a document, 50 on average) to jsonl shards in a temporary folder,
trains a tokenizer on their beginning and reads them in one process: batch 64, bptt 70. Prints the resident memory (as
it is, not its peak) after every 50,000 documents and its least-squares slope after the first fifth of them.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ulmfit.batches.stream import StreamedRows
from ulmfit.data.corpus import open_corpus
from ulmfit.tokenizer.tokenizer import Tokenizer

BATCH_SIZE, BPTT = 64, 70
TOKENIZER_DOCUMENTS = 20_000


def documents(count: int) -> Iterator[str]:
    """Texts of 20,000 words whose frequency falls as 1 / rank, log-normal in length."""
    generator = np.random.default_rng(0)
    letters = "etaoinshrdlu"
    words = ["".join(word) for length in (1, 2, 3, 4) for word in itertools.product(letters, repeat=length)][:20_000]
    chances = 1 / np.arange(1, len(words) + 1)
    ends = np.cumsum(chances / chances.sum())
    for _ in range(0, count, 1000):
        lengths = np.clip(np.exp(generator.normal(3.6, 0.8, 1000)), 5, 400).astype(int)
        drawn = np.minimum(np.searchsorted(ends, generator.random(lengths.sum())), len(words) - 1).tolist()
        end = 0
        for length in lengths.tolist():
            start, end = end, end + length
            yield " ".join([words[number] for number in drawn[start:end]])


def write_shards(folder: Path, num_documents: int, num_shards: int) -> int:
    """Writes the corpus; returns its bytes."""
    texts = documents(num_documents)
    for shard in range(num_shards):
        with open(folder / f"part-{shard:04}.jsonl", "w") as file:
            for text in itertools.islice(texts, num_documents // num_shards):
                file.write(json.dumps({"text": text}) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(stream: StreamedRows, num_documents: int, every: int) -> tuple[list[dict[str, float]], dict]:
    """A line of figures every so many documents, and the last state."""
    lines: list[dict[str, float]] = []
    begin = time.perf_counter()
    for batch, state in stream.batches():
        read = max(document for document, _ in state["positions"])  # by the fastest row
        if read >= every * (len(lines) + 1):
            seconds = time.perf_counter() - begin
            tokens = state["step"] * batch.tokens.numel()
            behind = read - min(document for document, _ in state["positions"])
            lines.append(
                {
                    "documents": read,
                    "rss_mb": round(resident() / 1e6, 1),
                    "tokens": tokens,
                    "tokens_per_second": round(tokens / seconds),
                    "documents_between_rows": behind,
                }
            )
            print(*(f"{name} {value:,}" for name, value in lines[-1].items()), sep="  ", flush=True)
        if read >= num_documents:
            return lines, state
    raise AssertionError("a stream has no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--every", type=int, default=50_000)
    parser.add_argument("--output", type=Path, help="a .csv file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written = options.documents * 51 // 50  # some are held out for validation
        size = write_shards(Path(folder), written, options.shards)
        print(f"{written:,} documents in {options.shards} shards, {size / 1e6:,.0f} MB")
        split = open_corpus(folder, task="lm", valid=0.001, streaming=True).splits["train"]
        texts = (text for batch in split.batches() for text in batch.texts)
        tokenizer = Tokenizer.train(itertools.islice(texts, TOKENIZER_DOCUMENTS))

        def stream() -> StreamedRows:
            return StreamedRows(split, tokenizer, batch_size=BATCH_SIZE, bptt=BPTT, seed=0, rows=range(BATCH_SIZE))

        lines, state = measure(stream(), options.documents, options.every)
        begin = time.perf_counter()
        next(stream().batches(state))
        print(
            f"a resume after the last of them takes {time.perf_counter() - begin:.1f} s, its position is "
            f"{len(json.dumps(state)):,} bytes of JSON"
        )
    steady = [line for line in lines if line["documents"] >= options.documents / 5]
    slope, _ = np.polyfit([line["documents"] for line in steady], [line["rss_mb"] * 1e6 for line in steady], 1)
    print(f"slope after the first fifth: {slope:.2f} bytes a document")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
