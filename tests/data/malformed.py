"""A generator of malformed tables: what programs, people and broken copies make of a table, at random by a seed.

    case = malformed(seed)
    case.content, case.kind, case.rows

The words of the texts are unique, so a lost or doubled one can be found.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from dataclasses import dataclass
from itertools import count


@dataclass
class Case:
    """One file.

    Attributes:
        content: its bytes.
        suffix: of its name.
        encoding: as written.
        damage: names of what was done to it.
        rows: the cells of its rows, if nothing was done that changes them.
    """

    content: bytes
    suffix: str
    encoding: str
    damage: list[str]
    rows: list[tuple[str, ...]] | None


def malformed(seed: int) -> Case:
    """The file of a seed."""
    draw = random.Random(seed)
    table = _table(draw)
    separator = draw.choice(",,,;;\t\t|")
    end = draw.choice(["\n", "\n", "\r\n", "\r\n", "\r"])
    style = draw.choice(["quoted", "quoted", "all", "raw"])
    text = _raw(table, separator, end) if style == "raw" else _quoted(table, separator, end, style)
    kinds = draw.sample(sorted(DAMAGE), draw.choice([0, 0, 1, 1, 2, 3]))
    if style == "raw" and end == "\r":
        kinds = []
    for kind in kinds:
        text = DAMAGE[kind](draw, text, separator, end)
    encoding = draw.choice(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
    content = text.encode(encoding, "replace")
    broken = draw.choice(sorted(BYTES)) if draw.random() < 0.15 else None
    if broken:
        content = BYTES[broken](draw, content)
        kinds.append(broken)
    suffix = draw.choice([".csv", ".csv", ".csv", ".tsv" if separator == "\t" else ".csv"])
    if draw.random() < 0.05:
        content, suffix = gzip.compress(content), suffix + ".gz"
    return Case(content, suffix, encoding, [style, *kinds], None if kinds else table[1:])


def _table(draw: random.Random) -> list[tuple[str, ...]]:
    size = draw.choice([1, 2, 2, 2, 3, 4])
    columns = draw.choice([["number"], ["word"], ["number", "word"]])[: size - 1] if size > 1 else []
    columns += ["text"] * (size - len(columns))
    draw.shuffle(columns)
    words = (f"w{number}" for number in count())
    names = [f"{kind} {place}" for place, kind in enumerate(columns)]
    rows = [tuple(_cell(draw, kind, words) for kind in columns) for _ in range(draw.choice([1, 2, 5, 20, 60]))]
    return [tuple(names), *rows]


def _cell(draw: random.Random, kind: str, words) -> str:
    if kind == "number":
        return str(draw.randrange(5))
    if kind == "word":
        return draw.choice(["good", "bad"])
    signs = draw.choice([" ", " ", ", ", "; ", ' "', "' ", " é", " | ", "\u201c"])
    return signs.join(next(words) for _ in range(draw.choice([1, 3, 8]))).strip(' "') or "empty"


def _quoted(table, separator: str, end: str, style: str) -> str:
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
    csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting).writerows(table)
    return file.getvalue()


def _raw(table, separator: str, end: str) -> str:
    """As programs write that know of no quotation marks; separators are taken out of the texts."""
    for row, cells in enumerate(table):
        table[row] = tuple(cell.replace(separator, " ") for cell in cells)
    return "".join(separator.join(row) + end for row in table)


def _in_lines(change):
    def damage(draw: random.Random, text: str, separator: str, end: str) -> str:
        lines = text.split(end)
        for _ in range(draw.choice([1, 1, 2, 5])):
            place = draw.randrange(len(lines))
            lines[place : place + 1] = change(draw, lines[place], separator)
        return end.join(lines)

    return damage


def _insert(draw: random.Random, line: str, piece: str) -> str:
    place = draw.choice([0, len(line), draw.randrange(len(line) + 1)])
    return line[:place] + piece + line[place:]


DAMAGE = {
    "stray mark": _in_lines(lambda draw, line, _: [_insert(draw, line, '"')]),
    "mark before a field": _in_lines(lambda draw, line, sep: [line.replace(sep, f'{sep}"', 1)]),
    "two marks": _in_lines(lambda draw, line, _: [_insert(draw, _insert(draw, line, '"'), '"')]),
    "lost mark": _in_lines(lambda draw, line, _: [line.replace('"', "", 1)]),
    "field too many": _in_lines(lambda draw, line, sep: [line + sep + "more"]),
    "empty fields": _in_lines(lambda draw, line, sep: [line + sep * draw.choice([1, 3])]),
    "field too few": _in_lines(lambda draw, line, sep: [line.rpartition(sep)[0]]),
    "line in two": _in_lines(lambda draw, line, _: [line[: len(line) // 2], line[len(line) // 2 :]]),
    "blank line": _in_lines(lambda draw, line, _: [line, draw.choice(["", "  ", "\t"])]),
    "blank lines on top": lambda draw, text, sep, end: end * draw.choice([1, 3]) + text,
    "header again": lambda draw, text, sep, end: text + text.partition(end)[0] + end,
    "no header": lambda draw, text, sep, end: text.partition(end)[2],
    "sep line": lambda draw, text, sep, end: f"sep={sep}{end}{text}",
    "cut": lambda draw, text, sep, end: text[: draw.randrange(len(text) + 1)],
    "line twice": _in_lines(lambda draw, line, _: [line, line]),
    "backslash": _in_lines(lambda draw, line, _: [_insert(draw, line, "\\")]),
    "escaped mark": _in_lines(lambda draw, line, _: [_insert(draw, line, '\\"')]),
    "other separator": _in_lines(lambda draw, line, sep: [line.replace(sep, draw.choice(",;\t|"))]),
    "other end": lambda draw, text, sep, end: text.replace(end, "\n", len(text.split(end)) // 2),
    "lone return": _in_lines(lambda draw, line, _: [_insert(draw, line, "\r")]),
    "odd characters": _in_lines(lambda draw, line, _: [_insert(draw, line, draw.choice("\0\x0b\x0c\x1c\x85\u2028\ufeff\ufdd0\ufdd2\ufdd4"))]),
    "many lines": lambda draw, text, sep, end: text + f'"x{end}' * draw.choice([5, 50]),
    "only marks": lambda draw, text, sep, end: text + f'""{end}' * 20,
}  # fmt: skip
BYTES = {
    "byte changed": lambda draw, content: _changed(draw, content),
    "byte lost": lambda draw, content: content[:-1],
    "bytes cut": lambda draw, content: content[: draw.randrange(len(content) + 1)],
    "other encoding": lambda draw, content: content + "größer\n".encode("cp1252"),
    "zeros": lambda draw, content: content + bytes(draw.choice([1, 1000])),
}


def _changed(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(draw.choice([1, 10])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)
