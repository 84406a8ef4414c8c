"""predict: labels and probabilities of texts or of a corpus, a line for each row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, UseAppendAction

from ulmfit.cli.common import tell_notes
from ulmfit.cli.reading import ReadingOptions
from ulmfit.cli.streams import OutputLost
from ulmfit.errors import StoppedEarly, UserError

if TYPE_CHECKING:
    from ulmfit.cli.predicting import OneProcess
    from ulmfit.cli.prediction_files import PredictedRow
    from ulmfit.cli.prediction_output import Output
    from ulmfit.cli.prediction_rows import Rows
    from ulmfit.distributed.runtime import Runtime
    from ulmfit.distributed.stop import StopRequest
    from ulmfit.inference import TextClassifier

CHUNK = 2048  # rows that one process predicts at a time, at most
CHUNK_CHARACTERS = 2**21  # of their texts; a single text may be longer


@dataclass(kw_only=True)
class PredictOptions(ReadingOptions):
    """Classify texts or a corpus: a line for each row with label and probability.

    A row of --data without a readable text has no label, and a reason. A line begins with the number of the row in its
    file, from 0 without the header; with several files, the file's name follows. Under accelerate launch the rows are
    shared out to all processes. After a kill or a signal the same command goes on with OUTPUT.partial.
    """

    text: Positional[tuple[str, ...]] = ()
    """Texts to classify."""
    model: UseAppendAction[list[str]]
    """Run directory of a classifier, its model/, an export, or OWNER/MODEL on the hub. Given several times, probabilities
    are averaged."""
    data: str | None = None
    """Corpus: file, glob, folder, URL, hub data set name, or - for standard input (default: the texts on the command
    line)."""
    format: Literal["csv", "tsv", "jsonl", "text"] | None = None
    """How standard input is written (default: as its first line looks; text: a row a line)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: what the classifier was trained on, else text)."""
    output: str | None = None
    """New file; .csv .tsv .jsonl .parquet have all probabilities and the input's columns (default: -, the terminal)."""
    output_format: Literal["csv", "tsv", "jsonl", "parquet", "text"] | None = None
    """How the output is written (default: as the name of the file says, else text: number, label, probability)."""
    int8: bool = False
    """Matrix products in 8 bits, on the CPU: faster, probabilities move by some 0.004."""


def predict(options: PredictOptions, stop: StopRequest) -> None:
    """Classify texts, or a corpus in chunks that are shared out to the processes."""
    if bool(options.text) == bool(options.data):
        raise UserError("there must be either texts or --data; give one of them")
    from ulmfit.cli.prediction_output import Output

    output = Output.of(options.output, options.output_format)
    if output.path is None:
        stop.release()  # nothing would be left of it
    try:
        told = _predict(options, output, stop)
    finally:
        stop.restore()
    if told:
        print(told, file=sys.stderr, flush=True)
        if stop.reason == "SIGINT":
            raise KeyboardInterrupt


def _predict(options: PredictOptions, output: Output, stop: StopRequest) -> str | None:
    """Returns what to tell of a stop, on rank 0."""
    from ulmfit.cli.predicting import backend_for, identity_of, open_processes
    from ulmfit.cli.speed import Speed
    from ulmfit.hub import local_folder
    from ulmfit.inference import TextClassifier

    options = replace(options, model=[local_folder(model) for model in options.model])
    with open_processes(options.model) as runtime, ExitStack() as stack:
        runtime.on_main(output.check)
        backend = backend_for(options.model, int8=options.int8)
        model = TextClassifier.from_pretrained(options.model, device=runtime.device, int8=options.int8, backend=backend)
        rows = _rows(options, model, runtime, stack)

        def open_output() -> None:
            # Names for messages: "was begun with another ..."
            made_of = lambda: {"model": identity_of(options.model), "input": rows.identity, "--int8": options.int8}  # noqa: E731
            stack.enter_context(output.opened(rows.layout, made_of))

        runtime.on_main(open_output)
        done, place = runtime.broadcast((output.rows, output.place))
        speed = None
        if runtime.is_main:
            speed = Speed(rows.total(), done, bar=output.path is not None or not sys.stdout.isatty())
            stack.callback(speed.close)
        reading = rows.read(place)
        while True:
            chunk: list[tuple[str, PredictedRow]] = []
            found: list[Any]
            try:
                with stop.interruptible():
                    chunk = _next_chunk(reading, runtime.world_size)
                    readable = [text for text, row in chunk if not row.reason]
                    mine = runtime.own_rows(len(readable))
                    found = list(model.probabilities(readable[mine.start : mine.stop]))
            except StoppedEarly:
                found = [None]
            found = runtime.gather_objects(found)
            if any(row is None for row in found):  # a process was asked to stop
                return output.at_stop(stop) if runtime.is_main else None
            if not chunk:
                output.publish()
                return None
            lost = None
            if runtime.is_main:
                each = iter(found)
                predicted = [row if row.reason else row._replace(probabilities=next(each)) for _, row in chunk]
                try:
                    output.write(predicted, rows.place)
                except OutputLost as error:  # the other processes must hear of it
                    lost = error
            if speed is not None:
                speed.now(output.rows)
            if runtime.broadcast(lost is not None):
                break
    if lost is not None:
        raise lost
    return None


def _rows(options: PredictOptions, model: TextClassifier, runtime: Runtime | OneProcess, stack: ExitStack) -> Rows:
    """The rows to predict. Standard input is open within `stack`."""
    from ulmfit.cli.prediction_rows import FileRows, GivenRows, StreamRows
    from ulmfit.data.corpus import notes_of, open_rows
    from ulmfit.data.locations import STDIN, standard_input
    from ulmfit.data.standard_input import stream_source

    if not options.data:
        return GivenRows(options.text, model)
    columns = model.config.get("text_columns", ())
    access = replace(options.access(), by_content=False)
    data: Any = options.data
    if data == "-":
        if runtime.world_size > 1:
            raise UserError("standard input can be read by one process only; give a file by --data")
        stream = stack.enter_context(standard_input())
        wanted = options.text_column.split(",") if options.text_column else [*columns, "text"]
        data = stream_source(stream.head, options.format, wanted, access)
    elif options.format is not None:
        raise UserError(
            "--format is for standard input; files are read as their names say, so rename it or leave it out"
        )
    split = open_rows(data, options.text_column, trained_columns=columns, file_by_file=True, access=access)
    if runtime.is_main:
        tell_notes(notes_of([split]))
    if options.data != "-":
        return FileRows(split, options.data, model)
    stream.begin()
    return StreamRows(FileRows(split, STDIN, model), options.output)


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
