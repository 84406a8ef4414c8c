"""One split of a corpus: the rows of its sources as texts and label indices.

Only the current batch is in memory. `Split.batches` is for training and scoring: it skips bad rows and counts them by
reason (see `faults`): "no text" (null, or not a string), "empty", "undecodable" (not UTF-8, a lone surrogate, a broken
line of JSON), and if labels are requested, "unlabelled" (null, "" or the integer -1). Blank lines of .txt files are
skipped without a count. `Split.every_row` is for prediction: it yields a row for each row of the sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ulmfit.data.choice import Choice
from ulmfit.data.encoding import TORN, UNDECODABLE
from ulmfit.data.faults import UNLABELLED, UNSEEN, Tally, faults_among, reasons
from ulmfit.data.fingerprint import hash_of
from ulmfit.data.holdout import HeldOut
from ulmfit.data.label_values import NO_LABEL, is_broken, is_integer, label_name, unseen_label
from ulmfit.data.locations import size_of
from ulmfit.data.shards import Columns
from ulmfit.data.source import Source
from ulmfit.errors import UserError
from ulmfit.texts import is_utf_8

MARKS = {TORN: "torn", UNDECODABLE: "undecodable"}  # mark of a reader in a value -> reason why the row has no text


class TextBatch(NamedTuple):
    """Rows in the order of the source. The three lists have the same length, at least 1."""

    texts: list[str]
    labels: list[int] | None  # indices into the corpus's label_names; None if labels are not requested
    rows: list[int]  # row numbers in the source, from 0, counted over all parts of a split
    after: dict[str, Any]  # the position after this batch, for `Split.batches`


class Share(NamedTuple):
    """Neighbouring files of a split, which one process reads. Rows and skipped ones are counted from its beginning.

    Attributes:
        start: the position before its first file, for `Split.batches`.
        until: (number of the part, number of the file in it) of the first file after it.
    """

    start: dict[str, Any]
    until: tuple[int, int]


class RowBatch(NamedTuple):
    """Neighbouring rows of one source, whether they have a text or not. The lists have the same length, at least 1."""

    part: Source
    first: int  # number of the first row in the source, from 0
    texts: list[str]  # "" for a row without a usable text
    reasons: list[str]  # why there is none; "" for the others
    columns: Columns  # all columns of the source
    place: dict[str, Any]  # the position of the first row, for `Split.every_row`


class Split:
    """One split of a corpus. It can be read several times. `skipped` is complete after a full pass of `batches`.

    `fingerprint` (16 hex digits) depends on the rows, their texts and labels, not on the path.
    """

    def __init__(self, name: str, parts: list[Source], text_columns: list[str], *, label_column: str | None = None,
                 label_names: list[str] | None = None, choice: Choice | HeldOut | None = None,
                 keep_unlabelled: bool = False, skip_unseen: bool = False) -> None:  # fmt: skip
        self.name = name
        self.parts = parts
        self.text_columns = text_columns
        self.label_column = label_column
        self.choice = choice
        self.keep_unlabelled = keep_unlabelled  # with label -1, instead of skipping them
        self.skip_unseen = skip_unseen  # rows whose label is not among the names, instead of raising
        self.label_names = label_names
        self.unlabelled: str | None = None  # a label that means none, besides `NO_LABEL` among integers
        self.skipped: Counter[str] = Counter()
        self.num_rows = 0  # rows of the last pass, including skipped ones
        self.end_row = 0  # rows of the sources that the last pass has read
        self.tally = Tally([name])  # shared by the splits of a corpus

    @property
    def total_rows(self) -> int | None:
        """Rows of all parts, including those not selected for this split; None if not known before reading."""
        numbers = [part.num_rows for part in self.parts]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    def expected_rows(self) -> int | None:
        """As `total_rows`, but estimated where that is not known; None for compressed files and streams of the hub."""
        numbers = [part.expected_rows() for part in self.parts]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    @property
    def fingerprint(self) -> str:
        identity: tuple[Any, ...] = ("1", [part.fingerprint for part in self.parts], self.text_columns, self.label_column,
                    self.label_names, self.choice, self.keep_unlabelled)  # fmt: skip
        if self.skip_unseen:
            identity += ("skip unseen",)
        return hash_of(identity)

    def shares(self, least_bytes: int, most: int) -> list[Share]:
        """Divide the files, in their order, into at most `most` shares of at least `least_bytes`, but for the last one.

        The shares depend on the files alone. A split that does not consist of files of rows is one share, or [].
        """
        kinds = {"csv", "tsv", "text", "jsonl", "json", "parquet"}
        if not all(part.kind in kinds for part in self.parts):
            return []
        files = [(number, file, size_of(path)) for number, part in enumerate(self.parts)
                 for file, path in enumerate(part.files)]  # fmt: skip
        wanted = max(least_bytes, -(-sum(size for *_, size in files) // most))
        starts, size = [], wanted
        for number, file, more in files:
            if size >= wanted:
                starts.append((number, file))
                size = 0
            size += more
        ends = [*starts[1:], (len(self.parts), 0)]
        counts = {"row": 0, "num_rows": 0, "skipped": {}}
        return [
            Share({"part": number, "place": [file, None]} | counts, end)
            for (number, file), end in zip(starts, ends, strict=True)
        ]

    def batches(
        self, batch_size: int = 1000, start: dict[str, Any] | None = None, until: tuple[int, int] | None = None
    ) -> Iterator[TextBatch]:
        """Yield the rows in batches of at most `batch_size` (fewer if texts are long or rows are skipped).

        `start` is the `after` of a batch of an earlier pass, possibly of another process. Reading starts after that
        batch; for the cost see `Source.read_from`. `after` is JSON-able and takes some hundred bytes. It includes the
        counts of rows, so `skipped` and `check` refer to the whole pass even if it was read in pieces. With `until` of a
        `Share` reading ends there, and `check` is left to the caller.

        Raises:
            UserError: a label is not among the label names, a file is damaged, or at the end, as `check`.
            OSError: a file cannot be read, after several tries.
        """
        self.skipped = Counter(start["skipped"] if start else {})
        self.num_rows = start["num_rows"] if start else 0
        self.end_row = start["row"] if start else 0
        index = {name: place for place, name in enumerate(self.label_names or [])}
        if index and (self.keep_unlabelled or all(map(is_integer, index))):
            index.setdefault(NO_LABEL, -1)
        if self.unlabelled is not None:
            index.setdefault(self.unlabelled, -1)
        for part, columns, first_row, after in self._read(self.text_columns, batch_size, start, until):
            self.end_row = after["row"]
            joined = self._joined(columns)
            taken = self._taken(columns, joined)
            labels = columns.get(str(self.label_column), [None] * len(joined))
            batch = TextBatch([], [] if self.label_column else None, [], after)
            for place, ((text, fault), take, value) in enumerate(zip(joined, taken, labels, strict=True)):
                if not take or (fault == "empty" and part.blank_lines):
                    continue
                self.num_rows += 1
                label = -1
                if not fault and batch.labels is not None:
                    found = self._label(part, value, index)
                    if found is None:
                        fault = UNSEEN
                    elif found < 0 and not self.keep_unlabelled:
                        fault = ("torn" if value == TORN else "undecodable") if is_broken(value) else UNLABELLED
                    else:
                        label = found
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
        if until is None:
            self.check()

    def every_row(self, batch_size: int = 1000, start: dict[str, Any] | None = None) -> Iterator[RowBatch]:
        """Yield all rows of the sources in their order, with all their columns; labels are not interpreted.

        `start` is the `place` of a batch of an earlier pass: reading starts with this batch.

        Raises:
            UserError: a file is damaged.
            OSError: a file cannot be read, after several tries.
        """
        begun = start["part"] if start else 0
        for number, part in enumerate(self.parts[begun:], begun):
            first, place = (start["first"], start["place"]) if start and number == begun else (0, None)
            for columns, after in part.read_from(place, list(part.columns), batch_size):
                joined = self._joined(columns)
                if joined:
                    here = {"part": number, "first": first, "place": place}
                    texts, reasons = [text for text, _ in joined], [why for _, why in joined]
                    yield RowBatch(part, first, texts, reasons, columns, here)
                first += len(joined)
                place = after

    def readable_rows(self, group_column: str | None, *, strict: bool, batch_size: int = 1000) -> (
            Iterator[tuple[list[str], list[str | None], list[Any]]]):  # fmt: skip
        """Yield (texts, label names, values of the group column) of the rows with readable text, in batches.

        Without such a column the values are []. A row has no label name where there is no column of labels, no label,
        or in other parts than the first: unlabelled texts, and those of the test split for a language model.

        Raises:
            UserError: a value can be no label, if `strict`; else it counts as none.
        """
        for part, columns, _, _ in self._read(
            [*self.text_columns, *([group_column] if group_column else [])], batch_size
        ):
            joined = self._joined(columns)
            taken = self._taken(columns, joined)
            good = [
                place for place, ((_, fault), take) in enumerate(zip(joined, taken, strict=True)) if take and not fault
            ]
            labels = columns.get(str(self.label_column)) if part is self.parts[0] else None
            groups = columns.get(str(group_column), [])
            names = [self._name(part, labels[place], strict=strict) if labels else None for place in good]
            yield [joined[place][0] for place in good], names, [groups[place] for place in good if groups]

    def _joined(self, columns: Columns) -> list[tuple[str, str]]:
        """By row: (text, reason why there is none; "" if there is one)."""
        return [_join(values) for values in zip(*(columns[name] for name in self.text_columns), strict=True)]

    def _taken(self, columns: Columns, joined: list[tuple[str, str]]) -> list[bool]:
        """By row, whether it belongs to this split."""
        return self.choice.takes(columns, [text for text, _ in joined]) if self.choice else [True] * len(joined)

    def _name(self, part: Source, value: Any, *, strict: bool) -> str | None:
        try:
            return label_name(part, self.label_column, value)
        except UserError:
            if strict:
                raise
            return None

    def check(self) -> None:
        """Raise UserError if no row of the last pass was left, or too many rows of the corpus are at fault."""
        where = self._where()
        if not self.num_rows:
            cure = "give one that is not empty"
            if self.choice and self.choice.column:
                written, use = ("true", "validate") if self.choice.validation else ("false", "train")
                cure = (
                    f"the column {self.choice.column} is {written} in no row: write it in those to {use} with, or give "
                    "--valid a fraction such as 0.1"
                )
            elif self.choice:
                cure = f"give --valid another part of it than {self.choice.fraction:g}"
            raise UserError(f"{where} leaves no rows for the {self.name} split; {cure}")
        self.report(self.num_rows, self.skipped)
        if sum(self.skipped.values()) < self.num_rows:
            return
        faults = faults_among(self.skipped)
        if faults:
            raise UserError(f"{where} has {sum(faults.values()):,} rows at fault among the {self.num_rows:,} of the "
                            f"{self.name} split ({reasons(self.skipped)}) and none is left; clean them or choose the "
                            "column by --text-column")  # fmt: skip
        raise UserError(f"{where} leaves no labelled row for the {self.name} split ({reasons(self.skipped)}); label "
                        "some (null, an empty string and the integer -1 mean unlabelled)")  # fmt: skip

    def report(self, num_rows: int, skipped: Mapping[str, int]) -> None:
        """Tell the corpus the counts of this split, of a pass or of the token cache.

        Raises:
            UserError: too many rows of the corpus are at fault.
        """
        self.tally.report(self.name, self._where(), num_rows, skipped)
        self.tally.check()

    def _where(self) -> str:
        """Its sources, for messages about all of them."""
        more = len(self.parts) - 1
        return self.parts[0].what + (f" and {more} more file{'s' if more > 1 else ''}" if more else "")

    def strata(self, names: Sequence[str], codes: np.ndarray) -> np.ndarray:
        """By row, the number of the stratum of a draw (see `holdout.draw`), or -1; here the place of its label in
        `names`, which `codes` holds."""
        return codes

    def count_labels(self) -> Counter[str]:
        """Count the labels by name. Reads only the label column (and columns needed for the selection of rows)."""
        counts: Counter[str] = Counter()
        if isinstance(self.choice, HeldOut) and self.choice.counts is not None:
            return self.choice.counts
        hashed = self.choice is not None and self.choice.column is None
        for part, columns, _, _ in self._read(self.text_columns if hashed else [], 10_000):
            assert self.label_column is not None
            names = [label_name(part, self.label_column, value) for value in columns[self.label_column]]
            if self.choice:
                texts = [""] * len(names)  # not needed if a column selects the rows
                if hashed:
                    rows = zip(*(columns[name] for name in self.text_columns), strict=True)
                    texts = [_join(row)[0] for row in rows]
                taken = self.choice.takes(columns, texts)
                names = [name for name, take in zip(names, taken, strict=True) if take]
            counts.update(name for name in names if name is not None)
        return counts

    def _read(self, text_columns: list[str], batch_size: int, start: dict[str, Any] | None = None,
              until: tuple[int, int] | None = None) -> Iterator[tuple[Source, Columns, int, dict[str, Any]]]:  # fmt: skip
        """Yield (part, values, number of their first row, position after them), before the file `until` (see `Share`)."""
        first, place, row = (start["part"], start["place"], start["row"]) if start else (0, None, 0)
        choosing = (self.choice.column, self.choice.group_column) if self.choice else ()
        for number, part in enumerate(self.parts[first:], first):
            if until is not None and (number, 0) >= until:
                return
            wanted = [name for name in (*text_columns, self.label_column, *choosing) if name in part.columns]
            for columns, after in part.read_from(place, list(dict.fromkeys(wanted)), batch_size):
                if until is not None and (number, after[0]) >= until:
                    return
                size = len(next(iter(columns.values())))
                yield part, columns, row, {"part": number, "place": after, "row": row + size}
                row += size
            place = None

    def _label(self, part: Source, value: Any, index: dict[str, int]) -> int | None:
        """The index of a label; -1 for an unlabelled row, None for an unseen label if these rows are skipped."""
        name = label_name(part, self.label_column, value)
        if name is None:
            return -1
        if name not in index:
            if self.skip_unseen:
                return None
            raise unseen_label(part, self.name, name, self.label_names or [])
        return index[name]


def _join(values: tuple[Any, ...]) -> tuple[str, str]:
    """Join the fields of a row. Returns (text, reason for skipping the row); the reason of a good row is ""."""
    present = [value for value in values if isinstance(value, str)]
    if not present:
        return "", "no text"
    text = present[0]
    if len(values) > 1:
        text = " ".join(f"xxfld {place} {value if isinstance(value, str) else ''}".rstrip()
                        for place, value in enumerate(values, 1))  # fmt: skip
    for mark, reason in MARKS.items():
        if mark in text:
            return "", reason
    if not is_utf_8(text):
        return "", "undecodable"
    if not any(value.strip() for value in present):
        return "", "empty"
    return text, ""
