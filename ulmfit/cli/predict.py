"""predict: labels and probabilities of texts or of a corpus, a line each."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tyro.conf import Positional

from ulmfit.cli.common import check_output, tell_notes, tell_skipped
from ulmfit.cli.streams import OutputLost
from ulmfit.errors import UserError
from ulmfit.files import beside, publish_new

CHUNK = 2048  # texts that one process predicts at a time

Write = Callable[[int, str, Any], object]  # the row's number, its label, probabilities of the classes


@dataclass(kw_only=True)
class PredictOptions:
    """Classify texts or a corpus: a line each with label and probability.

    Under accelerate launch the texts are shared out to all processes.
    """

    text: Positional[tuple[str, ...]] = ()
    """Texts to classify."""
    model: str
    """Run directory of a classifier, or its model/."""
    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: the texts on the command line)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: what the classifier was trained on, else text)."""
    output: str | None = None
    """File to write; .jsonl and .csv have the row's number and all probabilities (default: the terminal)."""
    int8: bool = False
    """Matrix products in 8 bits, on the CPU: faster, probabilities move by 0.001 or so."""


def predict(options: PredictOptions) -> None:
    """Classify texts, or a corpus in chunks that are shared out to the processes."""
    if bool(options.text) == bool(options.data):
        raise UserError("there must be either texts or --data; give one of them")
    from ulmfit.config import ClassifierConfig
    from ulmfit.data.corpus import notes_of, open_rows
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.inference import TextClassifier

    with open_runtime(ClassifierConfig()) as (runtime, _):
        if options.output:
            output = Path(options.output)
            runtime.on_main(lambda: check_output(output))
        model = TextClassifier.from_pretrained(options.model, device=runtime.device, int8=options.int8)
        split = None
        texts: Iterator[tuple[int, str]] = enumerate(options.text)
        if options.data:
            columns = model.config.get("text_columns", ())
            split = open_rows(options.data, options.text_column, trained_columns=columns)
            if runtime.is_main:
                tell_notes(notes_of([split]))
            texts = (pair for batch in split.batches() for pair in zip(batch.rows, batch.texts, strict=True))
        lost = None
        with _writer(options.output if runtime.is_main else os.devnull, model.label_names) as write:
            while chunk := list(islice(texts, CHUNK * runtime.world_size)):
                mine = runtime.own_rows(len(chunk))
                share = [text for _, text in chunk[mine.start : mine.stop]]
                rows = runtime.gather_objects(list(model.probabilities(share)))
                try:
                    for (number, _), row in zip(chunk, rows, strict=True):
                        write(number, model.label_names[row.argmax()], row)
                except OutputLost as error:  # the other processes must hear of it
                    lost = error
                if runtime.broadcast(lost is not None):
                    break
        if split is not None and runtime.is_main and lost is None:
            tell_skipped(split.skipped)
    if lost is not None:
        raise lost


@contextmanager
def _writer(output: str | None, labels: Sequence[str]) -> Iterator[Write]:
    """A function that writes one prediction; a file appears under its name once it is whole."""
    if output is None:
        yield _lines(sys.stdout)
        sys.stdout.flush()
        return
    if output == os.devnull:
        with open(os.devnull, "w") as file:
            yield _lines(file)
        return
    path = Path(output)
    try:
        with beside(path) as aside:
            with open(aside, "w", encoding="utf-8", newline="") as file:
                kinds = {".jsonl": _json_lines, ".csv": _table}
                yield kinds.get(path.suffix, lambda file, labels: _lines(file))(file, labels)
            placed = publish_new(aside, path)
        if placed != path:
            raise UserError(f"--output {path} has appeared meanwhile; the predictions are in {placed}")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name another file") from None


def _lines(file: TextIO) -> Write:
    return lambda number, label, row: print(f"{label}\t{row.max():.4f}", file=file)


def _json_lines(file: TextIO, labels: Sequence[str]) -> Write:
    def write(number: int, label: str, row: Any) -> None:
        probabilities = dict(zip(labels, map(float, row), strict=True))
        print(json.dumps({"row": number, "label": label, "probabilities": probabilities}), file=file)

    return write


def _table(file: TextIO, labels: Sequence[str]) -> Write:
    table = csv.writer(file)
    table.writerow(["row", "label", *labels])
    return lambda number, label, row: table.writerow([number, label, *(f"{p:.6f}" for p in row)])
