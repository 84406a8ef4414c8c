"""Any text is read in linear time: texts that once were slow, and a sample of those that the search makes.

ULMFIT_SLOW_TEXTS is the number of random texts. The full run (tests/run_long.sh) takes thousands.
"""

from __future__ import annotations

import json
import os

import pytest
import tokenizers

from tests.tokenizer.slow_texts import KNOWN, NORMAL, growth, search, seconds, text_of
from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer.tokenizer import Tokenizer

NUM_TEXTS = int(os.environ.get("ULMFIT_SLOW_TEXTS", "12"))
SIZE = 100_000 if NUM_TEXTS > 100 else 16_000
MOST = 24  # for 8 times the text: 8 if the time is linear, 64 if it is quadratic


@pytest.fixture(scope="module", params=[("fastai1", None), ("fastai2", None), ("fastai1", "bpe"), ("fastai2", "bpe")])
def tokenizer(request) -> Tokenizer:
    rules, kind = request.param
    return Tokenizer.train([NORMAL] * 9, rules=rules, min_freq=1, subword=kind, vocab_size=300)


@pytest.mark.slow
def test_texts_that_once_were_slow(tokenizer):
    normal = seconds(tokenizer, (NORMAL * 400)[:SIZE], 3)
    for unit in KNOWN:
        text = "x" + (unit * SIZE)[:SIZE] + "x"
        if seconds(tokenizer, text, 2) > 3 * normal:
            assert growth(tokenizer, text[: SIZE // 8] + "x", text) < MOST, ascii(unit)


def test_random_texts(tokenizer):
    assert search(tokenizer, range(NUM_TEXTS), size=SIZE, most=MOST) == []


def test_texts_are_the_same_every_time_and_of_many_kinds():
    texts = [text_of(seed, 300) for seed in range(200)]
    assert texts == [text_of(seed, 300) for seed in range(200)]
    assert all(len(text) == 300 for text, _ in texts) and len({text for text, _ in texts}) > 190
    longer, _ = text_of(7, 900)
    assert longer.startswith(texts[7][0])


def test_the_search_finds_what_is_quadratic_and_nothing_else(monkeypatch):
    clock = 0.0

    class Timed:
        """Reads with a clock of its own: linear in the normal text, and by `power` in any other."""

        def __init__(self, power: int):
            self.power = power

        def encode(self, text: str) -> None:
            nonlocal clock
            clock += len(text) * 1e-6 * (1 if text.startswith(NORMAL) else 9 * len(text) ** (self.power - 1))

    monkeypatch.setattr("time.process_time", lambda: clock)
    assert [slow.seed for slow in search(Timed(2), range(2), size=40_000)] == [0, 1]
    assert search(Timed(1), range(2), size=40_000) == []


@pytest.mark.skipif(NUM_TEXTS < 100, reason="a megabyte of each text is for the long tier")
def test_a_megabyte_of_what_once_was_slow(tokenizer):
    normal = seconds(tokenizer, NORMAL * (1_000_000 // len(NORMAL)))
    for unit in KNOWN:
        assert seconds(tokenizer, (unit * 1_000_000)[:1_000_000]) < 30 * normal, ascii(unit)


def test_passes_of_an_earlier_version_that_were_slow_are_replaced_by_equal_ones(tokenizer):
    slow = {fast: slow for slow, fast in text_rules._SLOW.items()}
    content = json.loads(tokenizer.to_str())
    earlier = json.loads(tokenizer.to_str())
    for step in earlier["normalizer"]["normalizers"]:
        pattern = step.get("pattern", {})
        if pattern.get("Regex") in slow:
            pattern["Regex"] = slow[pattern["Regex"]]
    if tokenizer.subword or tokenizer.rules == "fastai2":
        assert earlier != content
    stored = json.dumps(earlier, ensure_ascii=False, separators=(",", ":"))
    again = Tokenizer.from_str(stored)
    assert again.to_str() == tokenizers.Tokenizer.from_str(stored).to_str()  # the file stays what it was
    assert again._backend.to_str() == tokenizer.to_str()
    raw = tokenizers.Tokenizer.from_str(stored)
    for seed in range(60):
        text, _ = text_of(seed, 400)
        for end in ("", "\n", " \n \n", "\n\n ", "\x85\u3000 ", " "):
            assert raw.encode(text + end).ids == again.encode(text + end)[0].tolist()
