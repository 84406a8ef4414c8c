"""Ids by distinct chunks are those of the pipeline, of any text.

With ULMFIT_LONG=1 of a million fuzzed texts, and of the corpora that CHUNKS names (.parquet files with a column text).
"""

from __future__ import annotations

import os
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tests import golden as reference
from ulmfit.data import sample
from ulmfit.tokenizer import distinct_chunks as chunks
from ulmfit.tokenizer import tokenizer
from ulmfit.tokenizer.distinct_chunks import ChunkPool, Chunks, usable
from ulmfit.tokenizer.tokenizer import Tokenizer, _encodable

ENGLISH = Path(tokenizer.__file__).parents[1] / "encoders" / "english"
EARLIER = Path(__file__).parents[1] / "fixtures" / "words_of_0.2.json"
LONG = os.environ.get("ULMFIT_LONG") == "1"
WORDS = """ha b Ha HA ha, ,ha ha- -ha "ha ha" (ha ha) ha-ha ha!!!! !!!!ha a!!!!b !!!! ???? .... ... .. . , - -- ---- — – _ __ ____ 5 55 555
5555 10/10 1,000 3km 10% 5'11" cannot can't don't DON'T dont won't've n't 'em 'cause I'm U.S. e.g. Mr. A$ :) :-( 8-) <3 >.< ._. (^_^)
http://x.com/a-b a@b.c #tag C# C++ x=y * ** **** a*b ^ ~ & && | @ $ € £5 “ha” ‘ha’ ’s it’s … ™ © 👍 👍👍👍👍 é É éa ß ẞ İ ı ſ Σ σΣ ΑΣ ² ²² ²²²² x² ½ ½½½½
Ⅷ ٣ ٣٣٣٣ ٠ ñ ñ ़ ́ ́́́́ 中 中文 漢漢漢漢 ค กก ʰ ª º º5 ⁵ ₂ ① ⒜ ǅ ȷ ɐ ა Ꭰ ꭰ 𐐀 𞤀 𑀓 ‿ ⁀ xxbos xxunk xxmaj XXBOS Xxeos xxfld xxrep xxwrep <br /> <br/> </br> <unk>
&amp; &lt; &quot; quot; #39; #36; nbsp; amp;nbsp; &eacute; &#8217; ; ;; a; \\ \\n \\" a\\b\\ @-@ @.@ @,@ @""".split()
# What stands between; of a space there are many.
GAPS = [*[" "] * 12, "  ", "   ", "\n", "\n\n", "\n ", " \n", "\r\n", "\r", "\t", "\n\t", " \t ", "<br /><br />", "\x0b", "\x0c",
        "\x1c", "\x85", "\xa0", "\u2003", "\u2028", "\u200b", "\u3000", "\u2581", "\ufeff", "\ufdd1", "\0", "", "", ""]  # fmt: skip


# Most texts are of these alone, since the others send a text the whole way.
MILD_WORDS = [word for word in WORDS if re.search(r"[\\;\u200b]|xx|XX|Xx|@[.,-]@|<unk>|#\d", word) is None]
MILD_GAPS = [
    "\xa0",
    "\xa0",
    " \xa0",
    *[" "] * 12,
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n ",
    " \n",
    "\r\n",
    " \t ",
    "<br /><br />",
    "",
    "",
]


def fuzzed(generator: random.Random) -> str:
    """A short text of what the rules treat in ways of their own; mostly of few different pieces, so that they repeat."""
    words, between = (MILD_WORDS, MILD_GAPS) if generator.random() < 0.8 else (WORDS, GAPS)
    pieces = generator.choices(words, k=generator.choice((1, 2, 2, 3, 5, 9)))
    gaps = generator.choices(between, k=generator.choice((1, 1, 2, 4)))
    if generator.random() < 0.5:
        gaps = [" "]
    text = "".join(
        generator.choice(pieces) + generator.choice(gaps) for _ in range(generator.choice((1, 3, 6, 12, 25)))
    )
    text = generator.choice(("", "", "", " ", "\n")) + text
    return text.rstrip() if generator.random() < 0.3 else text + generator.choice(("", " end", "\n", " end."))


@pytest.fixture(scope="module", params=["trained here", "english", "0.2.0"])
def backend(request):
    if request.param == "english":
        return Tokenizer.from_file(ENGLISH)._backend
    if request.param == "0.2.0":
        return Tokenizer.from_file(EARLIER)._backend
    texts = [row["text"] for row in sample.generate("train")] + WORDS * 2
    return Tokenizer.train(texts)._backend


def assert_same(backend, known: Chunks, texts: list[str]) -> None:
    texts = list(_encodable(texts))
    whole = backend.encode_batch_fast(texts)
    for text, ids, encoding in zip(texts, known.encode(texts), whole, strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == encoding.ids, text


def test_fuzzed_texts(backend):
    generator, known, total = random.Random(0), Chunks(backend), 1_000_000 if LONG else 1500
    for _ in range(0, total, 500):
        assert_same(backend, known, [fuzzed(generator) for _ in range(500)])
    assert 0.2 < known.num_whole / total < 0.95  # both ways are tried


def test_texts_of_reviews(backend):
    texts = [row["text"] for row in sample.generate("train")][:400]
    known = Chunks(backend)
    assert_same(backend, known, texts)
    assert known.num_whole < 60


def test_golden_texts(backend):
    texts = [text for version in "12" for text, _ in reference.table(version)[f"tok_v{version}"]]
    assert_same(backend, Chunks(backend), [*texts, *["plain words that repeat, plain words that repeat"] * len(texts)])


@pytest.mark.skipif(not LONG or "CHUNKS" not in os.environ, reason="ULMFIT_LONG=1 CHUNKS=FILE:FILE")
@pytest.mark.parametrize("path", os.environ.get("CHUNKS", "").split(":"))
def test_corpora(path, backend):
    import pyarrow.parquet as pq

    known, total = Chunks(backend), 0
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
        assert_same(backend, known, batch["text"].to_pylist())
        total += len(batch)
    assert total > 1000 and known.num_whole < total / 2


@pytest.mark.parametrize("text", [
    '8-)8-)8-)8-) 8-) x', 'ha"ha"ha"ha" ha" ha" b', "!!!!\t!!!!\t!!!!\t!!!!\t\n", "ha-ha-ha-ha- ha- b",
    "²²²² ² ² ² ² ² b", "ha ²²²² ²²²² ha", "x!!!! !!!! !!!! !!!!b", "b b b!!!! b b b b", "ha ha ha ha", "ha ha ha ha ",
    "ha ,ha ,ha ,ha ,", "a-ha ha ha ha-b", "ha ² ha ² ha ² ha ²", "é é é é é", "10\xa0km \xa0x y\xa0z", "a\xa0 b", "a \xa0\n b\xa0", "\n\xa0a", "<br />\xa0b",
    "ha\xa0ha\xa0ha\xa0ha\xa0ha b", "ha\xa0ha ha\xa0ha ha\xa0ha ha\xa0ha ", "a\u200db \u200d c\u2060", "中 中 中 中 ", "ha-ha-ha-ha", "x ha-ha-ha-ha-",
    "quot; ' quot; ' quot; '", "XXBOS a", "a xxeos", "ha\nha\nha\nha\n", "ha\n ha\nha \nha <br />ha", "", " ", "\n", " \n ", "a\n\n \n b",
    "ha — ha — ha — ha —", "ha ́ ha ́ ha ́ ha ́ ", "_ _ _ _ _", "- - - - -", "5 5 5 5 5",
])  # fmt: skip
def test_what_reaches_over_a_space(backend, text):
    assert_same(
        backend, Chunks(backend), [text, *["plain words of some length, which are known, and more of them"] * 5]
    )


def test_chunks_that_are_the_same_when_cleaned_up_are_no_repeat(backend):
    """Between the same marks they would be four equal words; a new chunk is learnt beside others."""
    known = Chunks(backend)
    assert_same(
        backend, known, ["- -- --- ---- ' ` ´ ’ ‘", "! !! !? ?! ?", *["of words that repeat, words that repeat"] * 9]
    )


def test_known_chunks_are_bounded(backend, monkeypatch):
    monkeypatch.setattr(chunks, "MOST_CHUNKS", 300)
    monkeypatch.setattr(chunks, "MOST_CHARACTERS", 3000)
    texts = [row["text"] for row in sample.generate("train")][:200]
    known, most = Chunks(backend), 0
    for start in range(0, 200, 20):
        assert_same(backend, known, texts[start : start + 20])
        most = max(most, len(known._slots))
    assert most <= 600


def test_texts_of_words_that_do_not_repeat_go_the_whole_way(backend):
    known = Chunks(backend)
    assert_same(backend, known, ["".join(random.Random(n).choices("abcdefgh", k=40)) for n in range(30)])
    assert known.num_whole == 30 and not known._slots


def test_only_many_texts_on_few_cores_and_these_rules_are_cut(monkeypatch):
    texts = [row["text"] for row in sample.generate("train")][:60]
    asked = []
    monkeypatch.setattr(ChunkPool, "encode", lambda self, texts: asked.append(len(texts)))
    for rules, cores, number, expected in [("fastai1", 2, 60, [60]), ("fastai1", 2, 10, []), ("fastai1", 64, 60, []),
                                           ("fastai2", 2, 60, [])]:  # fmt: skip
        monkeypatch.setattr(tokenizer.os, "sched_getaffinity", lambda pid, cores=cores: range(cores), raising=False)
        made = Tokenizer.train(texts, rules=rules)
        asked.clear()
        ids, lengths = made.encode_flat(texts[:number])
        assert asked == expected and ids.tolist() == [
            i for e in made._backend.encode_batch_fast(texts[:number]) for i in e.ids
        ]
    assert not usable(Tokenizer.train(texts, subword="bpe", vocab_size=300)._backend)
    other = Tokenizer.train(texts)._backend
    other.normalizer = tokenizers.normalizers.Sequence([other.normalizer, tokenizers.normalizers.Strip()])
    assert not usable(other)
    assert usable(Tokenizer.from_file(ENGLISH)._backend) and usable(Tokenizer.from_file(EARLIER)._backend)


def test_threads_share_two_and_the_others_do_without(backend, monkeypatch):
    pool, inner = ChunkPool(backend), []

    def encode(self, texts):
        if pool._left or not inner:  # the first asks for another, and that one for a third
            inner.append(pool.encode(texts))
        return texts

    monkeypatch.setattr(Chunks, "encode", encode)
    assert pool.encode(["a"]) == ["a"]
    assert inner == [None, ["a"]] and len(pool._free) == 2
    assert pool.encode(["a"]) == ["a"] and len(pool._free) == 2


def test_a_tokenizer_can_be_sent_to_another_process(monkeypatch):
    monkeypatch.setattr(tokenizer.os, "sched_getaffinity", lambda pid: range(2), raising=False)
    texts = [row["text"] for row in sample.generate("train")][:60]
    made = Tokenizer.train(texts)
    ids, _ = made.encode_flat(texts)
    assert pickle.loads(pickle.dumps(made)).encode_flat(texts)[0].tolist() == ids.tolist()
