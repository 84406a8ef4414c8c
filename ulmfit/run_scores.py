"""The evaluations of a run, read from its metrics.jsonl."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ulmfit.files import parse_json

METRICS = "metrics.jsonl"
ENSEMBLE = "ensemble.json"  # of a job of several classifiers: the scores of their mean
_MOST = 1e15  # of any number of a run
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


def ensemble_scores(job: Path, weights: dict[str, str] | None = None) -> dict[str, dict[str, Any]] | None:
    """The scores by split in the ensemble.json of a job; None if it is missing or damaged.

    Args:
        weights: fingerprints by classifier. Scores of others are none.
    """
    try:
        content = parse_json((job / ENSEMBLE).read_text(encoding="utf-8"))
        told, metrics = content["weights"], content["metrics"]
        sound = all(number(scores[name]) is not None for scores in metrics.values() for name in ("accuracy", "f1"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return metrics if sound and weights in (None, told) else None


def ngrams_of(job: Path) -> dict[str, float] | None:
    """What the ensemble.json of a job tells of n-grams in the mean, at least their "share"; {} if they stayed out,
    None if that was not looked at."""
    try:
        found = parse_json((job / ENSEMBLE).read_text(encoding="utf-8"))["ngrams"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(found, dict):
        return {}
    return found if 0 < (number(found.get("share")) or 0.0) < 1 else None


def temperature_of(scores: dict[str, dict[str, Any]]) -> float | None:
    """The temperature of a mean, from its scores by split; None if it is not calibrated."""
    found = number(scores.get("valid", {}).get("temperature"))
    return found if found and found > 0 else None


def number(value: Any) -> float | None:
    """A number that a run may have; None for anything else, also for one so large that charts would overflow."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST:  # false for nan
        return float(value)
    return None
