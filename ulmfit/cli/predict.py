"""predict: labels and probabilities of texts or of a corpus, a line for each row."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional, UseAppendAction

from ulmfit.cli.common import check_output, tell_notes
from ulmfit.cli.reading import ReadingOptions
from ulmfit.cli.streams import OutputLost
from ulmfit.errors import UserError
from ulmfit.files import becoming

if TYPE_CHECKING:
    from ulmfit.cli.prediction_files import Layout, PredictedRow, Write
    from ulmfit.data.splits import Split
    from ulmfit.inference import TextClassifier

CHUNK = 2048  # rows that one process predicts at a time, at most
CHUNK_CHARACTERS = 2**24  # of their texts; a single text may be longer
BATCH = 1000  # rows read at a time


@dataclass(kw_only=True)
class PredictOptions(ReadingOptions):
    """Classify texts or a corpus: a line for each row with label and probability.

    A row of --data without a readable text has no label, and a reason. A line begins with the number of the row in its
    file, from 0 without the header; with several files, the file's name follows. Under accelerate launch the rows are
    shared out to all processes.
    """

    text: Positional[tuple[str, ...]] = ()
    """Texts to classify."""
    model: UseAppendAction[list[str]]
    """Run directory of a classifier, its model/, or an export. Given several times, probabilities are averaged."""
    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: the texts on the command line)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: what the classifier was trained on, else text)."""
    output: str | None = None
    """New file; .csv .tsv .jsonl .parquet have all probabilities and the input's columns (default: the terminal)."""
    int8: bool = False
    """Matrix products in 8 bits, on the CPU: faster, probabilities move by some 0.004."""


def predict(options: PredictOptions) -> None:
    """Classify texts, or a corpus in chunks that are shared out to the processes."""
    if bool(options.text) == bool(options.data):
        raise UserError("there must be either texts or --data; give one of them")
    from ulmfit.cli.predicting import backend_for, open_processes
    from ulmfit.cli.prediction_files import check_format
    from ulmfit.inference import TextClassifier

    output = Path(options.output) if options.output else None
    with open_processes(options.model) as runtime:
        if output is not None:
            check_format(output)
            runtime.on_main(lambda: check_output(output))
        backend = backend_for(options.model, int8=options.int8)
        model = TextClassifier.from_pretrained(options.model, device=runtime.device, int8=options.int8, backend=backend)
        rows, layout = _rows(options, model, is_main=runtime.is_main)
        lost = None
        with _writer(output, layout) if runtime.is_main else nullcontext(_nothing) as write:
            while chunk := _next_chunk(rows, runtime.world_size):
                readable = [text for text, row in chunk if not row.reason]
                mine = runtime.own_rows(len(readable))
                found = iter(runtime.gather_objects(list(model.probabilities(readable[mine.start : mine.stop]))))
                try:
                    write([row if row.reason else row._replace(probabilities=next(found)) for _, row in chunk])
                except OutputLost as error:  # the other processes must hear of it
                    lost = error
                if runtime.broadcast(lost is not None):
                    break
    if lost is not None:
        raise lost


def _rows(
    options: PredictOptions, model: TextClassifier, *, is_main: bool
) -> tuple[Iterator[tuple[str, PredictedRow]], Layout]:
    """The rows to predict, each with its text, and what is written of them."""
    from ulmfit.cli.prediction_files import Layout, PredictedRow
    from ulmfit.data.corpus import notes_of, open_rows
    from ulmfit.data.given_rows import given_rows

    if not options.data:
        texts, reasons = given_rows(options.text)
        given = [PredictedRow(number, None, reasons[number], None, [text]) for number, text in enumerate(texts)]
        return zip(texts, given, strict=True), Layout(model.label_names, {"text": "string"}, numbered=False)
    columns = model.config.get("text_columns", ())
    split = open_rows(options.data, options.text_column, trained_columns=columns, file_by_file=True,
                      access=options.access())  # fmt: skip
    if is_main:
        tell_notes(notes_of([split]))
    types: dict[str, str] = {}
    for part in split.parts:
        for name in part.columns:
            kind = part.types.get(name, "string")
            types[name] = kind if types.get(name, kind) == kind else "string"
    with_file = len(split.parts) > 1 or split.parts[0].documents
    layout = Layout(model.label_names, types, with_file=with_file)
    return _numbered(split, list(types), options.data), layout


def _numbered(split: Split, names: list[str], data: str) -> Iterator[tuple[str, PredictedRow]]:
    """The rows of all files, each with its text. Documents of a folder, each a file, have numbers in one count."""
    from ulmfit.cli.prediction_files import PredictedRow

    before = 0  # documents of earlier parts
    for batch in split.every_row(BATCH):
        part = batch.part
        if batch.first == 0:
            before = sum(len(other.files) for other in split.parts[: split.parts.index(part)] if other.documents)
        for place, (text, reason) in enumerate(zip(batch.texts, batch.reasons, strict=True)):
            number = batch.first + place
            file = _name(part.files[number if part.documents else 0], data) if part.files else part.what
            values = [batch.columns[name][place] if name in batch.columns else None for name in names]
            yield text, PredictedRow(number + before * part.documents, file, reason, None, values)


def _name(file: str, data: str) -> str:
    """A file as the user may name it: relative to the folder that was given."""
    return os.path.relpath(file, data) if os.path.isdir(data) else file


def _next_chunk(rows: Iterator[tuple[str, PredictedRow]], world_size: int) -> list[tuple[str, PredictedRow]]:
    """The next rows: a number that keeps all processes busy, of a size that fits into memory. It is the same on all
    processes."""
    chunk: list[tuple[str, PredictedRow]] = []
    characters = 0
    for text, row in rows:
        chunk.append((text, row))
        characters += len(text)
        if len(chunk) == CHUNK * world_size or characters >= CHUNK_CHARACTERS * world_size:
            break
    return chunk


@contextmanager
def _writer(output: Path | None, layout: Layout) -> Iterator[Write]:
    """A function that writes rows. A file appears under its name once it is whole."""
    from ulmfit.cli.prediction_files import lines, writing_rows

    if output is None:
        yield lines(sys.stdout, layout)
        sys.stdout.flush()
        return
    try:
        with becoming(output) as partial:
            with writing_rows(partial.path, output.suffix.lower(), layout) as write:
                yield write
    except BlockingIOError:
        raise UserError(f"another process is writing {output}; wait for it or name another file") from None
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}); name another file") from None
    if partial.placed != output:
        raise UserError(f"--output {output} has appeared meanwhile; the predictions are in {partial.placed}")


def _nothing(rows: Sequence[PredictedRow]) -> None:
    """Only rank 0 writes."""
