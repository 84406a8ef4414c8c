"""Tokenizer: texts that regex engines dislike end in tokens, not in a panic or after minutes."""

from __future__ import annotations

import os
import random

import pytest

from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer.tokenizer import Tokenizer

NUM_FUZZED = int(os.environ.get("ULMFIT_FUZZ", "3000"))  # the full run is 20000

_ALPHABETS = [
    " \n\t",
    "abcABC ",
    "'\"().,:;!?-_*&%$#@/\\<>=+~^|",
    "0123456789.,-%km",
    "\u00a0\u2028\u3000 \x85\x1f\x00\x01\ufdd1\ufdd5",
    "\u00e9\u00df\u0130\u0131\u03a3\u03c2\ufb01\u01c5",
    "\u4f60\u597d\u3002\uff0c\u3001\u65e5\u672c\u8a9e\u30fc",
    "\U0001f600\U0001f3fd\u200d\ufe0f\u00b0\u00a9",
    "\u0301\u0300a",
    "xxmaj xxup xxrep ",
    "&amp;#39;<br />quot;<unk> @-@ ",
]
_FRAGMENTS = [
    "don't",
    "I'm",
    "Mr.",
    ":)",
    "8)",
    "...",
    "''",
    "n't",
    "cannot",
    "10am",
    "U.S.A.",
    "xxrep 4 !",
    "<br /><br />",
    "&lt;",
    "\\n",
    "--",
    "e.g.",
    "can't've",
    "a.",
    "'",
]


def fuzzed_texts(number: int, seed: int = 0):
    """Strings that regex engines dislike: long runs, punctuation, random characters, repeated fragments."""
    draw = random.Random(seed)
    for _ in range(number):
        parts = []
        for _ in range(draw.randint(0, 12)):
            kind = draw.random()
            if kind < 0.35:
                alphabet = draw.choice(_ALPHABETS)
                parts.append("".join(draw.choice(alphabet) for _ in range(draw.randint(1, 30))))
            elif kind < 0.5:
                parts.append(draw.choice(draw.choice(_ALPHABETS)) * draw.choice([1, 2, 3, 4, 5, 10, 99, 1000]))
            elif kind < 0.6:
                parts.append((draw.choice(_FRAGMENTS) + draw.choice([" ", "", "-", ", ", "\n"])) * draw.randint(1, 60))
            elif kind < 0.7:
                codes = [draw.choice([draw.randrange(32, 0xD800), draw.randrange(0xE000, 0x110000)]) for _ in range(9)]
                parts.append("".join(map(chr, codes)))
            elif kind < 0.75:
                parts.append("".join(draw.choice(".,!?'\"()-") for _ in range(draw.randint(100, 1000))))
            else:
                parts.append(draw.choice(_FRAGMENTS) + draw.choice(["", " "]))
        yield "".join(parts)


@pytest.mark.slow
def test_no_panic_on_fuzzed_texts(tokenizer):
    texts = list(fuzzed_texts(NUM_FUZZED))
    for start in range(0, len(texts), 500):  # a panic is a BaseException and would end the test
        batch = texts[start : start + 500]
        ids, lengths = tokenizer.encode_flat(batch)
        assert len(lengths) == len(batch) and lengths.min() >= 1 and lengths.sum() == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("char", ["a", ".", " ", "A", "(", "\n", "\u00e9"])
def test_no_panic_on_a_megabyte_of_one_character(tokenizer, char):
    assert len(tokenizer.encode(char * 1_000_000)[0]) >= 1


@pytest.mark.parametrize("unit", ["()", ".,", "aB", "a-", "'\"", "A."])
def test_no_panic_on_a_long_word_of_two_characters(tokenizer, unit):
    assert len(tokenizer.encode(unit * 20_000)[0]) > 1


@pytest.mark.slow
def test_no_panic_on_millions_of_words_without_a_repeat(tokenizer):
    if tokenizer.rules == "fastai1" and "ULMFIT_FUZZ" not in os.environ:
        pytest.skip("ULMFIT_FUZZ, as tests/run_long.sh has it; every change: fastai2, whose search walks on over words")
    assert len(tokenizer.encode("a b " * 2_000_000)[0]) == 4_000_001


@pytest.mark.parametrize("lead", range(8))
def test_repeats_are_found_wherever_the_search_for_them_rests(tokenizer, monkeypatch, lead):
    monkeypatch.setattr(text_rules, "_WALK", 3)
    resting = text_rules.normalizer(tokenizer.rules)
    words = "".join(f"w{i} " for i in range(lead))
    marks = {  # under fastai1 and fastai2
        "no no no no no yes yes yes ": (1, 2),
        "no no no yes yes yes yes ": (1, 2),
        "go\nno no no no ok": (1, 1),
        "ha-ha-ha-ha- x": (1, 0),
        "no     no     no     no     way": (1, 1),
        "well!!!! so!!!! it!!!! goes!!!! on": (0, 0),
    }
    for text, counts in marks.items():
        plain = tokenizer._backend.normalizer.normalize_str(words + text)
        assert resting.normalize_str(words + text) == plain
        assert plain.count("xxwrep") == counts[tokenizer.rules == "fastai2"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_no_panic_of_pieces(kind):
    tokenizer = Tokenizer.train(["\u6211\u559c\u6b22\u8fd9\u90e8\u7535\u5f71\u3002"] * 60, subword=kind, vocab_size=60)
    texts = list(fuzzed_texts(300, seed=1))
    assert len(tokenizer.encode_flat(texts)[1]) == len(texts)
