"""What the console says of the data before the first step, and warnings about classes with few documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.mixed_stream import MixedStreamedRows
from ulmfit.batches.mixture import MixedStore
from ulmfit.data.corpus import Corpus
from ulmfit.data.faults import reasons
from ulmfit.excerpts import class_name, listed

MOST_CLASSES = 6  # whose shares are told
FEW = 10  # documents of a class in training, below which a line warns


def description(
    corpus: Corpus, stores: Mapping[str, TokenStore], label_names: Sequence[str] = (), sets: np.ndarray | None = None
) -> list[str]:
    """The data in two lines: rows and classes of each split and columns; lengths, and rows left out by reason.

    Args:
        stores: by split; the training split of a stream has none.
        label_names: the classes of a classifier.
        sets: as of `LabelSets.matrix`, where a class number of a store is a set of labels.
    """
    splits = [f"{name} {_rows(stores.get(name), label_names, sets)}" for name in corpus.splits]
    columns = [*corpus.text_columns, *([corpus.label_column] if corpus.label_column else [])]
    of_each = f"; column{'s' * (len(columns) > 1)} {listed(columns)}" if columns else ""
    lines = [f"data: {', '.join(splits)}{of_each}"]
    shown = stores.get("train", next(iter(stores.values()), None))
    if shown is not None:
        lines.append(
            f"texts: median {np.median(shown.lengths):,.0f} and longest {int(shown.lengths.max()):,} tokens; "
            f"{_left_out(stores)}"
        )
    return lines


def mixture_of(texts: object) -> dict[str, dict[str, float]]:
    """The sources of a mixture by name: share of the tokens; for cached ones also tokens, tokens an epoch, passes an epoch.

    Empty for one corpus.
    """
    if isinstance(texts, MixedStreamedRows):
        return {name: {"share": weight} for name, weight in zip(texts.names, texts.weights, strict=True)}
    if not isinstance(texts, MixedStore):
        return {}
    return {
        name: {"share": share, "tokens": store.num_tokens, "tokens_per_epoch": quota, "passes_per_epoch": passes}
        for (name, share, store), quota, passes in zip(texts.parts(), texts.quotas, texts.passes, strict=True)
    }


def mixture_line(sources: Mapping[str, Mapping[str, float]]) -> str:
    """What `mixture_of` found, in a line."""
    told = []
    for name, source in sources.items():
        passes = source.get("passes_per_epoch")
        more = f" ({source['tokens']:,} tokens, read {passes:.3g} times an epoch)" if passes is not None else ""
        told.append(f"{name} {source['share']:.1%}{more}")
    return f"mixture, by tokens: {', '.join(told)}"


def warnings_about_classes(
    stores: Mapping[str, TokenStore], label_names: Sequence[str], sets: np.ndarray | None = None
) -> list[str]:
    """A line about classes with fewer than `FEW` documents in training, and one about classes without validation."""
    counts = {name: _counts(store, label_names, sets) for name, store in stores.items()}
    lines = []
    if rare := [index for index, count in enumerate(counts["train"]) if count < FEW]:
        each = [f"{class_name(label_names[index], index)} ({counts['train'][index]:,})" for index in rare]
        lines.append(f"warning: fewer than {FEW} training documents of the class {listed(each)}; it is hardly learnt")
    if "valid" in counts and (missing := [index for index, count in enumerate(counts["valid"]) if count == 0]):
        names = listed(class_name(label_names[index], index) for index in missing)
        lines.append(
            f"warning: no validation document of the class {names}; the scores do not tell how it is predicted"
        )
    return lines


def _rows(store: TokenStore | None, label_names: Sequence[str], sets: np.ndarray | None) -> str:
    if store is None:
        return "a stream"
    rows = f"{store.num_documents:,} rows"
    if not label_names or not store.num_documents:
        return rows
    counts = _counts(store, label_names, sets)
    whole = counts.sum() if sets is None else store.num_documents
    order = np.argsort(-counts, kind="stable")
    shares = [
        f"{class_name(label_names[index], int(index))} {counts[index] / whole:.0%}" for index in order[:MOST_CLASSES]
    ]
    more = [f"{len(order) - MOST_CLASSES:,} more classes"] if len(order) > MOST_CLASSES else []
    return f"{rows} ({', '.join([*shares, *more])})"


def _counts(store: TokenStore, label_names: Sequence[str], sets: np.ndarray | None) -> np.ndarray:
    """Documents of each class, int64 [C]."""
    assert store.labels is not None, "a store with labels"
    if sets is not None:
        return (np.bincount(store.labels, minlength=len(sets)) @ sets).astype(np.int64)
    return np.bincount(store.labels, minlength=len(label_names))


def _left_out(stores: Mapping[str, TokenStore]) -> str:
    found = [f"{name} {reasons(store.skipped)}" for name, store in stores.items() if store.skipped]
    return f"left out: {'; '.join(found)}" if found else "no row left out"
