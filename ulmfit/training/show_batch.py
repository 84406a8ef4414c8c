"""show_batch: what the first batches of a training look like, in words; as a table on a terminal and in a notebook."""

from __future__ import annotations

import html
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Literal

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.documents import DocumentBatches
from ulmfit.batches.lm import CachedRows
from ulmfit.cache_folder import cache_folder
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.config_check import check
from ulmfit.data.corpus import Corpus
from ulmfit.data.in_memory import in_memory
from ulmfit.data.label_sets import labels_of
from ulmfit.distributed.runtime import Runtime, open_runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError, one_line
from ulmfit.excerpts import cut, excerpt
from ulmfit.option_types import normalized
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import setup
from ulmfit.training.default_encoder import default_encoder
from ulmfit.training.session import Session
from ulmfit.training.vocabulary import resolve_subword

LM_ROWS, CLF_DOCUMENTS = 64, 32  # of a batch
_LEAST_TEXT = 20  # characters of the column of texts, on a terminal however narrow


@dataclass(frozen=True)
class ShownRow:
    """A row of a batch.

    Attributes:
        mark: its label, of several joined by ", "; of a language model the number of the row.
        words: its tokens as words.
        more: tokens of the document that are not shown.
    """

    mark: str
    words: str
    more: int = 0


@dataclass(frozen=True)
class ShownBatch:
    """The first rows of a batch.

    Attributes:
        title: which step it is, how many rows it has and how long they are.
    """

    title: str
    rows: list[ShownRow]


@dataclass(frozen=True)
class Shown:
    """Batches in words. It prints as a table, also as the last value of a notebook's cell.

    Attributes:
        task: the trainer whose batches they are.
        notes: sentences about how the corpus was read and with which vocabulary.
        skipped: reason -> number of rows that were left out.
    """

    task: Literal["lm", "clf"]
    batches: list[ShownBatch]
    notes: list[str]
    skipped: dict[str, int]

    def lines(self) -> list[str]:
        """One line for each row, for other programs."""
        lines = []
        for batch in self.batches:
            lines.append(batch.title)
            for row in batch.rows:
                mark = f"[{row.mark}]" if self.task == "clf" else f"row {row.mark}:"
                lines.append(f"  {mark} {row.words}{self._rest(row)}")
        return lines

    def table(self, width: int = 120) -> str:
        """A table of at most `width` characters a line."""
        marks = [self._mark(), *(cut(row.mark, 24) for batch in self.batches for row in batch.rows)]
        first = max(map(len, marks))
        room = max(_LEAST_TEXT, width - first - 3)
        lines = []
        for batch in self.batches:
            lines += ["", batch.title, f"{self._mark():<{first}} | text", "-" * (first + 1) + "+" + "-" * (room + 1)]
            for row in batch.rows:
                parts = textwrap.wrap(row.words + self._rest(row), room, break_on_hyphens=False) or [""]
                lines += [
                    f"{cut(row.mark, 24) if part == 0 else '':<{first}} | {text}" for part, text in enumerate(parts)
                ]
        return "\n".join(lines[1:])

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        parts = []
        for batch in self.batches:
            rows = "".join(
                f"<tr><td>{html.escape(row.mark)}</td><td style='text-align: left'>"
                f"{html.escape(row.words + self._rest(row))}</td></tr>"
                for row in batch.rows
            )
            head = f"<thead><tr><th>{self._mark()}</th><th style='text-align: left'>text</th></tr></thead>"
            parts.append(f"<p>{html.escape(batch.title)}</p><table>{head}<tbody>{rows}</tbody></table>")
        return "".join(parts)

    def _mark(self) -> str:
        return "label" if self.task == "clf" else "row"

    @staticmethod
    def _rest(row: ShownRow) -> str:
        return f" ... ({row.more:,} more tokens)" if row.more else ""


def show_batch(
    data: Any = None,
    *,
    task: Literal["lm", "clf"] = "clf",
    tokenizer: str | None = None,
    rows: int = 5,
    steps: int = 1,
    batch_size: int | None = None,
    tokens: int = 70,
    **options: Any,
) -> Shown:
    """The first batches of a training in words, as fastai's show_batch. In a notebook the result is shown as a table.

        ulmfit.show_batch("reviews.csv")
        ulmfit.show_batch(frame, task="lm", label_column="stars")

    Args:
        data: the corpus, as of the trainings: a path, a hub name, a frame, lists.
        task: batches of the classifier's training, or of the language model's, whose rows go on from step to step.
        tokenizer: a tokenizer.json, a run or a model. Without, the vocabulary is the one that `ulmfit.fit` would use: the
            English model's with the corpus's frequent words, or the corpus's own.
        rows: rows or documents to show of a batch.
        steps: batches to show.
        batch_size: rows or documents of a batch; by default 64 (lm) or 32 (clf).
        tokens: length of a row; of a document, the tokens that are shown.
        options: more options of the trainings, such as text_column, label_column, seed.

    Raises:
        UserError: an option, file or column is wrong.
    """
    if task not in ("lm", "clf"):
        raise UserError(f"task is {excerpt(task)}; give lm or clf")
    for name, value, least in (
        ("rows", rows, 1),
        ("steps", steps, 1),
        ("tokens", tokens, 2),
        ("batch_size", batch_size, 1),
    ):
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f"{name} is {excerpt(value)}; give a whole number of {least} or more")
    kind = LMConfig if task == "lm" else ClassifierConfig
    known = {part.name for part in fields(kind)}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"{unknown[0]} is no option of this training; see ulmfit train-{task} --help")
    config = normalized(kind(data=data, **options))
    config.data = in_memory(config.data)
    check(config)
    given = Tokenizer.from_file(tokenizer) if tokenizer is not None else None
    with open_runtime(config) as (runtime, _):
        session = Session(config, runtime, StopRequest(), time.monotonic(), silent=True)
        corpus = setup.corpus_of(session)
        notes = list(corpus.notes)
        words = given or _tokenizer_of_fit(config, corpus, runtime, notes)
        store = setup.tokenised(
            corpus.splits["train"], words, cache_folder(config.cache_dir), with_labels=task == "clf"
        )
        runtime.barrier()
        if task == "lm":
            batches = _rows(store, words, rows, batch_size or LM_ROWS, tokens, config.seed)
        else:
            assert corpus.label_names is not None, "a corpus with labels"
            several = corpus.label_sets
            names = [", ".join(labels_of(name)) for name in several.sets] if several else corpus.label_names
            batches = _documents(store, words, names, rows, batch_size or CLF_DOCUMENTS, tokens, config.seed)
        return Shown(task, list(islice(batches, steps)), notes, dict(store.skipped))


def _tokenizer_of_fit(
    config: LMConfig | ClassifierConfig, corpus: Corpus, runtime: Runtime, notes: list[str]
) -> Tokenizer:
    """The tokenizer that the language model of `ulmfit fit` would have on this corpus."""
    shared = {part.name: getattr(config, part.name) for part in fields(LMConfig) if hasattr(config, part.name)}
    session = Session(LMConfig(**shared), runtime, StopRequest(), time.monotonic(), silent=True)
    pretrained = default_encoder(session, corpus.judged, None)
    session = resolve_subword(session, corpus.splits["train"])
    base = pretrained.tokenizer if pretrained else None
    tokenizer = setup.tokenizer_of(session, corpus.splits["train"], base)
    origin = "the English model's and the corpus's words" if base else "the corpus's words"
    notes.append(f"vocabulary: {origin}, {len(tokenizer):,} in all, as ulmfit fit makes it (--tokenizer names another)")
    return tokenizer


def _rows(store: TokenStore, tokenizer: Tokenizer, rows: int, size: int, bptt: int, seed: int) -> Iterator[ShownBatch]:
    source = CachedRows(store, batch_size=size, bptt=bptt, seed=seed, rows=range(min(rows, size)))
    for batch, _ in source.batches(None):
        title = f"epoch {batch.epoch} step {batch.step_in_epoch}: {size} rows of {batch.tokens.shape[1]} tokens"
        shown = [
            ShownRow(str(row), _words(tokenizer, ids[targets >= 0].tolist()))
            for row, (ids, targets) in enumerate(zip(batch.tokens, batch.targets, strict=True))
        ]
        yield ShownBatch(title, shown)


def _documents(
    store: TokenStore, tokenizer: Tokenizer, names: list[str], rows: int, size: int, tokens: int, seed: int
) -> Iterator[ShownBatch]:
    labels = store.labels
    assert labels is not None, "a store with labels"
    source = DocumentBatches(store.lengths, batch_size=size, seed=seed)
    for indices, epoch, step, _ in source.batches(None):
        lengths = store.lengths[indices]
        title = f"epoch {epoch} step {step}: {len(indices)} documents of {lengths.min()} to {lengths.max()} tokens"
        shown = []
        for index in indices[:rows]:
            ids = store.document(index)
            more = max(0, len(ids) - tokens)
            shown.append(ShownRow(one_line(names[labels[index]]), _words(tokenizer, ids[:tokens].tolist()), more))
        yield ShownBatch(title, shown)


def _words(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    return " ".join(repr(tokenizer.vocab[token])[1:-1] for token in ids)
