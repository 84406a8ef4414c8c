"""Counts texts of the validation and test splits that training has too, by 64-bit hashes in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from ulmfit.data.corpus import Corpus
from ulmfit.data.holdout import HeldOut, unit_hashes
from ulmfit.data.splits import Split
from ulmfit.files import write_text

MOST_HASHES = 2**22  # of a split, in memory; of a larger split, the texts with the smallest hashes are counted


def duplicate_notes(corpus: Corpus, cache_dir: Path | None, beat: Callable[[], None]) -> list[str]:
    """A sentence for each split with texts that are in training too. It reads all texts once, unless it is cached.

    Args:
        cache_dir: of the counts. It is no error if it cannot be read or written.
        beat: heartbeat, called for each batch.
    """
    others = {name: split for name, split in corpus.splits.items() if name != "train" and not _is_disjoint(name, split)}
    if not others:
        return []
    file = None if cache_dir is None else cache_dir / "duplicates" / f"{corpus.fingerprint}.json"
    counts: dict[str, list[int]] = {}
    with suppress(OSError, ValueError):
        stored = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
        if stored.keys() == others.keys() and all(isinstance(count, list) for count in stored.values()):
            counts = stored
    if not counts:
        counts = shared_texts(corpus.splits["train"], others, beat)
        with suppress(OSError):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(counts))
    return [
        f"{name}: {'about ' if exact < total else ''}{shared * total // max(1, exact):,} of {total:,} texts "
        f"({shared / exact:.1%}) are also in training, which makes its scores too good"
        for name, (shared, exact, total) in counts.items()
        if shared
    ]


def _is_disjoint(name: str, split: Split) -> bool:
    """Whether a split was held out of training by texts, so that it can have none of its texts."""
    choice = split.choice
    return name == "valid" and isinstance(choice, HeldOut) and choice.group_column is None


def shared_texts(train: Split, others: dict[str, Split], beat: Callable[[], None]) -> dict[str, list[int]]:
    """By split: [texts that are in `train` too, texts that were compared, texts in all], counting each row."""
    kept, totals = {}, {}
    for name, split in others.items():
        kept[name], totals[name] = _smallest(_hashes(split, beat))
    known = np.unique(np.concatenate(list(kept.values())))
    found = np.zeros(len(known) + 1, dtype=bool)
    for hashes in _hashes(train, beat):
        places = np.searchsorted(known, hashes)
        found[places[np.append(known, 0)[places] == hashes]] = True
    shared = known[found[: len(known)]]
    return {name: [int(np.isin(kept[name], shared).sum()), len(kept[name]), totals[name]] for name in others}


def _smallest(parts: Iterator[np.ndarray]) -> tuple[np.ndarray, int]:
    """(the hashes below a bound, which is lowered until at most `MOST_HASHES` are left, number of all)."""
    kept, total, bound = np.empty(0, "<u8"), 0, 2**64 - 1
    for hashes in parts:
        total += len(hashes)
        kept = np.concatenate([kept, hashes[hashes <= np.uint64(bound)]])
        while len(kept) > MOST_HASHES and bound:
            bound //= 2
            kept = kept[kept <= np.uint64(bound)]
    return kept, total


def _hashes(split: Split, beat: Callable[[], None]) -> Iterator[np.ndarray]:
    for texts, _, _ in split.readable_rows(None, strict=False, batch_size=10_000):
        beat()
        yield unit_hashes(texts, [], 0)
