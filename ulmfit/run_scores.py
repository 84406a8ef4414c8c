"""The evaluations of a run, read from its metrics.jsonl."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulmfit.files import parse_json

METRICS = "metrics.jsonl"
CALIBRATION = "calibration"  # the event of metrics.jsonl that follows the evaluations of a run with --calibrate


def scores_of(run_dir: Path, best: int | None) -> dict[str, dict[str, Any]]:
    """The last scores by split ("valid", "test"), without "event" and "split".

    Args:
        best: the step whose weights the model has; later evaluations of the validation split are not its. None for the
            last step.
    """
    metrics: dict[str, dict[str, Any]] = {}
    # The user may have deleted or edited the files of a finished run.
    with suppress(OSError), open(run_dir / METRICS, encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError, KeyError, TypeError):
                line = parse_json(text)
                if line["event"] == CALIBRATION:
                    metrics[line["split"]] |= {
                        name: value for name, value in line.items() if name not in ("event", "split", "step")
                    }
                if line["event"] == "eval" and not (line["split"] == "valid" and best and line["step"] > best):
                    metrics[line["split"]] = {
                        name: value for name, value in line.items() if name not in ("event", "split")
                    }
    return metrics


def number(value: Any) -> float | None:
    """A finite number; None for anything else, also for an integer that is too large for a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
