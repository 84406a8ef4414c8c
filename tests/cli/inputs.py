"""A table to predict, and a failure in the middle of it."""

from pathlib import Path


def rows_of(number):
    return [
        f'{place},"film, {"good" * (place % 4)}\nof {place}"' if place % 6 else f'{place},""' for place in range(number)
    ]


def write_table(path="a.csv", number=40, head="id,text"):
    Path(path).write_text("\n".join([head, *rows_of(number)]) + "\n")


def fail():
    raise RuntimeError("the machine fails")
