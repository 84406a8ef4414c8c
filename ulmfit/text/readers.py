"""Opens what `sources` has found, by `datasets` for everything that lies on a disk, as columns of Python values.

`datasets` is imported late: it takes seconds, and the embedded sample does not need it.
"""

from __future__ import annotations

import codecs
import csv
import errno
import functools
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ulmfit.errors import UserError
from ulmfit.text import sample

# Bytes that are no UTF-8 become this noncharacter, which no text legitimately holds, so that the readers of
# `datasets` go on and the rows can be counted.
UNDECODABLE = "\ufdd0"
codecs.register_error("ulmfit-mark", lambda error: (UNDECODABLE, error.end))

_SMALL = 256 * 2**20  # bytes up to which a corpus is fingerprinted by its content
_SLICE_BYTES = 32 * 2**20  # bytes of text turned into Python strings at a time
Columns = dict[str, list[Any]]



@dataclass
class Source:
    """Rows with named columns. `read` streams them in batches of Python values, at most `batch_size` rows each."""

    what: str  # how messages name it
    columns: list[str]
    fingerprint: str  # 16 hex digits: changes when the rows change
    files: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)  # names behind integer (ClassLabel) columns
    types: dict[str, str] = field(default_factory=dict)  # Arrow types where the format has them
    _batches: Callable[[list[str], int], Iterator[Columns]] = None  # type: ignore[assignment]

    def read(self, columns: list[str], batch_size: int = 1000) -> Iterator[Columns]:
        """Yields {column: values} of the wanted columns, in the order of the rows.

        A value is what the format holds (str, int, float, bool, None); text that is no UTF-8 contains `UNDECODABLE`.
        Raises UserError where the file cannot be read.
        """
        with faults_of(self.what):
            yield from self._batches(columns, batch_size)


def _fingerprint(kind: str, files: list[str]) -> str:
    """Of the content where that is quick to read, so that a copied corpus is the same; else of name, size and time."""
    digest = hashlib.sha256(kind.encode())
    stats = [os.stat(path) for path in files]
    small = sum(stat.st_size for stat in stats) <= _SMALL and len(files) <= 10_000
    for path, stat in zip(files, stats, strict=True):
        name = "/".join(Path(path).parts[-2:] if kind == "documents" else Path(path).parts[-1:])  # the folder: a class
        digest.update(f"\n{name} {stat.st_size} ".encode("utf-8", "replace"))
        if small:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def open_text(path: str) -> IO[str]:
    """Opens a plain or compressed UTF-8 file for reading; undecodable bytes become `UNDECODABLE`."""
    suffix = Path(path).suffix.lower()
    mode = {"mode": "rt", "encoding": "utf-8-sig", "errors": "ulmfit-mark", "newline": ""}
    if suffix == ".gz":
        import gzip as module
    elif suffix == ".xz":
        import lzma as module
    elif suffix == ".bz2":
        import bz2 as module
    elif suffix == ".zst":
        try:
            import zstandard as module
        except ImportError:
            raise UserError(f"{path}: .zst needs the package zstandard (pip install zstandard)") from None
    else:
        return open(path, **mode)
    return module.open(path, **mode)


@contextmanager
def faults_of(what: str) -> Iterator[None]:
    """Turns what the readers raise on a file at fault into a UserError; a full disk or no memory is none."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, OSError) and root.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE):
            raise
        reason = (str(root).strip() or type(root).__name__).splitlines()[0].rstrip(".")
        if "corresponds to no data" in reason:
            reason = "it holds no rows"
        raise UserError(f"{what} cannot be read: {reason}") from error


def open_files(files: list[str], kind: str, what: str, streaming: bool) -> Source:
    """Files of one kind (csv, tsv, jsonl, parquet or text) as one source, in the order given."""
    for path in files:
        if os.path.getsize(path) == 0:
            raise UserError(f"{path} is empty: it holds no rows")
    options: dict[str, Any] = {}
    columns: list[str] = []
    with faults_of(what):
        from datasets import Features, Value

        if kind in ("csv", "tsv"):
            separator = "\t" if kind == "tsv" else ","
            columns = _header(files[0], separator)
            # All columns are read as strings: nothing is guessed from the first rows ("007" stays, "NA" is a word).
            options = {"features": Features({name: Value("string") for name in columns}), "sep": separator,
                       "keep_default_na": False, "encoding": "utf-8", "encoding_errors": "ulmfit-mark"}
        elif kind in ("text", "jsonl"):
            options = {"features": Features({"text": Value("string")}), "encoding": "utf-8-sig",
                       "encoding_errors": "ulmfit-mark"}
        builder = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}.get(kind, "text")
        dataset = load(builder, data_files=[glob.escape(os.path.abspath(path)) for path in files], split="train",
                        streaming=streaming, **options)  # fmt: skip
        source = of_dataset(dataset, what, _fingerprint(kind, files), columns, files)
        if kind == "jsonl":
            return _as_json(source, files[0])
        return _without_blank_lines(source) if kind == "text" else source


def load(*args: Any, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()  # every rank reads; the program has its own bar
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # the error is told once, by us
    return datasets.load_dataset(*args, **options)


def _header(path: str, separator: str) -> list[str]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=separator)
        columns = next(reader, [])
        first = next((row for row in reader if row), [])
    if not columns or not first:
        raise UserError(f"{path} holds no rows" + (", only column names" if columns else ""))
    columns = [name or f"Unnamed: {place}" for place, name in enumerate(columns)]  # as pandas calls them
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} names a column twice in its first line: {', '.join(columns)}")
    if len(first) > len(columns):
        raise UserError(f"{path} has {len(first)} fields in its second line and {len(columns)} column names in its "
                        "first: name every column, and quote texts that contain the separator")
    return columns


def of_dataset(dataset: Any, what: str, fingerprint: str, columns: list[str], files: list[str]) -> Source:
    """A source over a Dataset or an IterableDataset."""
    from datasets import ClassLabel

    features = dataset.features or dataset._resolve_features().features or {}
    columns = columns or list(features)
    if not columns:
        raise UserError(f"{what} is empty: it holds no rows")

    def batches(wanted: list[str], batch_size: int) -> Iterator[Columns]:
        for table in dataset.select_columns(wanted).with_format("arrow").iter(batch_size):
            step = max(1, min(table.num_rows, table.num_rows * _SLICE_BYTES // max(1, table.nbytes)))
            for start in range(0, table.num_rows, step):
                part = table.slice(start, step)
                yield {name: _values(part.column(name)) for name in wanted}

    return Source(
        what, columns, fingerprint, files,
        {name: list(feature.names) for name, feature in features.items() if isinstance(feature, ClassLabel)},
        {name: str(getattr(feature, "dtype", "nested")) for name, feature in features.items()},
        batches,
    )  # fmt: skip


def _values(column: Any) -> list[Any]:
    """Python values of an Arrow column, also where its bytes are no UTF-8 (nothing checks them on writing)."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast("large_binary").to_pylist()
        return [None if value is None else value.decode("utf-8", "ulmfit-mark") for value in raw]


def _without_blank_lines(lines: Source) -> Source:
    inner = lines._batches

    def batches(wanted: list[str], batch_size: int) -> Iterator[Columns]:
        for batch in inner(wanted, batch_size):
            yield {"text": [line for line in batch["text"] if line.strip()]} if wanted else batch

    lines._batches = batches
    return lines


def _as_json(lines: Source, path: str) -> Source:
    """Lines of JSON, parsed here so that one broken line is one row at fault and no types are guessed."""

    def parse(line: str) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) else None

    def batches(wanted: list[str], batch_size: int) -> Iterator[Columns]:
        for batch in lines._batches(["text"], batch_size):
            rows = [parse(line) for line in batch["text"] if line.strip()]
            yield {name: [UNDECODABLE if row is None else row.get(name) for row in rows] for name in wanted}

    head = next(lines._batches(["text"], 100), {"text": []})["text"]
    rows = [parse(line) for line in head if line.strip()]
    columns = list(dict.fromkeys(name for row in rows if row for name in row))
    if not columns:
        raise UserError(f"{path} does not hold one JSON object a line")
    return Source(lines.what, columns, lines.fingerprint, lines.files, {}, {}, batches)


def read_documents(paths: list[str], labels: list[str] | None) -> Iterator[dict[str, str]]:
    """Rows of a folder of documents: {"text", "label"}, the latter only where the folders are classes."""
    for place, path in enumerate(paths):
        with open_text(path) as file:
            row = {"text": file.read()}
        yield row if labels is None else row | {"label": labels[place]}


def open_documents(paths: list[str], labels: list[str] | None, what: str, streaming: bool) -> Source:
    with faults_of(what):
        import datasets

        datasets.disable_progress_bars()
        names = ["text"] if labels is None else ["text", "label"]
        features = datasets.Features({name: datasets.Value("string") for name in names})
        fingerprint = _fingerprint("documents", paths)
        arguments = {"paths": [os.path.abspath(path) for path in paths], "labels": labels}
        if streaming:
            dataset = datasets.IterableDataset.from_generator(read_documents, features=features, gen_kwargs=arguments)
        else:
            dataset = datasets.Dataset.from_generator(read_documents, features=features, gen_kwargs=arguments,
                                                      fingerprint=fingerprint)  # fmt: skip
        return of_dataset(dataset, what, fingerprint, names, paths)


@functools.cache  # both passes over it and its fingerprint; two megabytes in all
def _sample_rows(split: str) -> list[sample.Review]:
    return list(sample.generate(split))


def open_sample(split: str) -> Source:
    """A split of the embedded sample."""
    rows = _sample_rows(split)

    def batches(wanted: list[str], batch_size: int) -> Iterator[Columns]:
        for start in range(0, len(rows), batch_size):
            yield {name: [row[name] for row in rows[start : start + batch_size]] for name in wanted}  # type: ignore

    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return Source(f"the embedded sample ({split})", ["text", "label"], digest, [], {"label": list(sample.LABELS)},
                  {"text": "string", "label": "int64"}, batches)  # fmt: skip
