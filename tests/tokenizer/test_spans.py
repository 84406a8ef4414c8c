"""Which of the user's words each token comes from."""

from __future__ import annotations

import numpy as np
import pytest

from ulmfit.tokenizer.tokenizer import Tokenizer

CORPUS = ["the film was good and the plot was bad don't like it so no well known"] * 2


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS, min_freq=1)


def by_word(tokenizer, text):
    """Each word of the text with its tokens, and the tokens without a word."""
    text, ids, words, places = tokenizer.encode_words(text)
    tokens = [tokenizer.vocab[index] for index in ids]
    found = [(text[a:b], [tokens[t] for t in np.flatnonzero(places == word)]) for word, (a, b) in enumerate(words)]
    return found, [tokens[t] for t in np.flatnonzero(places < 0)]


def test_the_words_are_those_of_the_text(tokenizer):
    words, rest = by_word(tokenizer, "The FILM wasn't Well-known, (zyzzyva)\n\nbad!!!!")
    assert words == [
        ("The", ["xxmaj", "the"]),
        ("FILM", ["xxup", "film"]),
        ("wasn't", ["was", "n't"]),
        ("Well-known", ["xxmaj", "well", "xxunk", "known"]),
        (",", ["xxunk"]),
        ("(", ["xxunk"]),
        ("zyzzyva", ["xxunk"]),
        (")", ["xxunk"]),
        ("bad", ["bad"]),
        ("!!!!", ["xxrep", "xxunk", "xxunk"]),
    ]
    assert rest == ["xxbos", "xxunk"]


def test_repeated_words_are_one_and_line_breaks_are_none(tokenizer):
    words, rest = by_word(tokenizer, "no no no no no, good<br /><br />the &amp; film")
    assert words[0] == ("no no no no", ["xxwrep", "xxunk", "no"])  # the count is unknown
    assert [word for word, _ in words] == ["no no no no", "no", ",", "good", "the", "&amp;", "film"]
    assert all(tokens for _, tokens in words)
    assert rest == ["xxbos", "xxunk"]


def test_a_repeated_character_of_a_script_without_spaces_is_one_word(tokenizer):
    words, _ = by_word(tokenizer, "\u592a \u54c8\u54c8\u54c8\u54c8\u54c8 \u7b11\u7b11")
    assert [word for word, _ in words] == ["\u592a", "\u54c8" * 5, "\u7b11\u7b11"] and all(
        tokens for _, tokens in words
    )


def test_the_marks_between_columns_are_no_words(tokenizer):
    words, _ = by_word(tokenizer, "xxfld 1 good film xxfld 2 bad plot")
    assert [word for word, _ in words] == ["good", "film", "bad", "plot"]


def test_every_token_has_its_place_whatever_the_text(tokenizer):
    pieces = Tokenizer.train([*CORPUS, "\u6211\u559c\u6b22\u7535\u5f71 \u6211\u559c\u6b22"] * 3, subword="bpe",
                             vocab_size=60, min_freq=1)  # fmt: skip
    texts = ["", "   ", "xxmaj", "a", "\ud83d\ude00 film", "\udc00 bad", "\U0001f600\ufe0f\u200d good", "e.g. U.S.A. 3.5/10",
             "\u0928\u092e\u0938\u094d\u0924\u0947 good", "\u6211\u559c\u6b22\u7535\u5f71 film", "&#39;good&#39;", "-----",
             "<br<br /><br", "xxrep xxwrep no", "no no no no", "\x00\x1b[31mbad"]  # fmt: skip
    for one in (tokenizer, pieces):
        for given in texts:
            text, ids, words, places = one.encode_words(given)
            assert len(places) == len(ids) and places.max(initial=-1) < len(words)
            assert ids.tolist() == one.encode(given)[0].tolist() if given.strip() else True
            assert all(0 <= a < b <= len(text) for a, b in words)
            assert all(left[1] <= right[0] for left, right in zip(words, words[1:], strict=False))
            known = places[places >= 0]
            assert (np.diff(known) >= 0).all(), "words have the order of their tokens"
    words, _ = by_word(pieces, "\u6211\u559c\u6b22\u7535\u5f71 film")
    assert len(words) > 2, "a script without spaces is cut by the tokens"
