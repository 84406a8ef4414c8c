"""Corpora and tokenizers of a few lines: a text is its ids, written out."""

from __future__ import annotations

from collections import Counter, namedtuple

import numpy as np
import pytest

from ulmfit.batches.cache import build_or_open

TextBatch = namedtuple("TextBatch", "texts labels rows after")


class FakeTokenizer:
    def __init__(self, vocab_size=1000):
        self.vocab_size = vocab_size
        self.fingerprint = f"tokenizer{vocab_size}"
        self.encoded = []  # every text that was asked for

    def __len__(self):
        return self.vocab_size

    def encode_flat(self, texts):
        self.encoded.extend(texts)
        documents = [np.array(text.split(), dtype=np.int32) for text in texts]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        return np.concatenate([*documents, np.empty(0, dtype=np.int32)]), lengths


class FakeSplit:
    name = "train"

    def __init__(self, documents, labels=None, *, batch_size=3):
        self.documents, self.labels, self.batch_size = documents, labels, batch_size
        self.fingerprint = str(hash(tuple(map(tuple, documents))))
        self.skipped = Counter()
        self.passes = self.checks = 0
        self.starts = []  # where each pass began

    def batches(self, batch_size=None, start=None, until=None):
        self.passes += 1
        self.starts.append(start)
        for first in range(start or 0, len(self.documents), self.batch_size):
            part = slice(first, first + self.batch_size)
            texts = [" ".join(map(str, document)) for document in self.documents[part]]
            yield TextBatch(
                texts,
                self.labels[part] if self.labels else None,
                list(range(2 * first, 2 * (first + len(texts)), 2)),
                first + len(texts),
            )

    def check(self):
        self.checks += 1


def make_documents(num_documents, *, seed=0, longest=12, first_id=10):
    """Documents whose ids are all different, so that an id tells where it comes from."""
    lengths = np.random.RandomState(seed).randint(1, longest + 1, num_documents)
    ends = first_id + np.cumsum(lengths)
    return [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


@pytest.fixture
def fakes():
    return FakeTokenizer, FakeSplit, make_documents


@pytest.fixture
def make_store(tmp_path):
    def make(documents, labels=None, vocab_size=1000):
        return build_or_open(
            FakeSplit(documents, labels), FakeTokenizer(vocab_size), tmp_path / "cache", with_labels=labels is not None
        )

    return make
