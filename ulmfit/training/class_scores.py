"""Precision, recall, F1 and support of each class, and the small table of them that ends a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulmfit.excerpts import class_name

MOST_ROWS = 12  # classes in the table
_SCORES = ("precision", "recall", "f1")


def class_scores(
    hits: Sequence[float], true: Sequence[float], predicted: Sequence[float], label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The scores of each class: `label`, `precision`, `recall`, `f1`, `support`.

    A score is None where it would divide by zero: the precision of a class that is never predicted, the recall of one
    without documents.

    Args:
        hits: documents of each class that were predicted as it.
        true: documents of each class, the support.
        predicted: documents predicted as each class.
    """

    def share(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    return [
        {
            "label": name,
            "precision": share(hit, found),
            "recall": share(hit, support),
            "f1": share(2 * hit, support + found),
            "support": int(support),
        }
        for name, hit, support, found in zip(label_names, hits, true, predicted, strict=True)
    ]


def class_table(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for the console: the scores by class on the test split, else on the validation split; [] if there are none.

    Of many classes, those with the lowest F1 are shown.

    Args:
        metrics: by split, as of `TrainingResult`.
    """
    split = next((name for name in ("test", "valid") if metrics.get(name, {}).get("by_class")), None)
    if split is None:
        return []
    classes = list(enumerate(metrics[split]["by_class"]))
    shown = classes
    if len(classes) > MOST_ROWS:
        worst = sorted(classes, key=lambda pair: _or(pair[1]["f1"], 2.0))[:MOST_ROWS]
        shown = sorted(worst, key=lambda pair: pair[0])
    names = [class_name(scores["label"], index) for index, scores in shown]
    width = max(map(len, [f"class ({split})", *names]))
    lines = [f"{f'class ({split})':{width}}  precision  recall     f1  documents"]
    for name, (_, scores) in zip(names, shown, strict=True):
        cells = ["-" if scores[key] is None else f"{scores[key]:.3f}" for key in _SCORES]
        lines.append(f"{name:{width}}  {cells[0]:>9}  {cells[1]:>6}  {cells[2]:>5}  {scores['support']:>9,}")
    if len(shown) < len(classes):
        lines.append(f"the {len(shown)} of {len(classes):,} classes with the lowest F1; all are in metrics.jsonl")
    return lines


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
