"""The probe: what a GPU adds, right first and then fast, in one command of at most 200 seconds (gpu.sh says how).

Each part runs within its time, and whatever becomes of one, the others follow. Every row is written to OUT/gpu.jsonl as
soon as it is known, tables to OUT/gpu.md after each part, and what the reproduction goes by to OUT/probe.json: the best
precision and loss that were right, and their tokens a second. Without a GPU, parts and cells that need one say so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_plan
from gpu_workers import Outcome, Row, run_parts, work

#: The most seconds of each part. Those of the first lines are the default.
PARTS = {
    "correctness": 30, "step": 50, "resume": 15, "ddp": 15, "zero2": 20, "fsdp2": 15, "compressed": 15, "peer": 25,
    "profile": 10,
    "peak": 15, "loss": 35, "lstm": 20, "classifier": 50, "tests": 180,
}  # fmt: skip
DEFAULT = ("correctness", "step", "resume", "ddp", "zero2", "fsdp2", "compressed", "peer", "profile")
TOTAL = 195.0


def worker_command(options: argparse.Namespace) -> list[str]:
    return [sys.executable, __file__, "--worker", "--device", options.device, *(["--tiny"] if options.tiny else [])]


def worker(options: argparse.Namespace) -> None:
    """Do the parts that stdin names. torch is imported here alone."""
    import gpu_checks
    import gpu_loss
    import gpu_parts

    s = gpu_parts.Settings(device=options.device, tiny=options.tiny)
    parts = {name: partial(getattr(gpu_parts, name), s) for name in PARTS if hasattr(gpu_parts, name)}
    parts |= {name: partial(getattr(gpu_checks, name), s) for name in ("correctness", "bits")}
    parts |= {"resume": partial(gpu_checks.resume, s, worker_command(options))}
    parts |= {name: partial(gpu_checks.engine, s, name) for name in gpu_checks.ENGINES}

    def with_own_loss(part: Callable[[], Iterable[Row]]) -> Iterator[Row]:
        gpu_loss.choose(gpu_loss.best())  # whatever the part before has chosen
        yield from part()

    work({name: partial(with_own_loss, part) for name, part in parts.items()})


def table(rows: list[Row]) -> str:
    """In Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) and 0 < abs(value) < 1e-2 else str(value)


class Report:
    """The files of the probe. Without a folder all is printed alone."""

    def __init__(self, folder: str | None, title: str) -> None:
        self._folder, self._text = folder and Path(folder), [title]
        self.rows: dict[str, list[Row]] = {}
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "gpu.jsonl").write_text("")

    def tell(self, part: str, row: Row) -> None:
        """A row, as soon as it is known."""
        print(part, json.dumps(row), flush=True)
        self.rows.setdefault(part, []).append(row)
        if self._folder:
            with open(self._folder / "gpu.jsonl", "a") as file:
                file.write(json.dumps({"part": part} | row) + "\n")
            (self._folder / "probe.json").write_text(json.dumps(gpu_plan.choose(self.rows), indent=1) + "\n")
            if "seconds" in row:
                self._text.append(self._section(part, row))
                (self._folder / "gpu.md").write_text("\n".join(self._text))

    def _section(self, part: str, last: Row) -> str:
        rows = [row for row in self.rows[part] if "seconds" not in row]
        fault = f"**{last['fault']}**\n" if "fault" in last else ""
        return f"\n## {part}, {last['seconds']:.0f} s\n\n{table(rows) if rows else ''}\n{fault}"


def wrong(outcome: Outcome) -> bool:
    return bool(outcome.fault) or any(
        row.get("right") is False or row.get("outcome") in ("failure", "error") for row in outcome.rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(DEFAULT), help="in this order (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of the whole (default: %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor of the seconds of each part, for a busy machine"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a tiny model: rehearses the probe, measures nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    begun = time.monotonic()
    report = Report(os.environ.get("OUT"), f"{time.strftime('%Y-%m-%d')}, {options.device}{', tiny' * options.tiny}")
    limits = {name: PARTS[name] * options.scale for name in options.parts}
    outcomes = run_parts(limits, worker_command(options), total=options.seconds * options.scale, tell=report.tell)
    at_fault = [name for name, outcome in outcomes.items() if wrong(outcome)]
    print(json.dumps(gpu_plan.choose(report.rows)))
    print(f"{time.monotonic() - begun:.0f} s; " + (f"at fault: {', '.join(at_fault)}" if at_fault else "no fault"))
    sys.exit(bool(at_fault))


if __name__ == "__main__":
    main()
