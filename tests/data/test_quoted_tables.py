"""Tables of a program that quotes, read as Python's csv module reads them. ULMFIT_FUZZ sets the number of cases."""

from __future__ import annotations

import csv
import io
import os
import random

import pytest

from tests.data.files import write
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find

pytestmark = pytest.mark.usefixtures("alone")
CASES = int(os.environ.get("ULMFIT_FUZZ", 1000)) // 10
WORDS = [
    "a", "film", "was", "good", "bad", "it's", "café", "10%", "price;", "actor,", "|", '"quoted"', '5"', "(yes)", "C:\\dir\\", "1,000",
    "2020-01-02", "pos", "neg,", "3",
]  # fmt: skip
LABELS = [["pos", "neg"], ["0", "1"], ["1", "2", "3", "4", "5"], ["sci fi", "rom, com", "x"]]
COLUMNS = [
    ["text", "label"],
    ["label", "text"],
    ["id", "text", "label"],
    ["title", "text", "label"],
    ["text", "title", "label"],
]


def text_of(draw: random.Random, labels: list[str]) -> str:
    """Words, in one case of three with line breaks, whose next line may begin as a row would."""
    words = draw.choices(WORDS, k=draw.randint(3, 30))
    for _ in range(draw.choice([0, 0, 1, 2])):
        place = draw.randrange(1, len(words))
        words[place] = "\n" + draw.choice([words[place], draw.choice(labels), f"{draw.choice(labels)},{words[place]}"])
    return " ".join(words)


@pytest.mark.parametrize("seed", range(CASES))
def test_the_rows_are_those_that_were_written(seed):
    draw = random.Random(seed)
    labels, columns = draw.choice(LABELS), draw.choice(COLUMNS)
    # Some hundred rows, so that a field with a separator stands in some line, which tells that the program quotes.
    table = [
        [{"label": draw.choice(labels), "id": str(number)}.get(name) or text_of(draw, labels) for name in columns]
        for number in range(draw.choice([150, 400]))
    ]
    file, separator = io.StringIO(newline=""), draw.choice(",,;|")
    quoting, end = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), draw.choice(["\n", "\r\n"])
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([columns, *table])
    write("a.csv", file.getvalue())
    found = find("a.csv", Access(streaming=True))["train"]
    assert found.columns == columns
    rows = [list(row) for batch in found.read(columns) for row in zip(*batch.values(), strict=True)]
    assert rows == table
