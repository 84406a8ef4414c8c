"""metrics.jsonl of a resumed run: which lines stay, and which were written before.

It has one JSON object per line, each with "event" and "step". A resumed run continues the file as if it had never
stopped: lines of steps after the checkpoint are removed, and lines of the checkpoint's own step are not written twice.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulmfit.files import parse_json, replacing
from ulmfit.run_scores import CALIBRATION


def key_of(line: dict[str, Any]) -> str:
    """A key that distinguishes a line from others of the same step.

    For training steps and evaluations it is the kind, because their timings vary, and on another number of processes the
    last bits of their scores. For others it is the whole line.
    """
    if line["event"] in ("train", "eval", CALIBRATION):
        return json.dumps([line["event"], line.get("split")])
    return json.dumps(line, sort_keys=True)


def cut_metrics(path: Path, step: int) -> set[str]:
    """Remove lines of steps after `step` (all lines if it is 0), and lines that are not JSON (an incomplete last line).

    The file is replaced atomically. Returns the keys of the remaining lines of `step` itself.
    """
    kept: set[str] = set()
    if not path.exists():
        return kept
    with replacing(path) as aside:
        with open(path, encoding="utf-8", errors="replace") as old, open(aside, "w", encoding="utf-8") as new:
            for text in old:
                try:
                    line = parse_json(text)
                    stays = 0 < step >= line["step"] and text.endswith("\n")
                    key = key_of(line)
                except (ValueError, TypeError, KeyError):
                    continue
                if stays:
                    new.write(text)
                    if line["step"] == step:
                        kept.add(key)
    return kept


def begun_curves(path: Path) -> set[str]:
    """The curves that have a point by the lines of metrics.jsonl: "train", and splits."""
    found: set[str] = set()
    with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for text in file:
            line = parse_json(text)
            if line.get("event") in ("train", "eval"):
                found.add(line.get("split", "train"))
    return found
