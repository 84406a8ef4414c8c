"""Tokenizer: pieces of words, for languages without spaces and for small vocabularies."""

from __future__ import annotations

import pytest

from ulmfit.errors import UserError
from ulmfit.tokenizer.rules import SPECIALS
from ulmfit.tokenizer.tokenizer import Tokenizer

CHINESE = [
    "\u6211\u559c\u6b22\u8fd9\u90e8\u7535\u5f71\u3002",
    "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d\u770b\u3002",
    "\u6211\u4e0d\u559c\u6b22\u8fd9\u672c\u4e66\uff0c\u5f88\u65e0\u804a\u3002",
] * 20


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("rules", ["fastai1", "fastai2"])
def test_subword_round_trip(kind, rules, tmp_path):
    english = ["Hello world, this IS a Test of pieces.", "The world of tests is large."] * 20
    tokenizer = Tokenizer.train(CHINESE + english, rules=rules, subword=kind, vocab_size=200)
    assert tokenizer.vocab[:9] == SPECIALS[rules] and tokenizer.subword == kind and len(tokenizer) % 8 == 0
    for text in (CHINESE[0], CHINESE[2], "Hello world, this IS a Test.", "the world\nis large"):
        ids = tokenizer.encode(text)[0]
        assert ids[0] == tokenizer.bos_id and tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == text
    assert SPECIALS[rules].index("xxmaj") in tokenizer.encode("Hello")[0]
    tokenizer.save(tmp_path / "t.json")
    again = Tokenizer.from_file(tmp_path / "t.json")
    assert again.fingerprint == tokenizer.fingerprint and again.subword == kind
    if kind == "bpe":  # the unigram trainer adds in the order of its threads
        second = Tokenizer.train(CHINESE + english, rules=rules, subword=kind, vocab_size=200)
        assert second.to_str() == tokenizer.to_str()


def test_subword_pieces_are_shorter_than_sentences():
    tokenizer = Tokenizer.train(CHINESE, subword="unigram", vocab_size=60)
    assert len(tokenizer.tokenize(CHINESE[0])[0]) > 2
    assert len(tokenizer.tokenize(CHINESE[0])[0]) == len(tokenizer.encode(CHINESE[0])[0])


@pytest.mark.parametrize("size", [10, 12, 16, 20, 40, 80])
def test_the_vocabulary_of_pieces_is_no_larger_than_asked_for(size):
    """Characters for which there is no room are unknown, the rarer ones first."""
    texts = ["the cat sat on the mat, and a quick brown fox jumps over 13 lazy dogs"] * 5
    assert 9 < len(Tokenizer.train(texts, subword="bpe", vocab_size=size)) <= size
    if size < 40:
        with pytest.raises(UserError, match=f"--vocab-size {size} has no room for the characters"):
            Tokenizer.train(texts, subword="unigram", vocab_size=size)


@pytest.mark.parametrize("texts", [[], [""], [" "], ["\n"]])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pieces_of_no_text(kind, texts):
    assert Tokenizer.train(texts, subword=kind, vocab_size=100).vocab[:9] == SPECIALS["fastai1"]


def test_pieces_need_no_more_words():
    pieces = Tokenizer.train(["the film and the book"] * 9, subword="bpe", vocab_size=60)
    assert pieces.extended(["tardis tardis"], vocab_size=10).to_str() == pieces.to_str()
