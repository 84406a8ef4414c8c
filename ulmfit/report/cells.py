"""What the sections of a report share: tables, names of classes and scores, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ulmfit.coloured import escaped
from ulmfit.excerpts import class_name
from ulmfit.report.facts import Facts, Training, number

MOST_CLASSES = 20  # in a confusion matrix; of more, the pairs that are confused most
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
SCORES = {"accuracy": "accuracy", "micro_f1": "micro F1", "f1": "macro F1", "loss": "loss", "ece": "calibration error",
          "perplexity": "perplexity"}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """A table of HTML whose cells are HTML. It scrolls on its own where the page is narrow, by keyboard too."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(label)}"><table class="{kind}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def labels_of(facts: Facts, metrics: dict[str, Any]) -> list[str]:
    """The classes of a classifier, as HTML."""
    labels = metrics.get("labels")
    return (
        [escaped(class_name(str(label), place, shown=not facts.hidden)) for place, label in enumerate(labels)]
        if isinstance(labels, list)
        else []
    )


def scored_on(training: Training) -> tuple[str, dict[str, Any]]:
    """The split that a report speaks of, and its scores: test, else validation."""
    for split in ("test", "valid"):
        if split in training.metrics:
            return split, training.metrics[split]
    return "", {}


def percent(value: Any) -> str:
    found = number(value)
    return "-" if found is None else f"{found:.1%}"


def score(name: str, value: Any) -> str:
    """A score as text."""
    found = number(value)
    if found is None:
        return "-"
    return (
        f"{found:.1%}"
        if name in ("accuracy", "f1", "micro_f1", "recall")
        else f"{found:.1f}"
        if name == "perplexity"
        else f"{found:.3f}"
    )
