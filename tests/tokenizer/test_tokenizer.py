"""Tokenizer: interface, vocabulary, robustness, decoding. For fastai see test_tokenizer_golden.py."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import tokenizers

from ulmfit.errors import UserError
from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer.rules import SPECIALS
from ulmfit.tokenizer.tokenizer import Tokenizer

TEXTS = ["Hello world, hello again.", "the film and the book", "the end"] * 3
NUM_FUZZED = int(os.environ.get("ULMFIT_FUZZ", "3000"))  # the full run is 20000


@pytest.fixture(scope="module", params=["fastai1", "fastai2"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, rules=request.param)


def test_special_tokens_have_the_order_of_the_rules(tokenizer):
    assert tokenizer.vocab[:9] == SPECIALS[tokenizer.rules]
    assert (tokenizer.unk_id, tokenizer.pad_id, tokenizer.bos_id) == (0, 1, 2)
    assert tokenizer.special_ids == frozenset(range(9))


def test_vocabulary_order_is_count_then_alphabet():
    tokenizer = Tokenizer.train(["b a c c xxmaj xxunk", "a b c once"], min_freq=2)
    assert tokenizer.vocab[9:12] == ["c", "a", "b"]
    assert tokenizer.vocab[12:] == [f"xxfake{i}" for i in range(1, 5)]
    assert len(tokenizer) % 8 == 0 and len(set(tokenizer.vocab)) == len(tokenizer)


def test_vocabulary_is_cut_at_the_limit_and_not_padded_there():
    tokenizer = Tokenizer.train(["a b c d", "c a b d", "a b c", "b a", "a"], vocab_size=12)
    assert tokenizer.vocab[9:] == ["a", "b", "c"]


def test_the_vocabulary_is_not_larger_than_its_limit():
    tokenizer = Tokenizer.train([" ".join(f"w{i}" for i in range(9))] * 2, vocab_size=20)
    assert len(tokenizer) == 20 and tokenizer.vocab[-2:] == ["xxfake1", "xxfake2"]
    assert len(tokenizer.extended(["w0"], vocab_size=20)) == 20


def test_training_is_deterministic():
    assert Tokenizer.train(TEXTS).to_str() == Tokenizer.train(iter(TEXTS)).to_str()


def test_encode_flat_is_encode_joined(tokenizer):
    texts = [*TEXTS, "", "unknownword", "  "]
    ids, lengths = tokenizer.encode_flat(texts)
    assert ids.dtype == np.int32 and lengths.dtype == np.int64
    separate = tokenizer.encode(texts)
    assert np.array_equal(np.concatenate(separate), ids)
    assert [len(x) for x in separate] == lengths.tolist()
    assert all(x[0] == tokenizer.bos_id and x.dtype == np.int32 for x in separate)
    assert separate[-3].tolist() == [tokenizer.bos_id] and separate[-2].tolist() == [2, 0]
    known = {word: i for i, word in enumerate(tokenizer.vocab)}
    for tokens, row in zip(tokenizer.tokenize(texts), separate, strict=True):
        assert [known.get(token, 0) for token in tokens] == row.tolist()


def test_nothing_to_encode(tokenizer):
    ids, lengths = tokenizer.encode_flat([])
    assert len(ids) == len(lengths) == 0 and tokenizer.encode([]) == []


def test_saved_file_is_the_whole_pipeline(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (again.fingerprint, again.rules, again.vocab) == (tokenizer.fingerprint, tokenizer.rules, tokenizer.vocab)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Hello THE film,\n\nagain!!!!"
    assert plain.encode(text).ids == tokenizer.encode(text)[0].tolist()
    assert len(again.fingerprint) == 16 and int(again.fingerprint, 16) >= 0


def test_fingerprint_follows_content():
    assert Tokenizer.train(TEXTS).fingerprint != Tokenizer.train([*TEXTS, "more more"]).fingerprint


@pytest.mark.parametrize("content", [None, "{", "[]", b"\xff\xfe", json.dumps({"model": {}})])
def test_bad_file_is_a_users_mistake(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.from_file(path)


def test_padding_and_truncation_of_another_program_change_no_ids(tokenizer):
    texts = ["Hello THE film, again!", "film"]
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    backend.enable_padding(length=9)
    backend.enable_truncation(2)
    again = Tokenizer.from_str(backend.to_str())
    assert [row.tolist() for row in again.encode(texts)] == [row.tolist() for row in tokenizer.encode(texts)]
    assert again.encode_words(texts[1])[1].tolist() == tokenizer.encode(texts[1])[0].tolist()


def test_foreign_tokenizer_is_refused():
    foreign = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="not made by ulmfit"):
        Tokenizer.from_str(foreign.to_str())


@pytest.mark.parametrize("options", [{"rules": "fastai3"}, {"subword": "wordpiece"}, {"vocab_size": 9}])
def test_bad_training_options(options):
    with pytest.raises(UserError):
        Tokenizer.train(TEXTS, **options)


def test_text_must_be_a_string(tokenizer):
    with pytest.raises(UserError, match="float"):
        tokenizer.encode_flat([float("nan")])


def test_lone_surrogate_becomes_the_replacement_character(tokenizer):
    assert tokenizer.tokenize("a \ud800 b") == [["xxbos", "a", "\ufffd", "b"]]
    assert len(tokenizer.encode("a \udfff b")[0]) == 4


def test_field_marks_survive(tokenizer):
    tokens = tokenizer.tokenize("xxfld 1 the title xxfld 2 the body")[0]
    assert tokens == "xxbos xxfld 1 the title xxfld 2 the body".split()
    assert tokenizer.encode("xxfld 1 x")[0][1] == SPECIALS[tokenizer.rules].index("xxfld")


@pytest.mark.parametrize("text", ['no, no, no, "no, she said', "run run run (run (fast", "very very very -very -good"])
def test_a_unit_that_ends_otherwise_is_no_repeat(text):
    """fastai 1 wants the same word with the same characters behind it four times."""
    assert "xxwrep" not in Tokenizer.train([text] * 2, min_freq=1).tokenize(text)[0]


@pytest.mark.parametrize("count", [4, 9, 10, 11, 20, 99, 100, 101, 110, 200, 305, 999])
def test_repeats_are_counted(tokenizer, count):
    assert tokenizer.tokenize("x " + "!" * count)[0][2:] == ["xxrep", str(count), "!"]
    assert tokenizer.tokenize("so " + "no " * count + "way")[0] == ["xxbos", "so", "xxwrep", str(count), "no", "way"]


def test_very_long_repeats_saturate(tokenizer):
    assert tokenizer.tokenize("x " + "!" * 5000)[0][2:] == ["xxrep", "999", "!"]


# ------------------------------------------------------------------------------------------------ robustness

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


# -------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "text",
    [
        "Hello there, don't go!",
        "The U.S.A. (a country) isn't small.",
        "The \"quoted\" word and 'another' one.",
        "I can't say: it's well-known; they'll see.",
        "First paragraph.\n\nSecond one.",
        "LOUD and Quiet",
        "Wow!!!! It was soooo good",
        "It cost 10000000 and 2/10 for $5.",
        "The dogs' bone... gone?",
        "We cannot wait, gonna leave",
    ],
)
def test_decode_restores_readable_text(text):
    tokenizer = Tokenizer.train([text, "the"] * 2)
    assert tokenizer.decode(tokenizer.encode(text)[0]) == text


def test_only_in_english_the_word_i_gets_a_capital():
    for text, word in (("Kot i pies", "i"), ("the dog and i", "I")):
        tokenizer = Tokenizer.train([text] * 2)
        assert tokenizer.decode(tokenizer.encode(text)[0]) == text.replace(" i", f" {word}")


@pytest.mark.parametrize("kind", [None, "bpe"])
def test_decode_of_nuls_does_not_fail(kind):
    text = "a \0 b \0\0 \0c x\0 y"
    tokenizer = Tokenizer.train([text] * 4, min_freq=1, subword=kind, vocab_size=40)
    assert tokenizer.decode(tokenizer.encode(text)[0]) == text.replace("\0", "\ufffd")


@pytest.mark.parametrize("rules", list(SPECIALS))
@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\u2009", "\u2028", "\u202f", "\u3000"])
def test_white_space_of_rare_kinds_separates_words_and_pieces(rules, space):
    text = f"one.{space}Two{space}{space} ten"
    words = Tokenizer.train([text], rules=rules)
    assert words.tokenize(text) == words.tokenize("one. Two ten")
    pieces = Tokenizer.train([text] * 3, rules=rules, subword="bpe", vocab_size=60)
    assert pieces.decode(pieces.encode(text)[0]) == "one. Two ten"


@pytest.mark.parametrize(
    "text",
    [
        "\u091a\u093e\u0902\u0917\u0932\u093e \u0906\u0939\u0947. a",
        "Un cafe\u0301. A",
        "\u0b87\u0bb0\u0bc1\u0ba8\u0bcd\u0ba4\u0ba4\u0bc1. a",
    ],
)
def test_a_full_stop_behind_a_combining_mark_is_a_token(tokenizer, text):
    assert "." in tokenizer.tokenize(text)[0]


def test_decode_of_repeated_words_and_marks():
    tokenizer = Tokenizer.train(["Go Go Go Go see NO NO NO NO way 999999999 xxfld 1 xxfld 2"] * 2, min_freq=1)
    assert tokenizer.decode(tokenizer.encode("Go Go Go Go see")[0]) == "Go Go Go Go see"
    assert tokenizer.decode(tokenizer.encode("NO NO NO NO way")[0]) == "NO NO NO NO way"
    ids = np.concatenate(tokenizer.encode(["xxfld 1 see xxfld 2 way", "see"]))
    assert tokenizer.decode([*ids, tokenizer.pad_id]) == "see\nway\n\nsee"


def test_decode_of_a_damaged_sequence_does_not_fail():
    tokenizer = Tokenizer.train(["a b c 3 Cap"] * 2)
    draw = random.Random(0)
    for _ in range(300):
        decoded = tokenizer.decode([draw.randrange(len(tokenizer)) for _ in range(20)])
        assert isinstance(decoded, str) and "xxmaj" not in decoded and "xxrep" not in decoded


def test_decode_refuses_foreign_ids(tokenizer):
    for bad in (len(tokenizer), -1):
        with pytest.raises(UserError, match="vocabulary"):
            tokenizer.decode([bad])


# -------------------------------------------------------------------------------------------------- subword

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


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_subword_does_not_panic(kind):
    tokenizer = Tokenizer.train(CHINESE, subword=kind, vocab_size=60)
    texts = list(fuzzed_texts(300, seed=1))
    assert len(tokenizer.encode_flat(texts)[1]) == len(texts)


# -------------------------------------------------------------------------------------- joining vocabularies


def test_extended_keeps_every_word_and_its_id_and_adds_frequent_ones(tokenizer):
    more = tokenizer.extended(
        ["tardis a tardis, a tardis Hello", "sofa sofa rare", "xxmaj xxfake1 xxfake1"], vocab_size=1000
    )
    own = [word for word in tokenizer.vocab if not word.startswith("xxfake")]
    assert more.vocab[: len(own)] == own
    assert more.vocab[len(own) : len(own) + 3] == ["tardis", "a", "sofa"]
    assert len(set(more.vocab)) == len(more) and len(more) % 8 == 0
    assert more.encode("the film TARDIS")[0].tolist()[-1] == more.vocab.index("tardis")
    assert np.array_equal(more.encode("Hello the book")[0], tokenizer.encode("Hello the book")[0])


def test_extended_is_bounded_and_refuses_less_than_it_begins_with(tokenizer):
    words = sum(not word.startswith("xxfake") for word in tokenizer.vocab)
    texts = [f"new{i} new{i}" for i in range(50)]
    assert len(tokenizer.extended(texts, vocab_size=len(tokenizer) + 5)) == len(tokenizer) + 5
    assert tokenizer.extended([], vocab_size=len(tokenizer)).vocab[:words] == tokenizer.vocab[:words]
    with pytest.raises(UserError, match=f"--vocab-size {len(tokenizer)}"):
        tokenizer.extended(texts, vocab_size=len(tokenizer) - 1)


def test_extended_keeps_the_pipeline_it_was_made_with():
    old = json.loads(Tokenizer.train(TEXTS).to_str())
    old["normalizer"]["normalizers"] = [{"type": "Lowercase"}]  # an earlier version's rules
    base = Tokenizer.from_str(json.dumps(old))
    assert json.loads(base.extended(["NEW NEW"], vocab_size=100).to_str())["normalizer"] == old["normalizer"]


def test_a_vocabulary_of_fastai_becomes_a_tokenizer(tokenizer):
    again = Tokenizer.from_vocab([*tokenizer.vocab, "xxfake", "film"], rules=tokenizer.rules)
    assert again.vocab == tokenizer.vocab
    lines = Tokenizer.train(["a \n\n  b\n\n  c"] * 2, rules=tokenizer.rules)
    assert (
        Tokenizer.from_vocab(lines.vocab, rules=tokenizer.rules).encode("b\n\n  c")[0].tolist()
        == lines.encode("b\n\n  c")[0].tolist()
    )


def test_word_pieces_need_no_more_words():
    pieces = Tokenizer.train(TEXTS, subword="bpe", vocab_size=60)
    assert pieces.extended(["tardis tardis"], vocab_size=10).to_str() == pieces.to_str()
