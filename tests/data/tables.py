"""Tables to write, and the rows of a source, which are the same from every place on."""

from __future__ import annotations

import csv
import io

from tests.data.files import write
from ulmfit.data.fingerprint import Access
from ulmfit.data.source import Source
from ulmfit.data.sources import find

TEXTS = [
    "A good film, and a long one; see it", "Not for me", "Well, he said 5 | 6 times", "It was the best, by far",
    "Dull; slow, and overlong", "Great", "The plot, if any, is thin", "I liked it, mostly", "Fine: a film for all",
    "Never again, please", "One of the best films of that year", "Bad, bad, bad",
]  # fmt: skip
LABELS = ["pos", "neg"] * 6
TABLE = list(zip(LABELS, TEXTS, strict=True))


def source(content: str | bytes, name: str = "a.csv", **options) -> Source:
    write(name, content)
    return find(name, Access(streaming=True, **options))["train"]


def rows(found: Source, *columns: str) -> list[tuple]:
    """The rows of a source as tuples; they do not depend on the size of batches or the place where reading begins."""
    names = list(columns or found.columns)
    whole = [row for batch in found.read(names, 1000) for row in zip(*batch.values(), strict=True)]
    for size in (1, 7):
        done = 0
        for batch, after in found.read_from(None, names, size):
            part = list(zip(*batch.values(), strict=True))
            assert 0 < len(part) <= size and part == whole[done : done + len(part)]
            done += len(part)
            rest = [row for batch, _ in found.read_from(after, names, 5) for row in zip(*batch.values(), strict=True)]
            assert rest == whole[done:]
        assert done == len(whole)
    return whole


def written(table, separator=",", end="\r\n", header=("label", "text"), **options) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, lineterminator=end, **options)
    writer.writerows([header, *table] if header else table)
    return file.getvalue()


def zhang(classes: int) -> str:
    return "".join(
        f'"{n % classes + 1}","Title {n} of, them","Text number {n} says ""so"", and more"\n' for n in range(60)
    )
