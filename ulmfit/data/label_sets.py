"""Several labels a row: a list column, a cell with a separator, or a column of 0 and 1 for each label.

A row's labels are a set: their order and repetitions do not count. Sets are named by a JSON list of their labels in
order, such as `["film", "pos"]`. To everything that reads a `Split` (token cache, draws, counts) a set is one class.
`LabelSets.matrix` turns the number of a set into a 0 or 1 for each label. A row with an empty set has none of the labels,
and is an answer: an empty list, zeros everywhere, or a cell that holds the separator alone. null, an empty cell, and
columns that are all empty mean unlabelled.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ulmfit.data.dialect import character
from ulmfit.data.fingerprint import hash_of
from ulmfit.data.label_values import NO_LABEL, is_integer, label_name, unseen_label
from ulmfit.data.labels import MISSING
from ulmfit.data.shards import Columns
from ulmfit.data.source import Source
from ulmfit.data.splits import MARKS, Split
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed, listed_values

SET = "set of labels"  # the column that stands for a label column
FEW = 10  # rows: a smaller set is no stratum of its own
_PEEKED = 1000  # rows in which a list column is looked for
_LISTS = ("list", "large_list", "fixed_size_list", "tuple")  # prefixes of types whose values are the labels of a row
_SUSPECTS = "#|;,/+&"  # between the labels of a cell
_ONE, _ZERO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


@dataclass(frozen=True)
class LabelSets:
    """How the labels of a row are written, and after the corpus was read, which there are.

    Attributes:
        columns: one column of lists or of cells, or several columns of 0 and 1, named like the labels.
        separator: between the labels of a cell; None for lists and columns of 0 and 1. A cell that is a list as JSON or
            Python write it, as pandas does in a .csv, is read as one.
        unlabelled: a cell that means no label.
        names: the labels, in the order of the probabilities.
        sets: the names of all sets in the corpus, ascending. A class number of a split is a place in it.
    """

    columns: tuple[str, ...]
    separator: str | None = None
    unlabelled: str | None = None
    names: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    def matrix(self) -> np.ndarray:
        """float32 [sets, labels], 1 where a set has a label."""
        return membership(self.sets, self.names)

    def saved(self) -> dict[str, Any]:
        """For config.json of a model: how the labels of its training were written."""
        return {"label_columns": list(self.columns), "label_separator": self.separator}

    @classmethod
    def of_model(cls, saved: Mapping[str, Any], separator: str | None) -> LabelSets | None:
        """How the labels of rows to score are expected; None for a model of one label a row.

        Args:
            saved: its config.json.
            separator: --label-separator.
        """
        if not saved.get("multi_label"):
            return None
        columns = tuple(saved.get("label_columns") or ("label",))
        given = None if separator is None else spelled(separator)
        return cls(columns, given or saved.get("label_separator") or joiner(saved["label_names"]))

    def for_rows(self, part: Source, column: str, wanted: str | None) -> LabelSets:
        """With the columns of rows to score: those wanted by --label-column, else those of training, else `column`."""
        if wanted is not None:
            names = [wanted] if wanted in part.columns else [name.strip() for name in wanted.split(",")]
        else:
            names = list(self.columns) if all(part.has(name) for name in self.columns) else [column]
        return replace(self, columns=tuple(names))

    def of_row(self, part: Source, values: Sequence[Any]) -> str | None:
        """The name of a row's set; None for an unlabelled row.

        Raises:
            UserError: a value is neither 0 nor 1, or a cell is no list.
        """
        if len(self.columns) > 1:
            return self._of_columns(part, values)
        (value,) = values
        if isinstance(value, str) and value in MARKS or value is None:
            return None
        if isinstance(value, list | tuple):
            return set_name(found for item in value if (found := label_name(part, self.columns[0], item)) is not None)
        if self.separator is None:
            raise UserError(f"column {self.columns[0]} of {part.what} holds lists and {excerpt(value)}; write a list in "
                            "each row, or give --label-separator")  # fmt: skip
        if isinstance(value, str) and self.separator.isspace() and self.separator in value and not value.strip():
            return set_name(())  # the separator alone, which is no empty cell
        text = label_name(part, self.columns[0], value)
        if text is None or text == self.unlabelled:
            return None
        items = _list_in(text)
        if items is not None:
            return set_name(found for item in items if (found := label_name(part, self.columns[0], item)) is not None)
        return set_name(found for piece in text.split(self.separator) if (found := piece.strip()))

    def _of_columns(self, part: Source, values: Sequence[Any]) -> str | None:
        if any(isinstance(value, str) and value in MARKS for value in values):
            return None
        texts = ["" if value is None or value != value else str(value).strip().lower() for value in values]
        if not any(texts):
            return None
        for column, value, text in zip(self.columns, values, texts, strict=True):
            if text not in _ONE | _ZERO:
                raise UserError(f"column {column} of {part.what} holds {excerpt(value)}; write 0 or 1 in each column of "
                                "--label-column, or leave all of a row empty")  # fmt: skip
        return set_name(column for column, text in zip(self.columns, texts, strict=True) if text in _ONE)


def set_name(labels: Iterable[str]) -> str:
    """The name of a set of labels. It does not depend on their order."""
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def labels_of(name: str) -> list[str]:
    """The labels of a set."""
    return json.loads(name)


def spelled(separator: str) -> str:
    """The separator of --label-separator, of which some have names, as those of --separator have.

    Raises:
        UserError: it is empty.
    """
    if not separator:
        raise UserError("--label-separator is empty; give what stands between the labels of a cell, such as ;")
    return character(separator) or separator


def _list_in(text: str) -> list[Any] | None:
    """The list that a cell is, as JSON or Python write it: ["a", "b"], ['a', 'b'], []; None if it is none."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and not any(isinstance(item, list | tuple | dict | set) for item in found):
            return found
    return None


def joiner(names: Sequence[str]) -> str:
    """A separator that no label contains: the first of comma, semicolon, bar and tab, else a line break."""
    return next((mark for mark in ",;|\t" if not any(mark in name for name in names)), "\n")


def membership(sets: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """float32 [sets, labels], 1 where a set has a label. Every label must be among the names."""
    place = {name: index for index, name in enumerate(names)}
    result = np.zeros((len(sets), len(names)), dtype=np.float32)
    for row, labels in zip(result, map(labels_of, sets), strict=True):
        row[[place[label] for label in labels]] = 1
    return result


class LabelSetSplit(Split):
    """A split whose class numbers are places in `LabelSets.sets`."""

    def __init__(
        self, name: str, parts: list[Source], text_columns: list[str], labels: LabelSets, **options: Any
    ) -> None:
        super().__init__(name, parts, text_columns, label_column=SET, **options)
        self.labels = labels

    @property
    def fingerprint(self) -> str:
        how = (self.labels.columns, self.labels.separator, self.labels.unlabelled, self.labels.names)
        return hash_of(("sets", super().fingerprint, how))

    def strata(self, names: Sequence[str], codes: np.ndarray) -> np.ndarray:
        """Strata of a draw, int32 [rows]: the sets, but those of fewer than `FEW` rows by their rarest label.

        Args:
            names: of the sets.
            codes: int32 [rows], places in `names`, or -1.
        """
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        labels = [labels_of(name) for name in names]
        counts: Counter[str] = Counter()
        for size, members in zip(sizes, labels, strict=True):
            counts.update(dict.fromkeys(members, int(size)))
        keys: dict[Any, int] = {}
        strata = np.full(len(names) + 1, -1, dtype=codes.dtype)  # the last one is that of the code -1
        for place, (size, members) in enumerate(zip(sizes, labels, strict=True)):
            key: Any = place
            if size < FEW:
                key = min(members, key=lambda label: (counts[label], label)) if members else ""
            strata[place] = keys.setdefault(key, len(keys))
        return strata[codes]

    def _read(self, text_columns: list[str], batch_size: int, start: dict[str, Any] | None = None,
              until: tuple[int, int] | None = None) -> Iterator[tuple[Source, Columns, int, dict[str, Any]]]:  # fmt: skip
        """As that of `Split`, with the name of the row's set as the label."""
        wanted = list(self.labels.columns)
        for part, columns, first, after in super()._read(text_columns + wanted, batch_size, start, until):
            size = len(next(iter(columns.values())))
            cells = [columns.get(name, [None] * size) for name in wanted]  # unlabelled texts may lack the columns
            columns[SET] = [self.labels.of_row(part, row) for row in zip(*cells, strict=True)]
            yield part, columns, first, after


def found_in(source: Source, column: str, wanted: str | None, separator: str | None) -> LabelSets | None:
    """How the rows of a corpus have several labels; None if each has one.

    Args:
        column: the column of labels, if there is only one.
        wanted: --label-column as given.
        separator: --label-separator.

    Raises:
        UserError: --label-separator is empty, or given with several columns; or the lists are rows of 0 and 1.
    """
    names = tuple(name.strip() for name in wanted.split(",")) if wanted and wanted not in source.columns else ()
    if len(names) > 1:
        if not all(names):
            raise UserError(f"--label-column {wanted} holds an empty name; write as in food,staff,pool")
        for name in names:
            if not source.has(name):
                raise source.lacks(name)
        if separator is not None:
            raise UserError(f"--label-separator cuts the cells of one column and --label-column names {len(names)}; leave "
                            "out one of them")  # fmt: skip
        if len(set(names)) < len(names):
            raise UserError(f"--label-column {listed(names)} names a column twice; give each once")
        return LabelSets(names)
    if separator is not None:
        return LabelSets((column,), spelled(separator))
    if column not in source.columns or not source.types.get(column, "list").startswith(_LISTS):
        return None
    head: list[Any] = []
    for columns in source.read([column], _PEEKED):
        if head := [value for value in columns[column] if value not in (None, "")]:
            break  # rows without a label may come first
    lists = [value for value in head if isinstance(value, list | tuple)]
    if lists and len(lists[0]) > 1 and all(map(_is_hot, lists)) and len(set(map(len, lists))) == 1:
        raise UserError(f"column {column} of {source.what} holds lists of {len(lists[0])} numbers 0 and 1; write the names of "
                        "a row's labels into its list, or give each label a column and name these by --label-column")  # fmt: skip
    return LabelSets((column,)) if lists else None


def _is_hot(row: Sequence[Any]) -> bool:
    """Whether it has a 0 or 1 for each label, instead of names."""
    return all(isinstance(item, int | float) and item in (0, 1) for item in row)


def resolve(
    splits: dict[str, Split],
    labels: LabelSets,
    names: list[str] | None,
    *,
    skip_unseen: bool = False,
    marks_are_labels: bool = True,
) -> LabelSets:
    """Find the labels and the sets of a corpus, and set them on every split.

    Args:
        names: the labels of a saved model.
        skip_unseen: leave sets with other labels than `names` out, instead of raising.
        marks_are_labels: a cell such as NA, or -1 among whole numbers, is a label. Else it is refused.

    Raises:
        UserError: a label does not occur in training, or all rows of training have the same labels, or one looks like a
            mark of rows without a label.
    """
    parts = {name: split for name, split in splits.items() if isinstance(split, LabelSetSplit)}
    counts = {name: split.count_labels() for name, split in parts.items()}
    first = next(iter(parts.values())).parts[0]
    if not marks_are_labels and labels.separator is not None:
        _check_marks(set().union(*counts.values()), first, labels.columns[0])
    if names is None:
        learnt = counts["train"] if parts["train"].choice is None else counts["train"] + counts.get("valid", Counter())
        found = sorted({label for name in learnt for label in labels_of(name)})
        found = sorted(found, key=int) if found and all(map(is_integer, found)) else found
        names = list(labels.columns) if len(labels.columns) > 1 else found
        if len(counts["train"]) < 2:
            held = next(iter(counts["train"]), set_name(()))
            what = f"have the labels {listed_values(labels_of(held))}" if labels_of(held) else "have no label"
            raise UserError(f"all training rows of {first.what} {what}; a classifier needs rows that differ")
    for name, split in parts.items():
        unseen = sorted({label for found in counts[name] for label in labels_of(found)} - set(names))
        if unseen and not skip_unseen:
            raise unseen_label(split.parts[0], name, unseen[0], names)
    every = set().union(*counts.values())
    sets = tuple(sorted(name for name in every if set(labels_of(name)) <= set(names)))
    labels = replace(labels, names=tuple(names), sets=sets)
    for split in parts.values():
        split.label_names, split.labels = list(sets), labels
    return labels


def _check_marks(sets: set[str], where: Source, column: str) -> None:
    """Raise UserError if cells hold what programs write for a missing value, or -1 where all labels are whole numbers."""
    found = {label for name in sets for label in labels_of(name)}
    numbers = NO_LABEL in found and all(map(is_integer, found))
    for mark in sorted(MISSING) + [NO_LABEL] * numbers:
        if set_name([mark]) in sets:
            raise UserError(f"column {column} of {where.what} has the label {listed_values([mark])}; add --unlabelled {mark} if "
                            "it marks rows without a label, or --unlabelled none if it is a label")  # fmt: skip


def unused_separator(labels: LabelSets) -> str | None:
    """A sentence if no cell has several labels, so that the separator may be another one; else None."""
    if labels.separator is None or any(len(labels_of(name)) != 1 for name in labels.sets):
        return None
    return (
        f"warning: no cell of column {listed_values(labels.columns)} has the label separator {labels.separator!r}, so each row has "
        "one label; if a cell holds several, give what stands between them"
    )


def suspicion(names: Sequence[str], column: str) -> str | None:
    """A sentence if classes look like several labels in one cell, such as pos#film and film#pos; else None.

    That is where two classes have the same parts in another order, or where the parts of a class are classes too, or
    where a cell is a list as JSON or Python write it.
    """
    known = set(names)
    if written := next((name for name in names if _list_in(name)), None):
        return f"warning: column {column} holds {excerpt(written)} as a class; to read it as a list, give --label-separator ','"
    for separator in _SUSPECTS:
        pieces = {name: [piece.strip() for piece in name.split(separator)] for name in names if separator in name}
        pieces = {name: parts for name, parts in pieces.items() if all(parts)}
        seen: dict[tuple[str, ...], str] = {}
        for name, parts in pieces.items():
            other = seen.setdefault(tuple(sorted(parts)), name)
            if other != name or set(parts) <= known:
                pair = f"{excerpt(other)} and {excerpt(name)}" if other != name else f"{excerpt(name)} and its parts"
                return (
                    f"warning: column {column} holds {pair}, each a class of its own; if a cell holds several labels, give "
                    f"--label-separator {separator!r}"
                )
    return None
