"""The tokenizers of a few words that the tests of this folder share."""

from __future__ import annotations

import pytest

from ulmfit.tokenizer.tokenizer import Tokenizer

TEXTS = ["Hello world, hello again.", "the film and the book", "the end"] * 3


@pytest.fixture(scope="module", params=["fastai1", "fastai2"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, rules=request.param)
