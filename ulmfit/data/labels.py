"""Which classes a corpus has, and which of its labels mean that a row has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ulmfit.data.faults import Tally
from ulmfit.data.label_values import NO_LABEL, as_label, is_integer, unseen_label
from ulmfit.data.source import Source
from ulmfit.data.splits import Split
from ulmfit.errors import UserError
from ulmfit.excerpts import listed_values

MOST_CLASSES = 0.8  # of the number of rows: with more, a column of labels is one of texts or numbers of rows
MISSING = frozenset(("NA", "N/A", "n/a", "<NA>", "#N/A", "nan", "NaN", "NAN", "NaT", "null", "NULL"))
FEW_ROWS = 20  # below, each row may be a class


def resolve_labels(splits: dict[str, Split], column: str, names: list[str] | None, unlabelled: str | None) -> list[str]:
    """Find the class names and set them on every split. A test split without any label is taken out of `splits`.

    Args:
        names: those of a saved model.
        unlabelled: the label that means none, as --unlabelled gives it; None: see `_no_label`.

    Raises:
        UserError: there is only one class, or a class does not occur in training.
    """
    counts = {name: split.count_labels() for name, split in splits.items()}
    train, where = counts["train"], splits["train"].parts[0]
    fixed = names is not None
    none = None if unlabelled == "none" else as_label(unlabelled)
    if names is None:
        names = where.classes.get(column) or sorted(train)
        if column not in where.classes:
            found = set().union(*counts.values())
            if unlabelled is None:
                none = _no_label(found, column, where)
            names = sorted(names, key=int) if all(map(is_integer, names)) else names
        if unlabelled is not None and none is not None and not any(none in found for found in counts.values()):
            where.notes.append(f"no row of {where.what} has the label {listed_values([none])} that --unlabelled names")
        names = [name for name in names if name != none]
    if "test" in splits and not set(counts["test"]) - {none}:  # as published tasks have it, whose labels are kept back
        where.notes.append(f"no row of {splits.pop('test').parts[0].what} has a label, so the test split is left out")
    seen = [name for name in names if train[name]]
    known = set(names if fixed else seen) | ({NO_LABEL} if fixed and all(map(is_integer, names)) else set())
    for name, split in splits.items():
        split.unlabelled = none
        unseen = sorted(set(counts[name]) - known - {none})
        if unseen and (seen or fixed):
            raise unseen_label(split.parts[0], name, unseen[0], names)
        split.label_names = names
    if not seen:
        _check_texts(splits["train"])
        raise UserError(
            f"column {column} of {where.what} labels none of the training rows; label them, or choose another by --label-column"
        )
    if len(seen) < 2 and not fixed:
        note = f" ({listed_values([none])} means unlabelled)" if none is not None and train[none] else ""
        folder = f" (give {where.what}/{seen[0]} if they are folders in it)" if where.documents else ""
        raise UserError(f"all training rows of {where.what} have the label {listed_values(seen)}{note}; "
                        f"a classifier needs two classes or more{folder}")  # fmt: skip
    rows = sum(train[name] for name in seen)
    if rows >= FEW_ROWS and len(seen) > MOST_CLASSES * rows and not fixed:
        raise UserError(f"column {column} of {where.what} has {len(seen):,} different values in {rows:,} training rows, "
                        "so they are no classes; choose another by --label-column")  # fmt: skip
    return names


def spelled_alike(names: Sequence[str], column: str) -> str | None:
    """A sentence if two classes differ in case or blanks only, such as pos and Pos; else None."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    found = next((group for group in groups.values() if len(group) > 1), None)
    if found is None:
        return None
    return (
        f"warning: the classes {listed_values(found)} of column {column} differ in case or blanks only; write them alike "
        "if they are one"
    )


def _check_texts(split: Split) -> None:
    """Raise UserError if there are no labels because there are no readable texts, or no rows at all in the split."""
    faults: Counter[str] = Counter()
    rows = 0
    for batch in split.every_row():
        rows += len(batch.reasons)
        faults.update(filter(None, batch.reasons))
    tally = Tally([split.name])
    tally.report(split.name, split.parts[0].what, rows, faults)
    tally.check()
    if not any(texts for texts, _, _ in split.readable_rows(None, strict=False)):
        split.check()


def _no_label(found: set[str], column: str, where: Source) -> str | None:
    """The label that means none: -1, if all labels are whole numbers and no other one is negative.

    Raises:
        UserError: besides -1 there are only 0 and 1, of which it may be the opposite or the third class; or a label is
            what programs write for a missing value.
    """
    if missing := sorted(found & MISSING):
        raise UserError(f"column {column} of {where.what} has the label {listed_values(missing[:1])}; add --unlabelled "
                        f"{missing[0]} if it marks rows without a label, or --unlabelled none if it is a class")  # fmt: skip
    if NO_LABEL not in found or not all(map(is_integer, found)):
        return None
    if found <= {NO_LABEL, "0", "1"}:
        raise UserError(f"column {column} of {where.what} has the labels {listed_values(sorted(found, key=int))}; add "
                        "--unlabelled -1 if -1 marks rows without a label, or --unlabelled none if it is a class")  # fmt: skip
    return None if any(name.startswith("-") for name in found - {NO_LABEL}) else NO_LABEL
