"""Standard input as a source of rows, which can be read once."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from ulmfit.data.encoding import decode, known_encoding, text_encoding
from ulmfit.data.fingerprint import Access
from ulmfit.data.locations import STDIN
from ulmfit.data.readers import open_files
from ulmfit.data.source import Source

Format = Literal["csv", "tsv", "jsonl", "text"]


def stream_source(head: bytes, chosen: Format | None, columns: Sequence[str], access: Access) -> Source:
    """Open standard input, within `locations.standard_input`.

    Args:
        head: its first bytes.
        chosen: its format. Without it, it is found: jsonl, if the first line is a JSON object or begins an array; a table, if one of the
            `columns` is a field of the first line; else lines of texts.

    Raises:
        UserError: it is not of this format.
    """
    encoding = text_encoding(head, whole=False) if access.encoding is None else known_encoding(access.encoding)
    first = next((line for line in decode(head, encoding).splitlines() if line.strip()), "")
    kind = chosen or _kind(first, columns, access)
    source = open_files([STDIN], kind, STDIN, access)
    if chosen is None and (kind != "text" or _is_header(first)):
        told = kind if kind != "text" else "a text a line"
        source.notes.insert(0, f"{STDIN}: read as {told}; --format names another")
    return source


def _is_header(first: str) -> bool:
    """Whether the first line may be the names of the columns of a table, or the beginning of JSON."""
    return bool(re.fullmatch(r"\s*[\w. -]{1,30}([,;|\t][\w. -]{1,30})+\s*", first)) or first.lstrip().startswith(
        ("[", "{")
    )


def _kind(first: str, columns: Sequence[str], access: Access) -> Format:
    if first.strip() == "[" or first.lstrip().startswith("[{"):
        return "jsonl"
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(first), dict):
            return "jsonl"
    if access.separator is not None:
        return "csv"
    for kind, separators in (("tsv", "\t"), ("csv", ",;|")):
        for separator in separators:
            fields = [field.strip() for field in next(csv.reader([first], delimiter=separator), [])]
            if set(fields) & set(columns) and (len(fields) > 1 or kind == "csv"):
                return kind  # type: ignore[return-value]
    return "text"
