"""One split of a corpus: rows of its sources as texts and label indices, faults counted by reason.

Nothing is held in memory but the batch at hand. A row at fault is skipped and counted: "no text" (null, or no
string), "empty", "undecodable" (no UTF-8, a lone surrogate, a broken line of JSON) and, where labels are asked for,
"unlabelled" (null, "" or the integer -1). More than `MAX_SKIPPED` of a split's rows, or none left, is the user's to
mend.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ulmfit.data.readers import UNDECODABLE, Columns, Source
from ulmfit.errors import UserError

MAX_SKIPPED = 0.05
UNLABELLED = "-1"
_TRUE, _FALSE = {"true", "1", "yes", "1.0"}, {"false", "0", "no", "0.0", ""}


class TextBatch(NamedTuple):
    """Rows in the order of the source; all three lists have one length, at least 1."""

    texts: list[str]
    labels: list[int] | None  # indices into the corpus's label_names; None where labels are not asked for
    rows: list[int]  # row numbers in the source, from 0; they go on over the parts of a split
    after: dict[str, Any]  # where the next batch begins, for `Split.batches`


@dataclass(frozen=True)
class Choice:
    """Which rows of a source a split takes: those of one side of a hashed fraction, or of a boolean column."""

    validation: bool
    fraction: float = 0.0
    seed: int = 0
    column: str | None = None

    def takes(self, columns: Columns, texts: list[str]) -> list[bool]:
        if self.column is None:
            return [_in_fraction(text, self.fraction, self.seed) == self.validation for text in texts]
        if self.column not in columns:  # an unsup part without the column is training text
            return [not self.validation] * len(texts)
        return [_truth(value, self.column) == self.validation for value in columns[self.column]]


class Split:
    """One split of a corpus, read as often as wanted. `skipped` is complete after a full pass of `batches`.

    `fingerprint` (16 hex digits) changes with the rows, their texts or their labels, and not with the path.
    """

    def __init__(self, name: str, parts: list[Source], text_columns: list[str], *, label_column: str | None = None,
                 label_names: list[str] | None = None, choice: Choice | None = None,
                 keep_unlabelled: bool = False) -> None:  # fmt: skip
        self.name = name
        self.parts = parts
        self.text_columns = text_columns
        self.label_column = label_column
        self.choice = choice
        self.keep_unlabelled = keep_unlabelled  # as label -1, not as a fault
        self.label_names = label_names
        self.skipped: Counter[str] = Counter()
        self.num_rows = 0  # seen in the last pass, skipped ones included

    @property
    def total_rows(self) -> int | None:
        """Rows of all parts, those that are not this split's included; None where that is not known beforehand."""
        numbers = [part.num_rows for part in self.parts]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    @property
    def fingerprint(self) -> str:
        identity = ("1", [part.fingerprint for part in self.parts], self.text_columns, self.label_column,
                    self.label_names, self.choice, self.keep_unlabelled)  # fmt: skip
        return hashlib.sha256(repr(identity).encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def batches(self, batch_size: int = 1000, start: dict[str, Any] | None = None) -> Iterator[TextBatch]:
        """Yields the rows in batches of at most `batch_size` (fewer where texts are long or rows are left out).

        `start` is the `after` of a batch of an earlier pass, perhaps of another process: what follows it is read, at
        the cost that `Source.read_from` tells. `after` survives JSON, takes some hundred bytes and carries the counts
        of rows, so that `skipped` and `check` are those of the whole pass also when it was read in pieces.

        Raises UserError for a label that is not among the label names, for a damaged file and, at the end, as
        `check` does; OSError for one that cannot be read though it was tried again.
        """
        self.skipped = Counter(start["skipped"] if start else {})
        self.num_rows = start["num_rows"] if start else 0
        index = {name: place for place, name in enumerate(self.label_names or [])}
        if index and (self.keep_unlabelled or all(map(is_integer, index))):
            index.setdefault(UNLABELLED, -1)
        for part, columns, first_row, after in self._read(self.text_columns, batch_size, start):
            joined = [_join(values) for values in zip(*(columns[name] for name in self.text_columns), strict=True)]
            taken = self.choice.takes(columns, [text for text, _ in joined]) if self.choice else [True] * len(joined)
            labels = columns.get(str(self.label_column), [None] * len(joined))
            batch = TextBatch([], [] if self.label_column else None, [], after)
            for place, ((text, fault), take, value) in enumerate(zip(joined, taken, labels, strict=True)):
                if not take:
                    continue
                self.num_rows += 1
                label = self._label(part, value, index) if batch.labels is not None and not fault else -1
                if not fault and batch.labels is not None and label < 0 and not self.keep_unlabelled:
                    fault = "unlabelled"
                if fault:
                    self.skipped[fault] += 1
                    continue
                batch.texts.append(text)
                batch.rows.append(first_row + place)
                if batch.labels is not None:
                    batch.labels.append(label)
            after |= {"num_rows": self.num_rows, "skipped": dict(self.skipped)}
            if batch.texts:
                yield batch
        self.check()

    def check(self) -> None:
        """Raises UserError if more than `MAX_SKIPPED` of the last pass's rows were skipped, or none was left."""
        skipped, where = sum(self.skipped.values()), self.parts[0].what
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.skipped.most_common())
        if not self.num_rows:
            cure = "give one that is not empty"
            if self.choice:
                cure = (
                    f"change the column {self.choice.column} or --valid"
                    if self.choice.column
                    else (f"give --valid another part of it than {self.choice.fraction:g}")
                )
            raise UserError(f"{where} leaves no rows for the {self.name} split; {cure}")
        if skipped > MAX_SKIPPED * self.num_rows or skipped == self.num_rows:
            cure = "clean them or choose the column by --text-column"
            if self.skipped.most_common(1)[0][0] == "unlabelled":
                cure = "label them (null, an empty string and the integer -1 mean unlabelled)"
            raise UserError(f"{where} has {skipped:,} rows at fault among the {self.num_rows:,} of the {self.name} "
                            f"split ({reasons}), more than {MAX_SKIPPED:.0%} allows; {cure}")  # fmt: skip

    def count_labels(self) -> Counter[str]:
        """Label names as the data has them and their counts; reads the label column (and what the choice needs)."""
        counts: Counter[str] = Counter()
        hashed = self.choice is not None and self.choice.column is None
        for part, columns, _, _ in self._read(self.text_columns if hashed else [], 10_000):
            assert self.label_column is not None
            names = [_label_name(part, self.label_column, value) for value in columns[self.label_column]]
            if self.choice:
                texts = [""] * len(names)  # of no account where a column decides
                if hashed:
                    rows = zip(*(columns[name] for name in self.text_columns), strict=True)
                    texts = [_join(row)[0] for row in rows]
                taken = self.choice.takes(columns, texts)
                names = [name for name, take in zip(names, taken, strict=True) if take]
            counts.update(name for name in names if name is not None)
        return counts

    def _read(self, text_columns: list[str], batch_size: int, start: dict[str, Any] | None = None) -> (
            Iterator[tuple[Source, Columns, int, dict[str, Any]]]):  # fmt: skip
        """(part, values, number of their first row, the place after them)."""
        first, place, row = (start["part"], start["place"], start["row"]) if start else (0, None, 0)
        column = self.choice.column if self.choice else None
        for number, part in enumerate(self.parts[first:], first):
            wanted = text_columns + [name for name in (self.label_column, column) if name in part.columns]
            for columns, after in part.read_from(place, list(dict.fromkeys(wanted)), batch_size):
                size = len(next(iter(columns.values())))
                yield part, columns, row, {"part": number, "place": after, "row": row + size}
                row += size
            place = None

    def _label(self, part: Source, value: Any, index: dict[str, int]) -> int:
        """The index of a label, -1 for an unlabelled row."""
        name = _label_name(part, self.label_column, value)
        if name is None:
            return -1
        if name not in index:
            raise unseen_label(part, self.name, name, self.label_names or [])
        return index[name]


def unseen_label(part: Source, split: str, name: str, names: list[str]) -> UserError:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return UserError(f"label {name!r} in the {split} rows of {part.what} was not seen in training, which has {shown}; "
                     "correct it or leave these rows out")  # fmt: skip


# Values


def _label_name(part: Source, column: str | None, value: Any) -> str | None:
    """A label as text, None where there is none: 1, 1.0 and "1" are the same class."""
    names = part.classes.get(str(column))
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, list | dict):
        raise UserError(f"column {column} of {part.what} holds {type(value).__name__}s, no single labels; "
                        "choose another by --label-column")  # fmt: skip
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if text.endswith(".0") and is_integer(text[:-2]):  # integers beside missing ones, as pandas writes them
        return text[:-2]
    return None if not text or UNDECODABLE in text else text


def _join(values: tuple[Any, ...]) -> tuple[str, str]:
    """(text, fault): the fields of a row as one text; the fault is "" for a good row."""
    present = [value for value in values if isinstance(value, str)]
    if not present:
        return "", "no text"
    text = present[0]
    if len(values) > 1:
        text = " ".join(f"xxfld {place} {value if isinstance(value, str) else ''}".rstrip()
                        for place, value in enumerate(values, 1))  # fmt: skip
    try:
        text.encode()
    except UnicodeEncodeError:
        return "", "undecodable"
    if UNDECODABLE in text:
        return "", "undecodable"
    if not any(value.strip() for value in present):
        return "", "empty"
    return text, ""


def _in_fraction(text: str, fraction: float, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def _truth(value: Any, column: str) -> bool:
    text = str("" if value is None else value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise UserError(f"column {column} splits train and validation and holds {value!r}; write true or false")
    return text in _TRUE


def is_integer(text: str) -> bool:
    return text.lstrip("-").isdecimal()
