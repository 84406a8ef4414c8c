"""A corpus in three files of any kind, and what is read of it from a place on."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit.data import corpus as corpora

NUM_FILES, NUM_ROWS = 3, 23  # rows in each file
TEXTS = [f"text {number} with \u2028 caf\u00e9" for number in range(NUM_FILES * NUM_ROWS)]


def lines_of(texts):
    return "".join(f"{text}{end}" for text, end in zip(texts, ["\n", "\r\n", "\n\n  \n"] * 99, strict=False))


def json_of(texts):
    return "".join('{"text": null}\n' * (number % 20 == 4) + json.dumps({"text": text}) + "\n"
                   for number, text in enumerate(texts))  # fmt: skip


def csv_of(texts, separator=","):
    return f"id{separator}text\n" + "".join(f'{n}{separator}"{text}"\n' for n, text in enumerate(texts))


PLAIN = {
    ".txt": lambda texts: lines_of(texts).encode("utf-8-sig"),
    ".jsonl": lambda texts: json_of(texts).encode(),
    ".csv": lambda texts: csv_of(texts).encode(),
    ".tsv": lambda texts: csv_of(texts, "\t").encode(),
}
PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def write(kind: str) -> list[str]:
    """The corpus as three files of a kind in the folder c (a file a text for documents)."""
    Path("c").mkdir()
    paths = []
    for number in range(NUM_FILES):
        texts = TEXTS[number * NUM_ROWS : (number + 1) * NUM_ROWS]
        if kind == "documents":
            for place, text in enumerate(texts):
                paths.append(f"c/{number}-{place:02}.txt")
                Path(paths[-1]).write_text(text, newline="")
            continue
        paths.append(f"c/{number}{kind}")
        if kind == ".parquet":
            pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), paths[-1], row_group_size=9)
            continue
        plain, packed = f".{kind.split('.')[1]}", kind.removeprefix(f".{kind.split('.')[1]}")
        content = PLAIN[plain](texts)
        if packed:  # datasets hands compressed files on with the byte order mark
            content = content.removeprefix(codecs.BOM_UTF8)
        if packed == ".zst":
            compress = pytest.importorskip("zstandard").compress
            content = compress(content[:99]) + compress(content[99:])  # two frames, as parallel compressors write
        elif packed:
            content = PACKED[packed](content)
        Path(paths[-1]).write_bytes(content)
    return paths


def open_whole(kind):
    """A folder of .txt files of other names would be one of documents."""
    return corpora.open_rows("c" if kind == "documents" else "c/*", streaming=True)


def rest(split, start=None, batch_size=7):
    """(texts, rows, what was skipped, rows seen) from a place on, to the end of the pass."""
    batches = list(split.batches(batch_size, start))
    return ([text for batch in batches for text in batch.texts], [row for batch in batches for row in batch.rows],
            Counter(split.skipped), split.num_rows)  # fmt: skip
