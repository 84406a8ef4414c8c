"""Sources for corpora in the memory of Python code.

Besides a path or a name, `data=` of a configuration may be:

* a pandas or polars data frame, a `datasets.Dataset`, or a dict of columns: {"text": [...], "label": [...]};
* a list (tuple, array, Series) of texts, or a pair (texts, labels);
* a dict of splits of any of these, {"train": ..., "valid": ..., "test": ...}, or a `datasets.DatasetDict`.

Such data are identified by their content: the same rows in another container are the same corpus. config.json of a
run contains only a description, so a later start needs the data again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ulmfit.data.fingerprint import Access
from ulmfit.data.hub_sets import of_dataset
from ulmfit.data.source import Batches, Source
from ulmfit.errors import UserError
from ulmfit.excerpts import listed
from ulmfit.paths import DESCRIBED

HASHED_ROWS = 10_000  # rows hashed at a time
SPLIT_NAMES = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "unsup": "unsup", "unsupervised": "unsup", "unlabelled": "unsup", "unlabeled": "unsup",
}  # fmt: skip
# Prefixes of the types of Arrow whose values can be texts or labels; others may be images.
_HASHED = ("list", "large_list", "fixed_size_list", "string", "large_string", "bool", "int", "uint", "float", "half", "double", "date", "time", "duration",
           "decimal", "dictionary")  # fmt: skip
_TAKES = "give a path, a data frame, a datasets.Dataset, a dict of columns, a list of texts or (texts, labels)"
_Column = Callable[[int, int], Sequence[Any]]  # (start, stop) -> values of these rows


class InMemory:
    """A corpus in memory.

    Attributes:
        sources: by split.

    Raises:
        UserError: the type of the data is not supported, or columns differ in length.
    """

    def __init__(self, data: Any) -> None:
        parts = _splits(data)
        self._kind = _kind(next(iter(parts.values())))
        several = len(parts) > 1
        self.sources = {
            name: _source(part, f"the {_kind(part)} in memory" + (f" ({name})" if several else ""))
            for name, part in parts.items()
        }

    def __str__(self) -> str:
        """The description for config.json."""
        rows = ", ".join(f"{name} {source.num_rows:,} rows" for name, source in self.sources.items())
        columns = ", ".join(next(iter(self.sources.values())).columns)
        return f"{DESCRIBED}{self._kind}, {rows}, columns {columns}"

    __repr__ = __str__


def in_memory(data: Any) -> Any:
    """Convert data in memory to `InMemory`, which reads all of them once. None, a path and a name are unchanged.

    Raises:
        UserError: as `InMemory`.
    """
    return data if data is None or isinstance(data, (str, InMemory)) else InMemory(data)


def refuse_description(data: str) -> None:
    """Raise UserError if `data` is only the description of data in memory, from a config.json."""
    if data.startswith(DESCRIBED):
        raise UserError(
            f"this run was given its data from Python ({data.removeprefix(DESCRIBED)}), which its directory does not "
            "hold; call the training from Python with the same data="
        )


def _splits(data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {"train": data}
    if not data:
        raise UserError("data= is an empty dict; give columns or splits")
    names = [str(name) for name in data]
    named = all(name.lower() in SPLIT_NAMES for name in names)
    if not named and not all(map(_is_table, data.values())):
        return {"train": data}
    found = {SPLIT_NAMES.get(name.lower(), name): part for name, part in zip(names, data.values(), strict=True)}
    if len(found) < len(data):
        raise UserError(f"data= holds a split twice ({listed(names)}); give each once")
    return found


def _package(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _is_table(data: Any) -> bool:
    return (_package(data), type(data).__name__) in _TABLES


_TABLES = {
    ("pandas", "DataFrame"): "pandas frame",
    ("polars", "DataFrame"): "polars frame",
    ("datasets", "Dataset"): "datasets.Dataset",
}


def _is_sequence(data: Any) -> bool:
    """Whether it is a list, tuple, array or Series: an indexed container with a length."""
    if isinstance(data, str | bytes | Mapping) or _is_table(data):
        return False
    # pandas has an array type for each type of values, such as that of the strings in Series.values.
    if _package(data) in ("numpy", "pandas", "torch"):
        return getattr(data, "ndim", 0) == 1
    if _package(data) == "pyarrow":
        return hasattr(data, "to_pylist") and not hasattr(data, "column_names")
    return isinstance(data, Sequence) or (_package(data), type(data).__name__) in {
        ("polars", "Series"),
        ("datasets", "Column"),
    }


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(map(_is_sequence, data))


def _kind(data: Any) -> str:
    if _is_table(data):
        return _TABLES[_package(data), type(data).__name__]
    if isinstance(data, Mapping):
        return "dict of columns"
    return "pair of texts and labels" if _is_pair(data) else "list of texts"


def _source(data: Any, what: str) -> Source:
    if _is_table(data) and _package(data) == "datasets":
        source = of_dataset(data, what, "", [], [], Access())
        source.fingerprint = _fingerprint(source, [n for n in source.columns if source.types[n].startswith(_HASHED)])
        return source
    columns = _columns(data)
    lengths = {name: length for name, (length, _) in columns.items()}
    if len(set(lengths.values())) != 1:
        found = listed(f"{name} {length:,}" for name, length in lengths.items())
        raise UserError(f"the columns of {what} differ in length ({found}); give a value for each row")
    num_rows = next(iter(lengths.values()))
    if not num_rows:
        raise UserError(f"{what} is empty; give data with rows")

    def batches(wanted: list[str], batch_size: int, place: int | None) -> Batches:
        for start in range(place or 0, num_rows, batch_size):
            stop = min(start + batch_size, num_rows)
            yield {name: [_plain(value) for value in columns[name][1](start, stop)] for name in wanted}, stop

    source = Source(what, list(columns), "", num_rows=num_rows, _batches=batches)
    firsts = {name: _first(source, name) for name in columns}
    # It decides whether a column can be texts.
    source.types = {name: "string" if isinstance(one, str) else type(one).__name__ for name, one in firsts.items()}
    # A type of the user's may be that of the labels. One that is told by its address is an object without a value.
    source.fingerprint = _fingerprint(
        source, [name for name, one in firsts.items() if isinstance(one, str) or " at 0x" not in repr(one)]
    )
    return source


def _columns(data: Any) -> dict[str, tuple[int, _Column]]:
    """By column, its length and a function that reads its rows."""
    if _is_table(data):
        frame = data.iloc if _package(data) == "pandas" else data
        names = list(data.columns)
        if len(set(map(str, names))) < len(names):
            raise UserError("the data frame names a column twice; rename one")
        return {str(name): (len(data), _column(frame, place)) for place, name in enumerate(names)}
    if isinstance(data, tuple) and len(data) == 2 and getattr(data[1], "ndim", 0) > 1:
        raise UserError(f"the labels in data= are an array of shape {list(data[1].shape)}; give a dict with a column of 0 and 1 for "
                        "each label, and name these columns by label_column, as in a,b,c")  # fmt: skip
    if isinstance(data, tuple) and len(data) == 2:
        for what, part in zip(("texts", "labels"), data, strict=True):
            if part is not None and not isinstance(part, str) and not _is_sequence(part):
                raise UserError(f"the {what} in data= are of type {type(part).__name__}; give a list")
    if _is_pair(data):
        data = {"text": data[0], "label": data[1]}
    elif _is_sequence(data):
        first = next((value for value in map(_plain, _listed(data[:100])) if value is not None), "")
        if not isinstance(first, str):
            raise UserError(f"data= is a list of {type(first).__name__} and not of texts; {_TAKES}")
        data = {"text": data}
    if not isinstance(data, Mapping):
        raise UserError(f"data= is of type {type(data).__name__}; {_TAKES}")
    for name, values in data.items():
        if not _is_sequence(values):
            raise UserError(f"column {listed([name])} of data= is of type {type(values).__name__}; give a list")
    return {str(name): (len(values), _column(values)) for name, values in data.items()}


def _column(values: Any, place: int | None = None) -> _Column:
    """A function that reads rows of a list-like, or of the column with index `place` of a data frame."""
    if place is None:
        return lambda start, stop: _listed(values[start:stop])
    return lambda start, stop: _listed(values[start:stop, place])


def _listed(values: Any) -> list[Any]:
    """Convert a list, array or Series to a list."""
    for method in ("tolist", "to_list", "to_pylist"):
        if hasattr(values, method):
            return getattr(values, method)()
    return list(values)


def _plain(value: Any) -> Any:
    """Convert a value to a plain one, as from a file: missing values to None, numpy's types to Python's, sets to lists."""
    if getattr(value, "ndim", 0):  # labels of a row, in an array
        return value.tolist()
    if isinstance(value, set | frozenset):  # likewise, in an order that does not change from process to process
        return sorted(value, key=str)
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "item"):
        value = value.item()
    missing = type(value).__name__ in ("NAType", "NaTType") or isinstance(value, float) and value != value
    return None if missing else value


def _first(source: Source, name: str) -> Any:
    """The first value of a column that is not None; "" if there is none."""
    return next((value for columns in source.read([name]) for value in columns[name] if value is not None), "")


def _fingerprint(source: Source, names: list[str]) -> str:
    """Fingerprint (16 hex digits) of names of columns and classes, and of all values of the columns `names`."""
    digest = hashlib.sha256(json.dumps([source.columns, source.classes]).encode())
    for columns in source.read(names, HASHED_ROWS) if names else ():
        for row in zip(*(columns[name] for name in names), strict=True):
            digest.update(json.dumps(row, default=repr).encode())
    return digest.hexdigest()[:16]
