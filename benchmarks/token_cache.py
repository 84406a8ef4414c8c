"""Building the token cache, and streaming without it: what they cost, and what of it only one core can do.

    python benchmarks/token_cache.py --data imdb/unsup.parquet
    python benchmarks/token_cache.py --documents 200000          # drawn words, as stream_memory.py draws them

Each measurement has a process of its own. Printed, for one tokenizer thread and for all cores: MB and tokens a second
of a build (reading, tokenising, writing); the parts of it measured alone, of which those in Python hold the GIL and
bound what more cores can give; peak memory for a quarter of the corpus and for all of it; the time to reopen an entry;
and the pace of `--streaming` (StreamedRows) for one rank and for one of eight, beside what a node's GPUs need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import side_by_side as sides

NEED = 400_000  # tokens a second of all ranks of a node
ROWS, BPTT = 64, 72


def write_part(texts: list[str], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=5000)


def texts_of(options: argparse.Namespace) -> list[str]:
    if options.data is None:
        from stream_memory import documents

        return list(documents(options.documents))
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(options.data, columns=[options.text_column])[options.text_column]
    return texts.slice(0, options.documents).to_pylist()


def job(name: str, data: str, cache: str) -> dict[str, float]:
    """One measurement, in this process."""
    from ulmfit.batches.cache import build_or_open
    from ulmfit.batches.prefetch import Prefetcher
    from ulmfit.batches.stream import StreamedRows
    from ulmfit.data.corpus import open_rows
    from ulmfit.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(Path(data).parent / "tokenizer.json")
    split = open_rows(data)
    begun, cpu = time.perf_counter(), time.process_time()
    if name == "build":
        store = build_or_open(split, tokenizer, cache, with_labels=False)
        return {
            "seconds": time.perf_counter() - begun,
            "cpu": time.process_time() - cpu,
            "tokens": store.num_tokens,
            "memory": sides.peak_memory(),
        }
    if name == "reopen":
        store = build_or_open(split, tokenizer, cache, with_labels=False)
        store.document(len(store) - 1)
        return {"seconds": time.perf_counter() - begun}
    if name == "parts":
        return parts(split, tokenizer, Path(cache))
    rows = ROWS // int(name.removeprefix("stream"))
    source = StreamedRows(split, tokenizer, batch_size=ROWS, bptt=BPTT, seed=0, rows=range(rows))
    with Prefetcher(source.batches()) as batches:
        next(batches)  # it has read a window or more
        begun, cpu = time.perf_counter(), time.process_time()
        tokens = sum(batch.tokens.numel() for batch, _ in islice(batches, 300))
        return {"pace": tokens / (time.perf_counter() - begun), "per_cpu": tokens / (time.process_time() - cpu)}


def parts(split, tokenizer, folder: Path) -> dict[str, float]:
    """CPU seconds of each part of a build, one after another on the first 10,000 documents."""
    import numpy as np

    from ulmfit.batches.cache_writer import CacheWriter
    from ulmfit.tokenizer.tokenizer import to_arrays

    spent = dict.fromkeys(("reading", "tokenizing", "lists to arrays", "writing"), 0.0)
    characters = 0
    folder.mkdir(exist_ok=True)
    writer = CacheWriter(folder / "parts", vocab_size=len(tokenizer), with_labels=False)
    batches = islice(split.batches(), 10)
    while True:
        stamps = [time.process_time()]
        batch = next(batches, None)
        if batch is None:
            return {name: seconds * 1e9 / characters for name, seconds in spent.items()}
        stamps.append(time.process_time())
        encodings = tokenizer._backend.encode_batch_fast(batch.texts)
        stamps.append(time.process_time())
        ids = to_arrays(encodings)
        stamps.append(time.process_time())
        writer.add(np.concatenate(ids), [len(row) for row in ids], None, batch.rows)
        stamps.append(time.process_time())
        characters += sum(map(len, batch.texts))
        for name, start, stop in zip(spent, stamps, stamps[1:], strict=False):
            spent[name] += stop - start


def measure(name: str, data: Path, cache: Path, threads: int) -> dict[str, float]:
    env = sides.environment(1) | {"RAYON_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--job", name, "--data", str(data), "--cache", str(cache)]
    ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a parquet file (default: drawn words)")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--documents", type=int, default=20_000, help="of the corpus (default 20,000)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        with sides.protocol():
            return sides.say(job(options.job, options.data, options.cache))

    from ulmfit.tokenizer.tokenizer import Tokenizer

    print(sides.machine())
    with tempfile.TemporaryDirectory() as folder:
        texts = texts_of(options)
        whole, quarter = Path(folder, "whole.parquet"), Path(folder, "quarter.parquet")
        write_part(texts, whole)
        write_part(texts[: len(texts) // 4], quarter)
        Tokenizer.train(texts[:5000]).save(Path(folder, "tokenizer.json"))
        size = sum(len(text.encode()) for text in texts) / 1e6
        print(f"{len(texts):,} documents, {size:.1f} MB")
        for threads in dict.fromkeys((1, os.cpu_count())):
            cache = Path(folder, f"cache{threads}")
            small, built = (measure("build", data, cache, threads) for data in (quarter, whole))
            print(
                f"build, {threads} tokenizer thread(s): {size / built['seconds']:.2f} MB/s, "
                f"{built['tokens'] / built['seconds']:,.0f} tokens/s, {built['cpu'] / built['seconds']:.2f} cores "
                f"busy ({size / built['cpu']:.2f} MB and {built['tokens'] / built['cpu']:,.0f} tokens a CPU second); "
                f"peak memory {built['memory']:.2f} GiB, for a quarter of the corpus {small['memory']:.2f} GiB"
            )
        print(f"reopening: {1000 * measure('reopen', whole, cache, 1)['seconds']:.0f} ms")
        alone = measure("parts", whole, Path(folder, "parts"), 1)
        python = sum(alone.values()) - alone["tokenizing"]
        print(
            "alone, CPU microseconds per KB: "
            + ", ".join(f"{name} {value:.1f}" for name, value in alone.items())
            + f"; in Python {100 * python / sum(alone.values()):.1f} %, so at most {1000 / python:.0f} MB/s"
        )
        for ranks in (1, 8):
            found = measure(f"stream{ranks}", whole, cache, os.cpu_count())
            print(
                f"streaming, one rank of {ranks} ({ROWS // ranks} x {BPTT} a step): {found['pace']:,.0f} tokens/s "
                f"({found['per_cpu']:,.0f} a CPU second); a rank of a node that trains {NEED:,} a second needs "
                f"{NEED / ranks:,.0f}"
            )


if __name__ == "__main__":
    main()
