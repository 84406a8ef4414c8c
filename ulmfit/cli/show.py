"""show: the first batches of a trainer, in words."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from ulmfit.cli.common import tell_notes, tell_skipped
from ulmfit.cli.reading import ReadingOptions


@dataclass(kw_only=True)
class ShowOptions(ReadingOptions):
    """Show what the first batches of a training look like, in words."""

    tokenizer: str | None = None
    """tokenizer.json, or a run directory, a job of fit or a model (default: the vocabulary that fit would make)."""
    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: the embedded sample)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: text, else the only one)."""
    label_column: str | None = None
    """Column with the label, or with lists of labels; several, comma-separated, of 0 and 1 (default: label)."""
    label_separator: str | None = None
    """Between the labels of a cell, of which a row may have any number (default: one label a row)."""
    unlabelled: str | None = None
    """Label of rows without a label; none where each is a class (default: -1 among whole numbers, if that is clear)."""
    task: Literal["lm", "clf"] = "lm"
    """Batches of which trainer (default: lm)."""
    rows: int = 5
    """Rows or documents to show."""
    steps: int = 2
    """Batches to show."""
    batch_size: int | None = None
    """Rows or documents of a batch (default: lm 64, clf 32)."""
    bptt: int = 70
    """Tokens of a row; of a document, those shown."""
    seed: int = 0
    """Seed of the order."""


def show(options: ShowOptions) -> None:
    """Print the first batches of a trainer as words: as a table on a terminal, else one line for each row."""
    import shutil

    from ulmfit.training.show_batch import show_batch

    names = ("text_column", "label_column", "label_separator", "separator", "encoding", "header", "seed")
    more = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.task == "clf":
        more["unlabelled"] = options.unlabelled
    shown = show_batch(
        options.data,
        task=options.task,
        tokenizer=options.tokenizer,
        rows=options.rows,
        steps=options.steps,
        batch_size=options.batch_size,
        tokens=options.bptt,
        **more,
    )
    tell_notes(shown.notes)
    tell_skipped(shown.skipped)
    if sys.stdout.isatty():
        print(shown.table(shutil.get_terminal_size().columns))
    else:
        print("\n".join(shown.lines()))
