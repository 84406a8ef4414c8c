"""Agreement with what fastai 1 and fastai 2 print, token by token.

The rules were written against other reviews (the unsupervised ones), none of the reviews used here.
"""

from __future__ import annotations

import difflib
import json
import lzma
import os
from pathlib import Path

import pytest

from tests import golden as reference
from ulmfit.tokenizer.tokenizer import Tokenizer

GOLDEN = os.environ.get("ULMFIT_GOLDEN")
DATA = os.environ.get("ULMFIT_DATA")
VERSIONS = ["1", "2"]


@pytest.fixture(scope="module", params=VERSIONS)
def version(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(version) -> Tokenizer:
    return Tokenizer.train(["a b", "a b"], rules=f"fastai{version}")


def test_tokens_of_the_table(version, tokenizer):
    for text, tokens in reference.table(version)[f"tok_v{version}"]:
        ours = tokenizer.tokenize(text)[0]
        if version == "2":  # the table was printed before fastai's last rule, which writes spaces as U+2581
            ours = [token.replace("\u2581", " ") for token in ours]
        assert ours == tokens, text


@pytest.mark.parametrize("words", [5, 7, 8])
def test_vocabulary_padding_of_fastai_1(words):
    length, num_padding, head = reference.table("1")[f"vocab_v1_{words}"]
    vocab = Tokenizer.train([f"w{i}" for i in range(words)] * 2).vocab
    assert vocab[: len(head)] == head
    assert len(vocab) == length
    assert sum(token.startswith("xxfake") for token in vocab) == num_padding == len(set(vocab)) - 9 - words


@pytest.mark.skipif(not (DATA and GOLDEN), reason="ULMFIT_DATA and ULMFIT_GOLDEN are not set")
def test_tokens_of_a_thousand_reviews(version, tokenizer):
    parquet = pytest.importorskip("pyarrow.parquet")
    texts: dict[tuple, str] = {}
    total = wrong = documents = 0
    with lzma.open(Path(GOLDEN, f"imdb_tokens_v{version}.jsonl.xz"), "rt", encoding="utf-8") as lines:
        golden = [json.loads(line) for line in lines]
    for split in {g["split"] for g in golden}:
        rows = parquet.read_table(Path(DATA, "imdb", f"{split}.parquet"), columns=["id", "label", "text"]).to_pylist()
        texts |= {(split, row["id"], row["label"]): row["text"] for row in rows}
    ours = tokenizer.tokenize([texts[g["split"], g["id"], g["label"]] for g in golden])
    for got, expected in zip(ours, (g["tokens"] for g in golden), strict=True):
        total += len(expected)
        documents += got == expected
        if got != expected:  # the blocks of difflib bound the edit distance from above
            codes = difflib.SequenceMatcher(None, got, expected, autojunk=False).get_opcodes()
            wrong += sum(max(b - a, d - c) for kind, a, b, c, d in codes if kind != "equal")
    print(f"fastai{version}: {100 * (1 - wrong / total):.4f} % of {total} tokens, {documents} whole reviews")
    assert total > 300_000
    assert wrong <= 0.001 * total
