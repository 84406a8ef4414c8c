"""Opens the files that `sources` has found, and reads them from any position, as columns of Python values.

They are read the same way with and without streaming, see `shards`, `tables` and `json_files`. Data sets of the hub are
read by `datasets`, see `hub_sets`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from ulmfit.data import json_files, sample
from ulmfit.data.dialect import Dialect, name_of, separator_of
from ulmfit.data.encoding import UNDECODABLE, UTF8, decode, find_encoding, known_encoding, open_raw, text_encoding
from ulmfit.data.fingerprint import SCHEME, Access, fingerprint
from ulmfit.data.locations import size_of
from ulmfit.data.magic import is_no_document
from ulmfit.data.retry import faults_of, retried
from ulmfit.data.shards import SLICE_BYTES, Columns, parquet_rows, parquet_schema, read_lines, read_parquet
from ulmfit.data.source import Batches, Source, over_files
from ulmfit.data.tables import Form, ReadOtherwise, examine, read_table
from ulmfit.errors import UserError

_FIRST_ROWS = 10_000  # rows of JSON in which the columns are looked for
_FEW_FILES = 100  # whose footers are read to count the rows
_HEAD = 1000  # lines that tell how a text file is read
_LABEL = re.compile(r"__label__(\S+)[ \t]+")  # before a line of fastText


def open_files(files: list[str], kind: str, what: str, access: Access) -> Source:
    """Open files of one kind (csv, tsv, jsonl, parquet or text) as one source, in the given order.

    Raises:
        UserError: a file is empty, holds no text, or is not of this kind.
        ReadOtherwise: the scheme of `access` is of an earlier version, which read this file in another way.
    """
    for path in files:
        if size_of(path) == 0:
            raise UserError(f"{path} is empty; give a file with rows")
    if access.encoding is not None:
        known_encoding(access.encoding)
    if access.separator is not None:
        separator_of(access.separator)
    with faults_of(what):
        if kind == "parquet":
            return _parquet(files, what, access)
        if kind in ("csv", "tsv") or kind == "text" and access.separator is not None:
            return _table(files, "tsv" if kind == "tsv" else "csv", what, access)
        return _json(files, what, access) if kind == "jsonl" else _text(files, what, access)


def _parquet(files: list[str], what: str, access: Access) -> Source:
    types, classes = parquet_schema(files[0])
    for path in files[1:_FEW_FILES]:
        for name, names in parquet_schema(path)[1].items():
            if names != classes.get(name, names):
                raise UserError(
                    f"the classes of column {name} have other names or another order in {path} than in {files[0]}; write both "
                    "with the same features"
                )

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        return over_files(
            files, place, lambda path, inside: read_parquet(path, wanted, batch_size, inside, access.beat)
        )

    num_rows = sum(map(parquet_rows, files)) if len(files) <= _FEW_FILES else None
    return Source(what, list(types), fingerprint("parquet", files, None, access), files, classes, types, num_rows,
                  kind="parquet", _batches=batches)  # fmt: skip


def _table(files: list[str], kind: str, what: str, access: Access) -> Source:
    forms: dict[str, Form] = {}
    separator = None if access.separator is None else separator_of(access.separator)
    encoding = None if access.encoding is None else known_encoding(access.encoding)

    def form_of(path: str, known: Dialect | None) -> Form:
        if path not in forms:
            forms.clear()  # there may be thousands of files
            forms[path] = examine(path, kind, separator, access.header, encoding, known)
        return forms[path]

    first = form_of(files[0], None)
    dialect = first.dialect
    default = Dialect("\t" if kind == "tsv" else ",")
    plain = access.scheme < SCHEME
    if plain and not (first.encoding == UTF8 and (dialect == default or len(first.names) == 1 and dialect.quoted)):
        raise ReadOtherwise(f"{files[0]} is read in another way by this version")
    if plain and access.streaming:
        raise ReadOtherwise(f"{files[0]} is streamed in another way by this version")

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        def read(path: str, inside: int | None) -> Batches:
            return read_table(path, form_of(path, dialect), wanted, batch_size, inside, access.beat, plain)

        return over_files(files, place, read)

    form = (dialect, encoding)
    hint = "if its first line is a row, add --no-header" if dialect.header else ""
    source = Source(what, first.names, fingerprint(kind, files, None, access, form), files, kind=kind,
                    notes=_notes(files[0], first, default, access), hint=hint, header=dialect.header,
                    blank_lines=len(first.names) == 1, _batches=batches)  # fmt: skip
    if not dialect.header:
        classes = [name for name, column in zip(first.names, first.columns, strict=True) if column.values is not None]
        texts = [name for name, column in zip(first.names, first.columns, strict=True) if column.is_text]
        source.default_label, source.default_texts = (classes[0] if len(classes) == 1 else None), texts
    return source


def _notes(path: str, form: Form, default: Dialect, access: Access) -> list[str]:
    """How a table is read, in a sentence, if it is not as its name promises."""
    dialect, found = form.dialect, []
    if dialect.separator != default.separator and len(form.names) > 1:
        found.append(f"separated by {name_of(dialect.separator)}")
    if not dialect.quoted:
        found.append("quotation marks are part of the texts")
    if dialect.escaped:
        found.append('\\" is a quotation mark in a text')
    if dialect.row_names:
        found.append("the names lack that of the first column")
    if not dialect.header:
        found.append(f"no line of names, so the columns are {', '.join(form.names[:20])}")
    if dialect.header and access.header is None and len(form.names) == 1 and _is_long(form.names[0]):
        found.append("the first line is taken for the name of the column (--no-header reads it as a text)")
    return [f"{path}: {', '.join(found)}"] * bool(found) + _encoding_notes(path, form.encoding, access)


def _is_long(name: str) -> bool:
    """Whether the name of a column may be a text: questions are names too."""
    return len(name) >= 20 and " " in name.strip()


def _encoding_notes(path: str, encoding: str, access: Access) -> list[str]:
    told = encoding != UTF8 and access.encoding is None
    return [f"{path}: read as {encoding}; --encoding names another"] if told else []


def _lines(files: list[str], access: Access) -> Callable[[int, Any], Iterator[tuple[list[str], Any]]]:
    """(batch size, place) -> the lines of the files, with places."""
    encoding_of = _encodings(access)

    def read(path: str, batch_size: int, inside: Any) -> Iterator[tuple[list[str], Any]]:
        return read_lines(path, batch_size, inside, access.beat, encoding_of(path))

    encoding = encoding_of(files[0])
    if access.scheme < SCHEME and encoding != UTF8:
        raise ReadOtherwise(f"{files[0]} is read in another way by this version")
    return lambda batch_size, place: over_files(files, place, lambda path, inside: read(path, batch_size, inside))


def _encodings(access: Access) -> Callable[[str], str]:
    """A function that finds the encoding of a file, once."""
    given = None if access.encoding is None else known_encoding(access.encoding)
    return functools.cache(lambda path: find_encoding(path, given))


def _text(files: list[str], what: str, access: Access) -> Source:
    """Text files with a document a line, and those of fastText, where the label precedes the text."""
    read = _lines(files, access)
    head, _ = next(read(_HEAD, None), ([], None))
    notes = _encoding_notes(files[0], _encodings(access)(files[0]), access)
    labelled = any(line.startswith("__label__") for line in head) and access.scheme == SCHEME
    several = labelled and any(len(_fasttext(line)[1]) > 1 for line in head)
    if labelled:
        notes.append(f"{files[0]}: lines of fastText; __label__... {'are the labels' if several else 'is the label'}")
    hint = ""
    if not labelled and access.scheme == SCHEME:
        hint = _table_in(head)
        notes += [f"{files[0]}: each line is read as one text; {hint}"] * bool(hint)

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        for lines, after in read(batch_size, place):
            if not labelled:
                yield {name: lines for name in wanted}, after
                continue
            pairs = [_fasttext(line) for line in lines]
            columns: Columns = {"text": [text for text, _ in pairs]}
            columns["label"] = [(labels or None) if several else _single(labels, what) for _, labels in pairs]
            yield {name: columns[name] for name in wanted}, after

    names = ["text", "label"] if labelled else ["text"]
    found = fingerprint("text", files, None, access, (labelled, access.encoding and known_encoding(access.encoding)))
    return Source(what, names, found, files, kind="text", notes=notes, hint=hint,
                  types={"text": "string", "label": "list" if several else "string"}, blank_lines=True,
                  _batches=batches)  # fmt: skip


def _fasttext(line: str) -> tuple[str, list[str]]:
    """(text, labels) of a line."""
    labels = []
    while match := _LABEL.match(line) or re.fullmatch(r"__label__(\S+)", line):
        labels.append(match[1])
        line = line[match.end() :]
    return line, labels


def _single(labels: list[str], what: str) -> str | None:
    """The label of a line, where the first lines have one each."""
    if len(labels) > 1:
        raise UserError(f"{what} has a line with {len(labels)} labels, and its first {_HEAD:,} lines have one each; move "
                        "such a line to its beginning to read several labels a line")  # fmt: skip
    return labels[0] if labels else None


def _table_in(head: list[str]) -> str:
    """What a text file may be whose lines are JSON objects or all have the same number of tabs; else ""."""
    filled = [line for line in head if line.strip()]
    if filled and all(json_files.parse(line) is not None for line in filled):
        return "its lines are JSON objects: name it .jsonl to read their keys"
    tabs = {line.count("\t") for line in head if line.strip()}
    if len(tabs) == 1 and tabs != {0} and len(head) >= 5:
        return f"its lines have {tabs.pop() + 1} fields separated by tabs: if it is a table, add --separator tab"
    return ""


def _json(files: list[str], what: str, access: Access) -> Source:
    """Rows of JSON. They are parsed here, so that a broken line is one bad row and no types are guessed."""
    encoding_of = _encodings(access)
    holds_lines = functools.cache(lambda path: json_files.is_lines(path, encoding_of(path)))
    kind = "jsonl" if all(map(holds_lines, files[:_FEW_FILES])) else "json"  # "json" too where there are both
    if access.scheme < SCHEME and (kind == "json" or encoding_of(files[0]) != UTF8):
        raise ReadOtherwise(f"{files[0]} is read in another way by this version")

    def read(path: str, batch_size: int, inside: Any) -> Iterator[tuple[list[json_files.Row | None], Any]]:
        if not holds_lines(path):
            yield from json_files.read_array(path, encoding_of(path), batch_size, inside, access.beat)
            return
        for lines, after in read_lines(path, batch_size, inside, access.beat, encoding_of(path)):
            yield [json_files.parse(line) for line in lines if line.strip()], after

    def rows_of(batch_size: int, place: Any) -> Iterator[tuple[list[json_files.Row | None], Any]]:
        return over_files(files, place, lambda path, inside: read(path, batch_size, inside))

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        for rows, after in rows_of(batch_size, place):
            yield {name: [json_files.cell(row, name) for row in rows] for name in wanted}, after

    def has(column: str) -> bool:
        return any(
            row is not None and column in json_files.names([row]) for rows, _ in rows_of(1000, None) for row in rows
        )

    head: list[json_files.Row | None] = []
    for rows, _ in rows_of(1000, None):
        head += rows
        if len(head) >= _FIRST_ROWS:
            break
    types = json_files.names(head)
    if not types:
        raise UserError(f"{files[0]} does not hold one JSON object a line; write it as JSON lines")
    return Source(what, list(types), fingerprint(kind, files, None, access, access.encoding and known_encoding(access.encoding)), files, types=types, kind=kind,
                  notes=_encoding_notes(files[0], encoding_of(files[0]), access), _has=has, _batches=batches)  # fmt: skip


def open_documents(paths: list[str], labels: list[str] | None, what: str, access: Access) -> Source:
    """Open a folder with one document per file: columns text and, if the folders are classes, label."""
    names = ["text"] if labels is None else ["text", "label"]
    given = None if access.encoding is None else known_encoding(access.encoding)
    with faults_of(what):
        found = fingerprint("documents", paths, labels, access, given)
    plain = access.scheme < SCHEME

    def document(path: str) -> str:
        with open_raw(path) as file:
            content = file.read()
        encoding = given or text_encoding(content, whole=True)
        if is_no_document(path, content, encoding):
            return UNDECODABLE  # a row at fault, whatever the name of the file
        if plain and encoding != UTF8:
            raise ReadOtherwise(f"{path} is read in another way by this version")
        return decode(content, encoding)

    def batches(wanted: list[str], batch_size: int, place: int | None) -> Batches:
        columns: Columns = {name: [] for name in names}
        length = 0
        for number in range(place or 0, len(paths)):
            path = paths[number]
            reread = functools.partial(_once, document, path)  # the only place in a document is its start
            for text, _ in retried(reread, None, functools.partial(str, path)):
                columns["text"].append(text)
                length += len(text)
            if labels is not None:
                columns["label"].append(labels[number])
            if len(columns["text"]) == batch_size or length > SLICE_BYTES:
                yield {name: columns[name] for name in wanted}, number + 1
                columns, length = {name: [] for name in names}, 0
        if columns["text"]:
            yield {name: columns[name] for name in wanted}, len(paths)

    types = dict.fromkeys(names, "string")
    return Source(
        what, names, found, paths, types=types, num_rows=len(paths), kind="documents", documents=True, _batches=batches
    )


def _once(read: Callable[[str], str], path: str, place: None) -> Iterator[tuple[str, None]]:
    yield read(path), None


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
