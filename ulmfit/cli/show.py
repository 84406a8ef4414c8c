"""show: the first batches of a trainer, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from ulmfit.cli.common import tell_notes, tell_skipped
from ulmfit.cli.reading import ReadingOptions

if TYPE_CHECKING:
    from ulmfit.batches.cache import TokenStore
    from ulmfit.tokenizer.tokenizer import Tokenizer


@dataclass(kw_only=True)
class ShowOptions(ReadingOptions):
    """Show what the first batches of a training look like, in words."""

    tokenizer: str
    """tokenizer.json, or a run directory, a job of fit or a model."""
    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: the embedded sample)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: text, else the only one)."""
    label_column: str | None = None
    """Column with the label, or with lists of labels; several, comma-separated, of 0 and 1 (default: label)."""
    label_separator: str | None = None
    """Between the labels of a cell, of which a row may have any number (default: one label a row)."""
    unlabelled: str | None = None
    """Label of rows without a label; none where each is a class (default: -1 among whole numbers, if that is clear)."""
    task: Literal["lm", "clf"] = "lm"
    """Batches of which trainer."""
    rows: int = 5
    """Rows or documents to show."""
    steps: int = 2
    """Batches to show."""
    batch_size: int | None = None
    """Rows or documents of a batch (default: lm 64, clf 32)."""
    bptt: int = 70
    """Tokens of a row; of a document, those shown."""
    seed: int = 0
    """Seed of the order."""


def show(options: ShowOptions) -> None:
    """Print the first batches of a trainer as words."""
    from ulmfit.cache_folder import cache_folder
    from ulmfit.data.label_sets import labels_of
    from ulmfit.data.mixed_corpus import open_any_corpus
    from ulmfit.tokenizer.tokenizer import Tokenizer
    from ulmfit.training.setup import tokenised

    tokenizer = Tokenizer.from_file(options.tokenizer)
    corpus = open_any_corpus(
        options.data,
        task=options.task,
        text_column=options.text_column,
        label_column=options.label_column,
        label_separator=options.label_separator,
        seed=options.seed,
        unlabelled=options.unlabelled,
        access=options.access(),
    )
    tell_notes(corpus.notes)
    is_clf = options.task == "clf"
    store = tokenised(corpus.splits["train"], tokenizer, cache_folder(), with_labels=is_clf)
    tell_skipped(store.skipped)
    if is_clf:
        assert corpus.label_names is not None, "a corpus with labels"
        several = corpus.label_sets
        names = [", ".join(labels_of(name)) for name in several.sets] if several else corpus.label_names
        _show_documents(options, store, tokenizer, names)
    else:
        _show_rows(options, store, tokenizer)


def _show_rows(options: ShowOptions, store: TokenStore, tokenizer: Tokenizer) -> None:
    from ulmfit.batches.lm import CachedRows

    size = options.batch_size or 64
    source = CachedRows(
        store, batch_size=size, bptt=options.bptt, seed=options.seed, rows=range(min(options.rows, size))
    )
    for batch, _ in islice(source.batches(None), options.steps):
        print(f"epoch {batch.epoch} step {batch.step_in_epoch}: {size} rows of {batch.tokens.shape[1]} tokens")
        for row, (ids, targets) in enumerate(zip(batch.tokens, batch.targets, strict=True)):
            print(f"  row {row}: {_words(tokenizer, ids[targets >= 0])}")


def _show_documents(options: ShowOptions, store: TokenStore, tokenizer: Tokenizer, label_names: list[str]) -> None:
    from ulmfit.batches.documents import DocumentBatches

    labels = store.labels
    assert labels is not None, "a store with labels"
    source = DocumentBatches(store.lengths, batch_size=options.batch_size or 32, seed=options.seed)
    for indices, epoch, step, _ in islice(source.batches(None), options.steps):
        lengths = store.lengths[indices]
        print(f"epoch {epoch} step {step}: {len(indices)} documents of {lengths.min()} to {lengths.max()} tokens")
        for index in indices[: options.rows]:
            ids = store.document(index)
            more = f" ... ({len(ids)} tokens)" if len(ids) > options.bptt else ""
            print(f"  [{label_names[labels[index]]}] {_words(tokenizer, ids[: options.bptt])}{more}")


def _words(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    return " ".join(repr(tokenizer.vocab[token])[1:-1] for token in ids)
