"""Opens several sources with weights as one corpus of a language model.

Each source is a corpus of its own (`open_corpus`): its files, columns, splits, held-out rows and rows at fault are those
of a run with this source alone. A `MixedSplit` is the splits of one name of all sources. What a weight means is described
in `ulmfit.batches.mixture`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ulmfit.data.corpus import Corpus, open_corpus
from ulmfit.data.fingerprint import Access, hash_of
from ulmfit.data.mixture_options import Ingredient, ingredients, is_mixture
from ulmfit.data.source import Source
from ulmfit.data.splits import Split, TextBatch
from ulmfit.errors import UserError
from ulmfit.excerpts import cut

__all__ = ["MixedCorpus", "MixedSplit", "Part", "open_any_corpus"]

_BLOCK = 100  # texts read of a source at a time, so that a few thousand texts show all sources
_ACCESS = ("separator", "encoding", "header")  # options that are settings of `Access`


@dataclass(frozen=True)
class Part:
    """A source's rows in a split of a mixture.

    Attributes:
        name: of the source.
        weight: its share of the tokens, in (0, 1]; None where each source is read in proportion to its tokens.
        split: its rows.
    """

    name: str
    weight: float | None
    split: Split


class MixedSplit:
    """The rows of several sources.

    `batches` yields each text once, whatever the weights: for vocabulary, duplicates and first looks. Its texts come from
    all sources in turn, in proportion to the weights as long as all have some, so that the first ones show all sources.
    """

    choice = None  # each source has its own

    def __init__(self, name: str, members: list[Part]) -> None:
        self.name, self.members = name, members

    @property
    def parts(self) -> list[Source]:
        """The sources of all members."""
        return [source for member in self.members for source in member.split.parts]

    @property
    def fingerprint(self) -> str:
        """16 hex digits, depend on weights and rows, and not on the names of the sources."""
        return hash_of(("mixture", [(member.weight, member.split.fingerprint) for member in self.members]))

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out by reason, over all sources; complete after a full pass of `batches`."""
        return sum((member.split.skipped for member in self.members), Counter[str]())

    def expected_rows(self) -> int | None:
        """About how many rows there are; None if one source does not know."""
        numbers = [member.split.expected_rows() for member in self.members]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    def batches(self, batch_size: int = 1000) -> Iterator[TextBatch]:
        """Yield each text once, in batches of one source each. Raises as `Split.batches`."""
        size = min(batch_size, _BLOCK)
        passes = {number: member.split.batches(size) for number, member in enumerate(self.members)}
        read = [0] * len(self.members)
        while passes:
            number = min(passes, key=lambda number: (read[number] / (self.members[number].weight or 1.0), number))
            batch = next(passes[number], None)
            if batch is None:
                del passes[number]
                continue
            read[number] += len(batch.texts)
            yield batch._replace(after={"row": sum(read)})

    def readable_rows(self, group_column: str | None, *, strict: bool, batch_size: int = 1000) -> (
            Iterator[tuple[list[str], list[str | None], list[Any]]]):  # fmt: skip
        """As `Split.readable_rows`, of one source after another."""
        for member in self.members:
            yield from member.split.readable_rows(group_column, strict=strict, batch_size=batch_size)


@dataclass
class MixedCorpus(Corpus):
    """The splits of several sources, each a `MixedSplit` of the sources that have it."""

    shared_fraction: str | None = None  # what --valid means for every source, where it is a fraction

    @property
    def fraction(self) -> str | None:
        return self.shared_fraction

    def __post_init__(self) -> None:
        """Nothing: each source counts its rows at fault itself."""


def open_any_corpus(data: Any, *, task: str, access: Access | None = None, **options: Any) -> Corpus:
    """As `open_corpus`; for task "lm", `data` may also name several sources (see `mixture_options`).

    Raises:
        UserError: as `open_corpus`; or a mixture without weights is to be streamed.
    """
    if task != "lm" or not is_mixture(data):
        return open_corpus(data, task=task, access=access, **options)
    sources = ingredients(data)
    for source in sources:
        if is_mixture(source.data):
            raise UserError(
                f"the source {source.name} of {cut(data)} is a mixture itself; give its sources, each with its weight"
            )
    access = access or Access()
    total = sum(source.weight or 0.0 for source in sources)
    if options.get("streaming") and not total:
        raise UserError(f"{data} gives no weights, and the sizes of streamed sources are not known; give each a weight")
    shares = [None if source.weight is None else source.weight / total for source in sources]
    corpora = [_opened(source, access, options) for source in sources]
    splits: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        members = [Part(source.name, share, corpus.splits[split])
                   for source, share, corpus in zip(sources, shares, corpora, strict=True) if split in corpus.splits]  # fmt: skip
        if members:
            splits[split] = MixedSplit(split, members)
    return MixedCorpus(
        splits,
        text_columns=_common([corpus.text_columns for corpus in corpora]) or [],
        label_column=None,
        label_names=None,
        valid_split=_common([corpus.valid_split for corpus in corpora]),
        valid=_common([corpus.valid for corpus in corpora])
        or "; ".join(f"{source.name}: {corpus.valid}" for source, corpus in zip(sources, corpora, strict=True)),
        revision={
            source.name: corpus.revision
            for source, corpus in zip(sources, corpora, strict=True)
            if isinstance(corpus.revision, str)
        }
        or None,
        notes=list(dict.fromkeys(note for corpus in corpora for note in corpus.notes)),
        shared_fraction=_common([corpus.fraction for corpus in corpora]),
    )


def _opened(source: Ingredient, access: Access, options: dict[str, Any]) -> Corpus:
    own = {name: value for name, value in source.options.items() if name in _ACCESS}
    revision = access.revision.get(source.name) if isinstance(access.revision, Mapping) else None
    return open_corpus(
        source.data,
        task="lm",
        access=replace(access, revision=revision, **own),
        **options | {name: value for name, value in source.options.items() if name not in _ACCESS},
    )


def _common(values: list[Any]) -> Any:
    """The value that all have; None if they differ."""
    return values[0] if all(value == values[0] for value in values) else None
