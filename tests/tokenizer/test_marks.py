"""Characters that the passes use for themselves, in a text: each is read as U+FFFD, in linear time."""

import json
import time

import pytest

from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer.tokenizer import Tokenizer

RULES = ["fastai1", "fastai2"]
TEXTS = ["The film was grand, grand grand grand!!!!!! &lt;br />", "Nothing 100 % GOOD\n\ncame of it."]


def pipeline(rules, subword):
    return Tokenizer.train(TEXTS * 20, rules=rules, min_freq=1, vocab_size=200, subword=subword)


def saved_by_an_earlier_version(tokenizer):
    """The same without the pass that takes the marks out."""
    content = json.loads(tokenizer.to_str())
    passes = content["normalizer"]["normalizers"]
    marks = "|".join(text_rules.MARKS)
    kept = [step for step in passes if not step.get("pattern", {}).get("Regex", "").startswith(marks)]
    assert len(kept) == len(passes) - 1
    content["normalizer"]["normalizers"] = kept
    return Tokenizer.from_str(json.dumps(content))


def units(subword):
    marks = text_rules.MARKS + ("\x1f" if subword else "")
    one, ten, hundred, place, again, entity = text_rules.MARKS
    mixes = [
        marks,
        one * 7 + " ",
        f"a{ten * 3}{one * 9}{place}\n",
        f"&lt{entity};{hundred * 12}",
        f"{again} b {again} b",
    ]
    return [*marks, *mixes]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("subword", [None, "bpe"])
def test_marks_are_read_as_replacement_characters(rules, subword):
    tokenizer = pipeline(rules, subword)
    for unit in units(subword):
        for text in (unit, f"Good {unit} film", f"good{unit * 3}film", f"{unit}\nThe end. {unit}"):
            cleaned = text.translate(dict.fromkeys(map(ord, text_rules.MARKS + "\x1f"), "\ufffd"))
            # In Rust alone, as another language would call it.
            found = tokenizer._backend.encode_batch_fast([text])[0].ids
            assert found == tokenizer._backend.encode_batch_fast([cleaned])[0].ids, ascii(text)
            assert tokenizer.tokenize(text) == tokenizer.tokenize(cleaned)
    if not subword:
        assert tokenizer.tokenize("good \ufdd1")[0] == ["xxbos", "good", "\ufffd"]


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("subword", [None, "bpe"])
@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_run_of_marks_takes_linear_time(rules, subword, version):
    tokenizer = pipeline(rules, subword)
    if version == "earlier":
        tokenizer = saved_by_an_earlier_version(tokenizer)

    def seconds(text):
        begun = time.process_time()  # of the processor: other programs do not count
        tokenizer.encode(text)
        return time.process_time() - begun

    for unit in units(None):
        few, many = (unit * (size // len(unit)) for size in (4_000, 128_000))
        # 32 times as many: 1024 times as long if it were quadratic.
        assert seconds(many) < 200 * max(seconds(few), 0.005), ascii(unit)


@pytest.mark.parametrize("rules", RULES)
def test_ordinary_text_has_the_tokens_of_earlier_versions(rules, sentences):
    tokenizer = pipeline(rules, None)
    assert tokenizer.tokenize(sentences) == saved_by_an_earlier_version(tokenizer).tokenize(sentences)


@pytest.fixture(scope="module")
def sentences():
    from ulmfit.data import sample

    rows = [row["text"] for _, row in zip(range(200), sample.generate("train"), strict=False)]
    return [*rows, "Ünïcode “quotes” — and\u2009thin\x1fspaces \u2581 ﷐ \ufdd0 \uffff \U0001f600\ufe0f"]
