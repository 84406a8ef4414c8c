"""Builds the splits of a task from sources: chooses columns, rows and labels.

    corpus = open_corpus("reviews.csv", task="clf")
    for batch in corpus.splits["train"].batches():
        batch.texts, batch.labels, batch.rows

`open_rows` opens all rows of a corpus without dividing it, for prediction and scoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ulmfit.data import label_sets
from ulmfit.data.choice import Choice
from ulmfit.data.faults import Tally
from ulmfit.data.fingerprint import SCHEME, Access, Revision
from ulmfit.data.holdout import STRATIFIED, HeldOut, hold_out
from ulmfit.data.in_memory import InMemory
from ulmfit.data.label_sets import LabelSets, LabelSetSplit
from ulmfit.data.label_values import NO_LABEL, as_label
from ulmfit.data.labels import resolve_labels, spelled_alike
from ulmfit.data.probabilities import SoftSplit, flattened
from ulmfit.data.shards import Columns
from ulmfit.data.source import Source
from ulmfit.data.sources import SPLIT_NAMES, by_file, find
from ulmfit.data.splits import Split
from ulmfit.data.valid_option import validation_of
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed, listed_values


@dataclass
class Corpus:
    """The splits of one task: "train", "valid" and, if the data has one, "test"."""

    splits: dict[str, Split]
    text_columns: list[str]
    label_column: str | None
    label_names: list[str] | None  # sorted (integers by value), or in the order that the data declares
    label_sets: LabelSets | None = None  # where a row may have several labels; a class number is that of a set then
    valid_split: str | None = None  # the split of the data used for validation, if it is a whole split
    valid: str = ""  # description of the validation rows
    revision: Revision = None  # the commit of a data set of the hub
    notes: list[str] = field(default_factory=list)  # sentences for the user about how the files are read

    def __post_init__(self) -> None:
        parts = {id(part): part.num_rows for split in self.splits.values() for part in split.parts}
        known = [number for number in parts.values() if number is not None]
        tally = Tally(self.splits, sum(known) if len(known) == len(parts) else None)
        for split in self.splits.values():
            split.tally = tally

    @property
    def fraction(self) -> str | None:
        """The fraction of training that is held out for validation, as text; None if the data say what is."""
        choice = self.splits["train"].choice
        return self.valid if choice is not None and choice.column is None else None

    @property
    def judged(self) -> Split:
        """The split by whose texts language and vocabulary are judged: valid, or train if no row is held out."""
        return self.splits.get("valid", self.splits["train"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all splits, 16 hex digits."""
        identity = "".join(f"{name} {split.fingerprint} " for name, split in sorted(self.splits.items()))
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


def open_corpus(data: str | InMemory | None, *, task: str, text_column: str | None = None, label_column: str | None = None,
                valid: str | float | None = None, seed: int = 0, streaming: bool = False, include_test: bool = False,
                group_column: str | None = None, label_names: list[str] | None = None, unlabelled: str | None = None,
                trained_columns: Sequence[str] = (), label_separator: str | None = None, probability_columns: Sequence[str] = (),
                access: Access | None = None) -> Corpus:  # fmt: skip
    """Open the corpus `data` (see `ulmfit.data.sources`; None: the embedded sample) for task "lm" or "clf".

    For "lm" labels are ignored and train is train + unsup. For "clf" unsup is not used.

    Args:
        text_column: one column, or several separated by commas, which are joined as "xxfld 1 ... xxfld 2 ...".
            Default: `text`, else the only column of strings besides the label.
        label_column: default `label`; several columns of 0 and 1, separated by commas, are labels of which a row may
            have any number.
        label_separator: between the labels of a cell, of which a row may have any number.
        valid: a fraction of train, the path of another corpus, a boolean column, or the name of a split. A
            fraction is a stratified draw by hashes of the texts and the seed (see `holdout`); of a stream it is chosen
            by the hash alone. Both do not depend on the order of the rows, and equal texts stay together. If no row
            can be held out for a classifier, there is no valid split. Default: the split valid, else the column
            is_valid, else 0.1.
        group_column: rows with the same value there (film, author, ticket) stay on one side of the fraction.
        include_test: for "lm", also train on test; then there is no test split.
        label_names: the classes of a saved model; by default they come from the data.
        unlabelled: the label that means none, or "none" if each is a class. Default: -1, if all are whole numbers and
            it is clear that it is no class.
        trained_columns: the columns that a saved model was trained on; used without `text_column` if the corpus has
            them.
        probability_columns: for "clf", columns with the probability of each class, which are the classes. A split
            without them has a label column.
        access: settings for opening sources.

    Raises:
        UserError: the corpus cannot be opened or does not suit the task.
    """
    assert task in ("lm", "clf"), task
    access = replace(access or Access(), streaming=streaming)
    found = find(data, access)
    if probability_columns:
        found = {name: flattened(source) for name, source in found.items()}
        label_names = list(probability_columns)
    train = found.get("train")
    if train is None:
        raise UserError(f"{data} has no train split, only {listed(found)}; rename it or give the file itself")
    labels = _label_column(train, label_column)
    several = None if probability_columns else label_sets.found_in(train, labels, label_column, label_separator)
    if several is not None:
        several = replace(several, unlabelled=None if unlabelled == "none" else as_label(unlabelled))
    own_labels = list(several.columns) if several else [labels]
    if several is None and (label_column or (task == "clf" and not probability_columns)) and not train.has(labels):
        raise train.lacks(labels) if label_column else _unlabelled(found, labels)
    for name in [*probability_columns, *(own_labels if several and task == "clf" else [])]:
        if not train.has(name):
            raise train.lacks(name)
    texts = _text_columns(train, text_column, labels, trained_columns)
    if task == "clf" and (labels in texts if not probability_columns else set(texts) & set(probability_columns)):
        raise UserError(f"column {listed([name for name in texts if name in (labels, *probability_columns)])} of {train.what} "
                        "holds the labels and cannot be the text; choose another by --text-column or --label-column")  # fmt: skip
    pool = [train]
    if task == "lm":
        pool += [found[name] for name in ("unsup", "test") if name in found and (name == "unsup" or include_test)]
    held_out, choice, valid_name = validation_of(found, valid, train, seed, access)

    if group_column is not None:
        _check_groups(group_column, train, choice)

    def split(name: str, parts: list[Source], rows: Choice | HeldOut | None = None) -> Split:
        soft = bool(probability_columns) and (name == "train" or labels not in parts[0].columns
                                              or set(probability_columns) <= set(parts[0].columns))  # fmt: skip
        needed = texts + (list(probability_columns) if soft else own_labels * (task == "clf"))
        for part in parts:
            missing = [column for column in needed if not part.has(column)]
            if missing and missing[0] == labels and part is not train:
                raise UserError(f"{part.what} has no column {listed([labels])}; label its rows, or move it away, as the {name} "
                                "split is for scores")  # fmt: skip
            if missing:
                raise part.lacks(missing[0])
        if soft:
            return SoftSplit(name, parts, texts, probability_columns, choice=rows)
        if several is not None and task == "clf":
            return LabelSetSplit(name, parts, texts, several, choice=rows)
        return Split(name, parts, texts, label_column=labels if task == "clf" else None, choice=rows)

    splits = {}
    if choice is not None:
        if choice.column is not None or (access.scheme < STRATIFIED or streaming) and group_column is None:
            sides: tuple[Choice | HeldOut, ...] = (replace(choice, validation=False), choice)
        elif streaming:
            sides = tuple(HeldOut(side, choice.fraction, choice.seed, group_column) for side in (False, True))
        else:
            strata = labels if labels in train.columns else None
            whole = (SoftSplit("whole", pool, texts, probability_columns) if probability_columns
                     else LabelSetSplit("whole", pool, texts, several) if several and train.has(several.columns[0])
                     else Split("whole", pool, texts, label_column=strata))  # fmt: skip
            sides = hold_out(whole, choice.fraction, choice.seed, group_column, need_classes=task == "clf",
                             cache_dir=access.cache_dir, beat=access.beat)  # fmt: skip
        splits = {name: split(name, pool, side) for name, side in zip(("train", "valid"), sides, strict=True)}
        if isinstance(sides[1], HeldOut) and sides[1].units is not None and not len(sides[1].units):
            del splits["valid"]
    else:
        assert held_out is not None
        pool = [part for part in pool if part is not held_out]
        splits = {"train": split("train", pool), "valid": split("valid", [held_out])}
    if "test" in found and not include_test and valid_name != "test":
        splits["test"] = split("test", [found["test"]])
    if task == "clf":
        if access.scheme < SCHEME:  # -1 always meant unlabelled then
            unlabelled = unlabelled or NO_LABEL
        if several is not None:
            several = label_sets.resolve(splits, several, label_names, marks_are_labels=unlabelled is not None)
            label_names = list(several.names)
        else:
            label_names = resolve_labels(splits, labels, label_names, unlabelled)
    is_clf = task == "clf"
    notes = notes_of(splits.values())
    if is_clf and several is None and (suspicion := label_sets.suspicion(label_names or [], labels)):
        notes.append(suspicion)
    if is_clf and several is None and (warning := spelled_alike(label_names or [], labels)):
        notes.append(warning)
    if is_clf and several is not None and (unused := label_sets.unused_separator(several)):
        notes.append(unused)
    return Corpus(splits, texts, (label_column or labels) if is_clf and (several or labels in train.columns) else None,
                  label_names if is_clf else None, several if is_clf else None, valid_name, _words(choice, valid_name), train.revision, notes)  # fmt: skip


def _check_groups(column: str, train: Source, choice: Choice | None) -> None:
    if not train.has(column):
        raise train.lacks(column)
    if choice is None or choice.column is not None:
        raise UserError(f"--group-column {excerpt(column)} keeps groups together where a fraction is held out, and here "
                        "the data or --valid say which rows are for validation; leave it out")  # fmt: skip


def _words(choice: Choice | None, split: str | None) -> str:
    if choice is None:
        return "other files" if split is None else f"the split {split}"
    return f"the column {choice.column}" if choice.column else f"{choice.fraction:g}"


def notes_of(splits: Iterable[Split]) -> list[str]:
    """Sentences for the user about how the files of these splits are read, each once."""
    return list(dict.fromkeys(note for split in splits for part in split.parts for note in part.notes))


def open_rows(
    data: str | InMemory | Source | None,
    text_column: str | None = None,
    *,
    label_column: str | None = None,
    label_names: list[str] | None = None,
    split: str | None = None,
    keep_unlabelled: bool = True,
    skip_unseen: bool = False,
    streaming: bool = True,
    file_by_file: bool = False,
    unlabelled: str | None = None,
    trained_columns: Sequence[str] = (),
    several: LabelSets | None = None,
    access: Access | None = None,
) -> Split:
    """All rows of a corpus as one split (in the order train, valid, test, unsup), or those of one `split`.

    Labels are read if `label_names` are given and the label column (default `label`) exists; unlabelled rows have -1.
    Without `keep_unlabelled`, unlabelled rows are skipped and counted, unsup is not read, and the column must exist.
    With `skip_unseen`, so are rows whose label is not among `label_names`.
    With `file_by_file`, each file is a part of its own, so that rows have numbers of their file.
    Text columns are chosen as in `open_corpus`.
    With `several`, a row may have several of `label_names`; how the corpus writes them is found there.

    Raises:
        UserError: the corpus cannot be opened, or a column or split is missing.
    """
    access = replace(access or Access(), streaming=streaming)
    found = find(data, access)
    if split is not None and SPLIT_NAMES.get(split, split) not in found:
        raise UserError(
            f"{data or 'the embedded sample'} has no split {split}, only {listed(found)}; give one of these"
        )
    order = ("train", "valid", "test", *(["unsup"] if keep_unlabelled else []))
    parts = [found[name] for name in (*order, *sorted(set(found) - {*order, "unsup"})) if name in found]
    if split is not None:
        parts = [found[SPLIT_NAMES.get(split, split)]]
    if file_by_file:
        parts = [file for part in parts for file in by_file(part, access)]
    if not parts:
        raise UserError(f"{data} holds unlabelled texts only; label them or give another corpus")
    labels = _label_column(parts[0], label_column)
    if several is not None:
        several = replace(several.for_rows(parts[0], labels, label_column),
                          unlabelled=None if unlabelled == "none" else as_label(unlabelled))  # fmt: skip
        labels = several.columns[0]
        if len(several.columns) > 1 and (lacking := set(label_names or ()) - set(several.columns)):
            raise UserError(f"--label-column names no column for the label {listed_values(sorted(lacking)[:1])} of the model; name "
                            "one for each of its labels")  # fmt: skip
    elif label_column and not any(part.has(label_column) for part in parts):
        raise parts[0].lacks(label_column)
    texts = _text_columns(parts[0], text_column, labels, trained_columns)
    for part in parts:
        if missing := [name for name in texts if not part.has(name)]:
            raise part.lacks(missing[0])
    for part in parts:
        if not keep_unlabelled and not part.has(labels):
            raise part.lacks_labels(labels)
    if several is not None and label_names is not None:
        for part, name in ((part, name) for part in parts for name in several.columns if not part.has(name)):
            raise part.lacks_labels(name)
        sets = LabelSetSplit(split or "whole", parts, texts, several, keep_unlabelled=keep_unlabelled,
                             skip_unseen=skip_unseen)  # fmt: skip
        label_sets.resolve({"scored": sets}, several, label_names, skip_unseen=skip_unseen)
        return sets
    known = label_names is not None and any(labels in part.columns for part in parts)
    rows = Split(split or "whole", parts, texts, label_column=labels if known else None,
                 label_names=label_names if known else None, keep_unlabelled=keep_unlabelled,
                 skip_unseen=skip_unseen)  # fmt: skip
    rows.unlabelled = None if unlabelled == "none" else as_label(unlabelled)
    return rows


def _unlabelled(found: dict[str, Source], column: str) -> UserError:
    """The mistake of training a classifier on data without a column of labels."""
    if found["train"].documents and len(found) > 1 and not any(source.has(column) for source in found.values()):
        folders = ", ".join(source.what for source in found.values())
        return UserError(f"{folders} hold documents and no class folders, and are named like splits; rename them if they are "
                         "classes, or put the documents of each class into a folder in them")  # fmt: skip
    return found["train"].lacks_labels(column)


def _label_column(source: Source, wanted: str | None) -> str:
    """The wanted column, else `label`; of a table without names, its column of classes."""
    return wanted or (source.default_label if source.default_label and "label" not in source.columns else "label")


def _text_columns(source: Source, wanted: str | None, label_column: str, trained: Sequence[str] = ()) -> list[str]:
    if wanted is None and any(name in source.columns for name in trained):
        missing = [name for name in trained if not source.has(name)]
        if missing:
            raise source.lacks(missing[0], "the model was trained on it; choose one of {} by --text-column")
        return [column for name in trained for column in _text_columns(source, name, label_column)]
    if wanted is not None:
        names = [name.strip() for name in wanted.split(",")] if wanted not in source.columns else [wanted]
        for name in names:
            if not source.has(name):
                raise source.lacks(name or wanted)
            if source.types.get(name, "string") not in ("string", "large_string"):
                others = [other for other in source.columns if other not in (name, label_column)]
                cure = (
                    f"choose one of {listed(others)} by --text-column, or make texts of it"
                    if others
                    else "make texts of it"
                )
                raise UserError(f"column {name} of {source.what} holds {source.types[name]}, no text; {cure}")
        return names
    if "text" in source.columns:
        return _text_columns(source, "text", label_column)
    # "text" may appear after the first rows, but a search for it reads all: only if no other column will do.
    names = [name for name in source.columns if name != label_column
             and source.types.get(name, "string") in ("string", "large_string")]  # fmt: skip
    if len(names) > 1:  # csv columns are all strings: exclude those with only numbers or truth values
        head: Columns = next(source.read(names, 100), {name: [] for name in names})
        names = [name for name in names if any(isinstance(value, str) and not _is_plain(value) for value in head[name])]
    if default := [name for name in source.default_texts if name != label_column]:
        return default
    if len(names) != 1 and source.has("text"):
        return ["text"]
    if len(names) != 1:
        raise source.lacks("text", "choose one of {} by --text-column")
    return names


def _is_plain(text: str) -> bool:
    """Whether it is a number, a truth value or empty; a column of only such values is not a column of texts."""
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in {"", "true", "false"}
    return True
