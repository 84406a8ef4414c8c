"""Opens the files that `sources` has found, and reads them from any position, as columns of Python values.

`datasets` reads hub data sets, .csv, .tsv, and without streaming all files (by its Arrow cache). With streaming, other
local files are read by `shards`, where a seek is cheap; `datasets` would read the shard again from its beginning.
`datasets` is imported late, because this takes seconds and the embedded sample does not need it.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ulmfit import private_api
from ulmfit.data import sample
from ulmfit.data.fingerprint import SCHEME, Access, fingerprint
from ulmfit.data.magic import is_no_document
from ulmfit.data.retry import faults_of, retried
from ulmfit.data.shards import (
    SLICE_BYTES,
    UNDECODABLE,
    Columns,
    open_bytes,
    open_text,
    read_lines,
    read_parquet,
    slices,
    values,
)
from ulmfit.errors import UserError
from ulmfit.excerpts import listed

_STREAM_ROWS = 1000  # batch size for streams of `datasets`; constant, because their state counts batches
Batches = Iterator[tuple[Columns, Any]]


@dataclass
class Source:
    """Rows with named columns. `read` yields them in batches of Python values, of at most `batch_size` rows."""

    what: str  # its name in messages
    columns: list[str]
    fingerprint: str  # 16 hex digits, depend on the rows
    files: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)  # class names of integer (ClassLabel) columns
    types: dict[str, str] = field(default_factory=dict)  # Arrow types, if the format has them
    num_rows: int | None = None  # if known without reading them
    revision: str | None = None  # of a data set of the hub: the commit that is read
    blank_lines: bool = False  # rows are lines of text, blank ones too, which training leaves out
    documents: bool = False  # each row is a file, in the order of `files`
    notes: list[str] = field(default_factory=list)  # sentences for the user, as about what was left out
    _batches: Callable[[list[str], int, Any], Batches] = None  # type: ignore[assignment]  # set before it is read

    def read(self, columns: list[str], batch_size: int = 1000) -> Iterator[Columns]:
        """Yield {column: values} of the given columns, in the order of the rows.

        Values have the types of the format (str, int, float, bool, None). Text that is not UTF-8 contains
        `UNDECODABLE`. After a transient failure the read is tried again (see `retry.retried`).

        Raises:
            UserError: a file is damaged.
            OSError: the last try failed.
        """
        return (batch for batch, _ in self.read_from(None, columns, batch_size))

    def read_from(self, place: Any, columns: list[str], batch_size: int = 1000) -> Batches:
        """As `read`, but from a place (position) in the source on; None is the start. Yields each batch with the place
        after it.

        A place is JSON-able and takes some hundred bytes. A seek opens no file before that of the place. For the cost
        within the file see `shards`; .csv, .tsv and shards of the hub are parsed up to the place.
        """
        return self._batches(columns, batch_size, place)


def open_files(files: list[str], kind: str, what: str, access: Access) -> Source:
    """Open files of one kind (csv, tsv, jsonl, parquet or text) as one source, in the given order."""
    for path in files:
        if os.path.getsize(path) == 0:
            raise UserError(f"{path} is empty; give a file with rows")
    with faults_of(what):
        if access.streaming and kind == "parquet":
            return _parquet(files, what, access)
        if kind in ("text", "jsonl"):
            if access.streaming:
                source = Source(what, ["text"], fingerprint(kind, files, None, access), files)
                source._batches = _line_reader(files, access)
            else:
                source = _load_files(files, kind, what, access)
            source.types = {"text": "string"}
            source.blank_lines = kind == "text"
            return _as_json(source) if kind == "jsonl" else source
        return _load_files(files, kind, what, access)


def _arrow_cache(content: str) -> str:
    """The folder in which `datasets` stores the rows of files with this content.

    `datasets` itself identifies files by path, size and modification time. If a file was rewritten within the
    resolution of the clock, or its time was set back, `datasets` would read the old rows.
    """
    import datasets

    return os.path.join(datasets.config.HF_DATASETS_CACHE, "ulmfit-files", content)


def _content(kind: str, files: list[str], labels: list[str] | None, access: Access) -> tuple[str, str]:
    """(fingerprint of a source, fingerprint that identifies its copy in the Arrow cache)."""
    found = fingerprint(kind, files, labels, access)
    if access.scheme == SCHEME or access.streaming:
        return found, found
    return found, fingerprint(kind, files, labels, dataclasses.replace(access, scheme=SCHEME))


def _load_files(files: list[str], kind: str, what: str, access: Access) -> Source:
    from datasets import Features, Value

    options: dict[str, Any] = {}
    columns: list[str] = []
    if kind in ("csv", "tsv"):
        separator = "\t" if kind == "tsv" else ","
        columns = _header(files[0], separator)
        # All columns are read as strings, so that no types are guessed ("007" is kept, "NA" is a word).
        options = {
            "features": Features({name: Value("string") for name in columns}),
            "sep": separator,
            "keep_default_na": False,
            "encoding": "utf-8",
            "encoding_errors": "ulmfit-mark",
        }
    elif kind in ("text", "jsonl"):
        options = {
            "features": Features({"text": Value("string")}),
            "encoding": "utf-8-sig",
            "encoding_errors": "ulmfit-mark",
        }
    builder = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}.get(kind, "text")
    found, content = _content(kind, files, None, access)
    if not access.streaming:
        options["cache_dir"] = _arrow_cache(content)
    dataset = load(builder, data_files=[glob.escape(os.path.abspath(path)) for path in files], split="train",
                   streaming=access.streaming, **options)  # fmt: skip
    return of_dataset(dataset, what, found, columns, files, access)


def _parquet(files: list[str], what: str, access: Access) -> Source:
    import pyarrow.parquet
    from datasets import Features

    features = Features.from_arrow_schema(pyarrow.parquet.read_schema(files[0]))

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        return _over_files(
            files, place, lambda path, inside: read_parquet(path, wanted, batch_size, inside, access.beat)
        )

    source = Source(what, list(features), fingerprint("parquet", files, None, access), files, *_types(features))
    source._batches = batches
    return source


def _line_reader(files: list[str], access: Access) -> Callable[[list[str], int, Any], Batches]:
    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        parts = _over_files(files, place, lambda path, inside: read_lines(path, batch_size, inside, access.beat))
        for lines, after in parts:
            yield {"text": lines}, after

    return batches


def _over_files(files: list[str], place: Any, read: Callable[[str, Any], Iterator[tuple[Any, Any]]]) -> (
        Iterator[tuple[Any, Any]]):  # fmt: skip
    """Read the files one after another, from [file number, place within it] on. Earlier files are not opened."""
    first, inside = place or (0, None)
    for number in range(first, len(files)):
        path = files[number]
        for batch, after in retried(functools.partial(read, path), inside, functools.partial(str, path)):
            yield batch, [number, after]
        inside = None


def load(*args: Any, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()  # every rank would show one, and the program has its own
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # errors are reported once, by this package
    return datasets.load_dataset(*args, **options)


def _header(path: str, separator: str) -> list[str]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=separator)
        columns = next(reader, [])
        first = next((row for row in reader if row), [])
    if not columns or not first:
        raise UserError(f"{path} holds no rows{', only column names' if columns else ''}; give a file with rows")
    columns = [name or f"Unnamed: {place}" for place, name in enumerate(columns)]  # the names that pandas gives
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} names a column twice ({listed(columns)}); rename one in its first line")
    if len(first) > len(columns):
        raise UserError(
            f"{path} has {len(first)} fields in its second line and {len(columns)} column names in its "
            "first; name every column, and quote texts that contain the separator"
        )
    return columns


def of_dataset(
    dataset: Any, what: str, fingerprint: str, columns: list[str], files: list[str], access: Access
) -> Source:
    """A source of a Dataset (a place is a row number) or an IterableDataset (a place is its state and a row count)."""
    features = private_api.features_of(dataset)
    columns = columns or list(features)
    if not columns:
        raise UserError(f"{what} is empty; give a file with rows")
    streamed = not hasattr(dataset, "num_rows")

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        if not streamed:
            view = dataset.select_columns(wanted).with_format("arrow")
            return retried(lambda place: _rows(view, wanted, batch_size, place), place, lambda: what)
        # A copy, because views share the object that counts shards, and parallel passes would mix their counts. The
        # file systems are not copied: a copy in another thread would change their cache.
        shared = {id(private_api.file_systems()): private_api.file_systems()}
        own = copy.deepcopy(dataset, shared)
        private_api.watch_tables(own, access.beat)
        view = own.select_columns(wanted).with_format("arrow")
        name = functools.partial(_shard, view, what, files)
        return retried(lambda place: _stream(view, wanted, batch_size, place), place, name)

    num_rows = None if streamed else dataset.num_rows
    return Source(what, columns, fingerprint, files, *_types(features), num_rows, _batches=batches)


def _types(features: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    from datasets import ClassLabel

    return (
        {name: list(feature.names) for name, feature in features.items() if isinstance(feature, ClassLabel)},
        {name: str(getattr(feature, "dtype", "nested")) for name, feature in features.items()},
    )


def _rows(view: Any, wanted: list[str], batch_size: int, place: int | None) -> Batches:
    row = place or 0
    for start in range(row, view.num_rows, batch_size):
        for part in slices(view[start : start + batch_size], batch_size):
            row += part.num_rows
            yield {name: values(part.column(name)) for name in wanted}, row


def _stream(view: Any, wanted: list[str], batch_size: int, place: Any) -> Batches:
    state, skip = place or (None, 0)
    # Also if the state is empty, because the view still has the state of the previous try.
    view.load_state_dict(state)
    for table in view.iter(_STREAM_ROWS):
        row, after = skip, view.state_dict()
        for part in slices(table.slice(skip), batch_size):
            row += part.num_rows
            yield (
                {name: values(part.column(name)) for name in wanted},
                ([state, row] if row < table.num_rows else [after, 0]),
            )
        state, skip = after, 0


def _shard(view: Any, what: str, files: list[str]) -> str:
    """The one of `files` that a view of a stream is reading; `what` if not known."""
    # Not the state of the view itself, which is behind after a resume.
    number = private_api.stream_state(view).get("shard_idx", len(files))
    return files[number] if number < len(files) else what


def _as_json(lines: Source) -> Source:
    """Parse lines of JSON. It is done here, so that a broken line is one bad row and no types are guessed."""

    def parse(line: str) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) else None

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        for batch, after in lines._batches(["text"], batch_size, place):
            rows = [parse(line) for line in batch["text"] if line.strip()]
            yield {name: [UNDECODABLE if row is None else row.get(name) for row in rows] for name in wanted}, after

    head = next(lines.read(["text"], 100), {"text": []})["text"]
    rows = [parse(line) for line in head if line.strip()]
    columns = list(dict.fromkeys(name for row in rows if row for name in row))
    if not columns:
        raise UserError(f"{lines.files[0]} does not hold one JSON object a line; write it as JSON lines")
    return Source(lines.what, columns, lines.fingerprint, lines.files, num_rows=lines.num_rows, _batches=batches)


def open_documents(paths: list[str], labels: list[str] | None, what: str, access: Access) -> Source:
    """Open a folder with one document per file: columns text and, if the folders are classes, label."""
    names = ["text"] if labels is None else ["text", "label"]
    with faults_of(what):
        found, content = _content("documents", paths, labels, access)

    def batches(wanted: list[str], batch_size: int, place: int | None) -> Batches:
        columns: Columns = {name: [] for name in names}
        length = 0
        for number in range(place or 0, len(paths)):
            path = paths[number]
            for text, _ in retried(functools.partial(_reread, path), None, functools.partial(str, path)):
                columns["text"].append(text)
                length += len(text)
            if labels is not None:
                columns["label"].append(labels[number])
            if len(columns["text"]) == batch_size or length > SLICE_BYTES:
                yield {name: columns[name] for name in wanted}, number + 1
                columns, length = {name: [] for name in names}, 0
        if columns["text"]:
            yield {name: columns[name] for name in wanted}, len(paths)

    if access.streaming:
        types = dict.fromkeys(names, "string")
        return Source(what, names, found, paths, types=types, num_rows=len(paths), documents=True, _batches=batches)
    with faults_of(what):
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({name: datasets.Value("string") for name in names})
        dataset = datasets.Dataset.from_generator(
            _document_rows,
            features=features,
            fingerprint=content,
            gen_kwargs={"paths": [os.path.abspath(path) for path in paths], "labels": labels},
        )
        source = of_dataset(dataset, what, found, names, paths, access)
        source.documents = True
        return source


def _document(path: str) -> Iterator[tuple[str, None]]:
    """Read a document. One that is no text, whatever its name, is one undecodable row."""
    with open_bytes(path) as file:
        content = file.read()
    yield UNDECODABLE if is_no_document(path, content) else content.decode("utf-8-sig", "ulmfit-mark"), None


def _reread(path: str, place: None) -> Iterator[tuple[str, None]]:
    """Read a document. The only place in it is its start."""
    return _document(path)


def _document_rows(paths: list[str], labels: list[str] | None) -> Iterator[dict[str, str]]:
    for place, path in enumerate(paths):
        row = {"text": next(_document(path))[0]}
        yield row if labels is None else row | {"label": labels[place]}


@functools.cache  # used by both passes and the fingerprint; two megabytes in all
def _sample_rows(split: str) -> list[sample.Review]:
    return list(sample.generate(split))


def open_sample(split: str) -> Source:
    """A split of the embedded sample."""
    rows = _sample_rows(split)

    def batches(wanted: list[str], batch_size: int, place: int | None) -> Batches:
        for start in range(place or 0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield {name: [row[name] for row in part] for name in wanted}, start + len(part)  # type: ignore

    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return Source(f"the embedded sample ({split})", ["text", "label"], digest, [], {"label": list(sample.LABELS)},
                  {"text": "string", "label": "int64"}, len(rows), _batches=batches)  # fmt: skip
