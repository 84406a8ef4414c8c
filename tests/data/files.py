"""A small corpus of 60 rows in several formats, and what reads it back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

NUM_ROWS = 60
TEXTS = [f"a film about number {number}, again" for number in range(NUM_ROWS)]
LABELS = [number % 2 for number in range(NUM_ROWS)]
CSV = "label,text\n" + "".join(f'{label},"{text}"\n' for label, text in zip(LABELS, TEXTS, strict=True))
MODES = pytest.mark.parametrize("streaming", (False, True), ids=("map", "stream"))


def write(path: str, content: str | bytes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def whole(split, batch_size=7):
    """(texts, labels, rows) of a full pass."""
    batches = list(split.batches(batch_size))
    labels = None if batches[0].labels is None else [label for batch in batches for label in batch.labels]
    assert all(0 < len(batch.texts) <= batch_size and len(batch.texts) == len(batch.rows) for batch in batches)
    return ([text for batch in batches for text in batch.texts], labels,
            [row for batch in batches for row in batch.rows])  # fmt: skip


def write_acl(folder: str, per_class: int = 30) -> None:
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            for number in range(per_class):
                write(f"{folder}/{split}/{name}/{number}_7.txt", f"{split} {name} {number}<br />\nsecond line")
        write(f"{folder}/{split}/urls_pos.txt", "http://example.org")
    for number in range(per_class):
        write(f"{folder}/train/unsup/{number}_0.txt", f"unsup {number}")
    write(f"{folder}/README", "no data")


class Hub:
    """Stands in for the hub: what `HfApi.dataset_info` and `load` answer, and the revisions that were asked for.

    `newest` is the newest revision. `load(revision, streaming)` gives the splits. While `down`, nothing can be reached.
    """

    def __init__(self, monkeypatch, load) -> None:
        self.newest, self.down, self.loaded = "a" * 40, False, []
        self._load = load
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)
        monkeypatch.setattr("ulmfit.data.sources.load", self.load)

    def dataset_info(self, name, *, revision=None, timeout):
        if self.down:
            raise OSError("no route to the hub")
        return SimpleNamespace(sha=revision or self.newest)

    def load(self, name, configuration, *, revision, streaming):
        assert not self.down, "the hub is asked though it cannot be reached"
        self.loaded.append((name, configuration, revision))
        return self._load(revision, streaming)


def jsonl() -> str:
    return "".join(f'{{"text": "{text}", "label": {label}}}\n' for text, label in zip(TEXTS, LABELS, strict=True))
