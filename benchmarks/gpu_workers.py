"""Runs parts of a measurement one after another: each within its time, and whatever becomes of one, the others follow.

A worker does one part after another. It is replaced by a spare one, which is ready meanwhile, when a part fails or does
not end in time: an error of a CUDA kernel stays with its process.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpu_child import Child

Row = dict[str, Any]
Tell = Callable[[str, Row], None]


class Outcome:
    """What a part gave: its rows, why it did not end well ("" if it did), and seconds."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.fault, self.seconds = "", 0.0


def run_parts(parts: dict[str, float], command: Sequence[str], *, total: float, tell: Tell) -> dict[str, Outcome]:
    """Do the parts in order.

    Args:
        parts: name -> the most seconds that it may take.
        command: starts a worker, which calls `work`.
        total: seconds for all of them. A part whose time would begin later is told as left out.
        tell: called with the name of the part and each row as soon as it is known, and at its end with a row that has
            `seconds`, and `fault` where there is one.
    """
    begun, outcomes = time.monotonic(), {name: Outcome() for name in parts}
    workers = [Child(command), Child(command)]
    try:
        for name, limit in parts.items():
            outcome, started = outcomes[name], time.monotonic()
            seconds = min(limit, total - (started - begun))
            if seconds < 1:
                outcome.fault = f"left out: the {total:.0f} s are over"
            else:
                outcome.fault = _one(workers[0], name, seconds, outcome.rows, tell)
            outcome.seconds = round(time.monotonic() - started, 1)
            tell(name, {"seconds": outcome.seconds} | ({"fault": outcome.fault} if outcome.fault else {}))
            if outcome.fault:
                workers.pop(0).close()
                workers.append(Child(command))
    finally:
        for worker in workers:
            worker.close()
    return outcomes


def _one(worker: Child, name: str, seconds: float, rows: list[Row], tell: Tell) -> str:
    """Have a part done. Why it did not end well; "" if it did."""
    end = time.monotonic() + seconds
    worker.send(name)
    while True:
        try:
            found = worker.next(end - time.monotonic())
        except TimeoutError:
            return f"cut off after {seconds:.0f} s"
        if found is None:
            return f"its process ended with {worker.code()}"
        if "row" in found:
            rows.append(found["row"])
            tell(name, found["row"])
        else:
            return found["end"]


def work(parts: dict[str, Callable[[], Iterable[Row]]]) -> None:
    """The worker: do the parts that stdin names, and tell rows and the end of each on stdout."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print there, C's among them
    sys.stdout = sys.stderr

    def told(message: Row) -> None:
        print(json.dumps(message), file=say, flush=True)

    for line in sys.stdin:
        fault = ""
        try:
            for row in _checked(parts[json.loads(line)]()):
                told({"row": row})
        except Exception as error:  # of one part: the others still tell
            traceback.print_exc()
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        told({"end": fault})


def _checked(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows in which every number is JSON's: NaN and infinities become words."""
    for row in rows:
        yield {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
