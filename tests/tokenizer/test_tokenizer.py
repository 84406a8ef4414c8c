"""Tokenizer: interface, vocabulary, decoding. For fastai see test_tokenizer_golden.py."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import tokenizers

from tests.tokenizer.conftest import TEXTS
from ulmfit.errors import UserError
from ulmfit.tokenizer.rules import SPECIALS
from ulmfit.tokenizer.tokenizer import Tokenizer


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
