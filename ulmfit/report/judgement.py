"""The sections of a report on how good a classifier is: by class, its calibration, its errors, the words that decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ulmfit.coloured import escaped, marked
from ulmfit.explanation import Explanation
from ulmfit.report.cells import MOST_CLASSES, SPLITS, percent, score, table
from ulmfit.report.charts import bar, reliability_chart
from ulmfit.report.facts import Facts, number
from ulmfit.report.judged import Judged, Wrong
from ulmfit.training.class_scores import class_scores

SHOWN_WORDS = 80  # of a text, around those that decided
DEEPEST = 0.5  # opacity of a cell with a whole class; with more, numbers would be hard to read in dark mode


def classes(metrics: dict[str, Any], labels: Sequence[str]) -> str:
    """Precision, recall, F1 and support by class."""
    by_class = metrics.get("by_class") or _by_confusion(metrics.get("confusion"), len(labels))
    if not isinstance(by_class, list) or len(by_class) != len(labels):
        return ""
    rows = []
    for label, scores in zip(labels, by_class, strict=True):
        if not isinstance(scores, dict):
            return ""
        f1 = number(scores.get("f1"))
        rows.append([label, percent(scores.get("precision")), percent(scores.get("recall")),
                     f"{percent(f1)}{bar(f1 or 0.0)}", f"{int(number(scores.get('support')) or 0):,}"])  # fmt: skip
    return table(["class", "precision", "recall", "F1", "texts"], rows, "Scores by class", "bars")


def _by_confusion(rows: Any, classes: int) -> list[dict[str, Any]] | None:
    """The scores by class of a run of before version 0.3.0, which has the confusion matrix alone."""
    if not _is_matrix(rows, classes):
        return None
    counts = np.array([[number(cell) or 0.0 for cell in row] for row in rows])
    return class_scores(counts.diagonal().tolist(), counts.sum(1).tolist(), counts.sum(0).tolist(), [""] * classes)


def _is_matrix(rows: Any, classes: int) -> bool:
    return (
        isinstance(rows, list)
        and len(rows) == classes
        and all(isinstance(row, list) and len(row) == classes for row in rows)
    )


def confusion(metrics: dict[str, Any], labels: Sequence[str]) -> str:
    """The confusion matrix; of many classes the pairs that are confused most."""
    rows: Any = metrics.get("confusion")
    if not _is_matrix(rows, len(labels)):
        return ""
    counts = [[number(cell) or 0.0 for cell in row] for row in rows]
    if len(labels) > MOST_CLASSES:
        pairs = sorted(
            ((counts[i][j], i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and counts[i][j]),
            reverse=True,
        )
        found = [
            [f"{labels[i]} taken for {labels[j]}", f"{count:,.0f}", percent(count / (sum(counts[i]) or 1))]
            for count, i, j in pairs[:15]
        ]
        return table(["confused most", "texts", "of the class"], found, "Classes that are confused most")
    cells = []
    for i, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row) or 1
        shades = [
            f'<span class="heat {"hit" if i == j else "miss"}" style="--heat:{DEEPEST * count / total:.3f}">{count:,.0f}</span>'
            for j, count in enumerate(row)
        ]
        cells.append([label, *shades])
    out = table(["true \\ predicted", *labels], cells, "Confusion matrix", "matrix")
    return (
        out
        + '<p class="muted">Rows are the true classes, columns the predicted ones; shading is the share of the row.</p>'
    )


def calibration(metrics: dict[str, Any], judged: Judged | None) -> str:
    """How far probabilities can be trusted."""
    several = "thresholds" in metrics
    chart = reliability_chart(judged.bins, several=several) if judged else ""
    told = []
    if number(metrics.get("ece")) is not None:
        told.append(f"The expected calibration error is {score('ece', metrics['ece'])} (0 is best).")
    if number(metrics.get("ece_before")) is not None:
        told.append(f"It was {score('ece', metrics['ece_before'])} before temperature scaling.")
    if chart:
        told.append(
            "Each disc is a group of "
            + ("decisions" if several else "texts")
            + "; on the dashed line probabilities are what they say, below it they promise too much."
        )
    return chart + (f'<p class="muted">{" ".join(told)}</p>' if told else "")


def errors(judged: Judged, labels: Sequence[str], facts: Facts) -> str:
    """The rows that are predicted wrong with the largest losses."""
    if not judged.errors:
        return f"<p>None of the {judged.rows:,} {SPLITS[judged.split]} texts is predicted wrong.</p>"
    items = "".join(f"<li>{_error(wrong, labels)}</li>" for wrong in judged.errors)
    note = (
        "Words that speak for the wrong class are blue and underlined, words against it orange and dotted. "
        if any(wrong.explanation for wrong in judged.errors)
        else "With --no-samples rows and classes are told by their numbers. "
    )
    return (
        f'<p class="muted">{judged.wrong:,} of {judged.rows:,} {SPLITS[judged.split]} texts are predicted wrong. {note}'
        f'An error that the model is sure of is often a wrong label.</p><ol class="errors">{items}</ol>'
    )


def _error(wrong: Wrong, labels: Sequence[str]) -> str:
    def named(places: Sequence[int]) -> str:
        return (
            ", ".join(f"<b>{labels[place]}</b> {wrong.probabilities[place]:.1%}" for place in places) or "<b>none</b>"
        )

    head = (
        f"<p>row {wrong.row:,}: predicted {named(wrong.predicted)}, true {named(wrong.true)}, loss {wrong.loss:.2f}</p>"
    )
    if wrong.explanation is None:
        return head
    return head + f'<p class="words" dir="auto">{marked(wrong.explanation, window(wrong.explanation))}</p>'


def window(found: Explanation) -> slice:
    """The neighbouring words that decided most, at most `SHOWN_WORDS`."""
    sizes = [abs(word.contribution) for word in found.words]
    if len(sizes) <= SHOWN_WORDS:
        return slice(None)
    total = best = sum(sizes[:SHOWN_WORDS])
    start = 0
    for place in range(1, len(sizes) - SHOWN_WORDS + 1):
        total += sizes[place + SHOWN_WORDS - 1] - sizes[place - 1]
        if total > best:
            best, start = total, place
    return slice(start, start + SHOWN_WORDS)


def words(judged: Judged, labels: Sequence[str]) -> str:
    """The words that add most to each class."""
    blocks = []
    for index, found in list(judged.words.items())[:MOST_CLASSES]:
        if not found:
            continue
        most = max(value for _, value, _ in found)
        rows = [
            [f"<bdi>{escaped(word)}</bdi>", f"{value:+.2f}{bar(value / most, 'f')}", f"{count:,}"]
            for word, value, count in found
        ]
        blocks.append(
            f"<div><h4>{labels[index]}</h4>{table(['word', 'adds', 'texts'], rows, 'Words of a class', 'bars')}</div>"
        )
    if not blocks:
        return ""
    return (
        f'<p class="muted">What words add to the log-odds of the class where it is predicted, on average over the texts that '
        f"have them; from {judged.explained:,} {SPLITS[judged.split]} texts, by gradient times input.</p>"
        f'<div class="grid2">{"".join(blocks)}</div>'
    )
