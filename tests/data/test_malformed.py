"""No malformed table gives a traceback, a lost line or a search without end. ULMFIT_FUZZ sets the number of cases."""

from __future__ import annotations

import os

import pytest

from tests.data.files import write
from tests.data.malformed import malformed
from ulmfit.data import records, tables
from ulmfit.data.dialect import preamble
from ulmfit.data.encoding import open_bytes
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")
CASES = int(os.environ.get("ULMFIT_FUZZ", 1000))
STRAY = {"stray mark", "mark before a field", "two marks", "lost mark"}


@pytest.fixture
def pulled(monkeypatch):
    """How often a line was given to the parser."""
    counts = [0]
    given = records.Records.__next__

    def counting(self):
        counts[0] += 1
        return given(self)

    monkeypatch.setattr(records.Records, "__next__", counting)
    return counts


def lines_of(path: str, form: tables.Form) -> tuple[int, int]:
    """(lines after the header, those of them that are blank)."""
    with open_bytes(path, form.encoding) as file:
        content = file.read()
    start = form.start
    if start < 0:  # no header: blank lines and a sep= line may be on top
        lines = records.split_lines(content, form.old_ends, first=True)
        lines = lines[preamble(lines, named=True)[0] :]
    else:
        lines = records.split_lines(content[start:], form.old_ends, first=False)
    return len(lines), sum(not line.replace('"', "").strip() for line in lines)


def test_malformed_tables(monkeypatch, pulled):
    forms = []
    examine = tables.examine
    monkeypatch.setattr("ulmfit.data.readers.examine", lambda *args: forms.append(examine(*args)) or forms[-1])
    refused = 0
    for seed in range(CASES):
        case = malformed(seed)
        what = f"seed {seed}: {', '.join(case.damage)}"
        monkeypatch.setattr("ulmfit.data.shards.CHUNK", (64, 300, 2**20)[seed % 3])
        path = write(f"a{case.suffix}", case.content)
        pulled[0] = 0
        forms.clear()
        try:
            source = find(path, Access())["train"]
        except UserError as error:
            assert "\n" not in str(error) and case.rows is None, what
            refused += 1
            continue
        (form,) = forms
        names = source.columns
        batches = list(source.read_from(None, names, 7))
        found = [row for batch, _ in batches for row in zip(*(batch[name] for name in names), strict=True)]
        lines, blank = lines_of(path, form)
        # Each line is a row, or a further line of a row before it, or a blank line between rows.
        if "\ufdd4" not in case.content.decode(case.encoding, "replace"):
            taken = sum(1 + sum(str(cell).count("\n") for cell in row if cell is not None) for row in found)
            assert taken <= lines <= taken + blank, f"{what}: {lines} lines, {taken} taken, {blank} blank"
        assert pulled[0] <= (2 * len(names) + 2 * records.MANY) * (lines + 10), f"{what}: {pulled[0]} for {lines} lines"
        if set(case.damage[1:]) <= STRAY and not all(column.is_text for column in form.columns):
            assert lines - blank <= len(found) <= lines, (
                f"{what}: {len(found)} rows of {lines} lines"
            )  # no text has several lines
        if case.rows is not None and form.dialect.header and form.dialect.quoted:
            assert found == case.rows, what
        if batches:  # from a place in the middle
            middle = len(batches) // 2
            done = sum(len(batch[names[0]]) for batch, _ in batches[: middle + 1])
            rest = [
                row
                for batch, _ in source.read_from(batches[middle][1], names, 3)
                for row in zip(*batch.values(), strict=True)
            ]
            assert rest == found[done:], what
    assert refused < 0.2 * CASES
