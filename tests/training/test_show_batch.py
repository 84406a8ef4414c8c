"""show_batch without a tokenizer: the vocabulary that fit would make, as a table in text and in a notebook."""

from __future__ import annotations

import html
import re

import pytest

import ulmfit
from tests.training import runs
from ulmfit.training.show_batch import Shown, ShownBatch, ShownRow

TEXTS = ["Ein sehr guter Film, <b>wirklich</b>!", "Das war leider gar nichts."] * 12
LABELS = ["gut", "schlecht"] * 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))


def test_the_vocabulary_is_the_one_that_fit_would_make(tmp_path):
    reviews = runs.write_reviews(tmp_path / "reviews.csv", 60)
    shown = ulmfit.show_batch(reviews, rows=2, steps=1, threads=1)
    assert any("the English model's and the corpus's words" in note for note in shown.notes)
    words = " ".join(row.words for row in shown.batches[0].rows).split()
    assert words[0] == "xxbos" and words.count("xxunk") < 0.1 * len(words)
    assert {row.mark for row in shown.batches[0].rows} <= {"neg", "pos"}


def test_a_corpus_of_another_language_has_its_own_words():
    shown = ulmfit.show_batch((TEXTS, LABELS), rows=4, tokens=4, batch_size=8, threads=1, valid=0.25)
    assert any("vocabulary: the corpus's words" in note for note in shown.notes)
    (batch,) = shown.batches
    assert batch.title.startswith("epoch 0 step 0: ") and len(batch.rows) == 4
    for row in batch.rows:
        assert row.words.split()[:2] == ["xxbos", "xxmaj"] and len(row.words.split()) == 4 and row.more > 0
        assert (row.mark == "gut") == ("ein" in row.words)
    rows = ulmfit.show_batch((TEXTS, LABELS), task="lm", rows=2, steps=2, tokens=5, batch_size=4, threads=1)
    assert [len(row.words.split()) for batch in rows.batches for row in batch.rows] == [5] * 4
    assert [row.mark for row in rows.batches[1].rows] == ["0", "1"]


def test_a_mistake_is_told():
    with pytest.raises(ulmfit.UserError, match="colour is no option of this training; see ulmfit train-lm --help"):
        ulmfit.show_batch((TEXTS, LABELS), task="lm", colour="red")
    for name, value in (("rows", 0), ("steps", -1), ("tokens", 1), ("batch_size", 0), ("rows", "a"), ("steps", 1.5)):
        with pytest.raises(ulmfit.UserError, match=f"{name} is .*; give a whole number"):
            ulmfit.show_batch((TEXTS, LABELS), **{name: value})
    with pytest.raises(ulmfit.UserError, match="task is 'both'; give lm or clf"):
        ulmfit.show_batch((TEXTS, LABELS), task="both")
    with pytest.raises(ulmfit.UserError, match="absent"):
        ulmfit.show_batch((TEXTS, LABELS), tokenizer="absent")


def test_a_label_is_one_line_and_does_not_command_the_terminal(runs):
    labels = ["two\nlines", "a\x1b[31mcolour"] * (len(TEXTS) // 2)
    shown = ulmfit.show_batch((TEXTS[: len(labels)], labels), tokenizer=str(runs.lm), rows=len(labels))
    assert {row.mark for row in shown.batches[0].rows} == {r"two\nlines", r"a\x1b[31mcolour"}


def test_it_is_a_table_on_a_terminal_and_in_a_notebook():
    long = ShownRow("a very long label that is much longer than the column", "xxbos <b> a & b " * 20, 1234)
    shown = Shown("clf", [ShownBatch("epoch 0 step 0: 2 documents", [long, ShownRow("pos", "xxbos")])], [], {})
    for width in (30, 80, 200):
        lines = shown.table(width).splitlines()
        assert all(len(line) <= max(width, 24 + 3 + 20) for line in lines)
        places = {match.start() for line in lines[1:] if (match := re.search(r"[|+]", line))}
        assert len(places) == 1
        text = " ".join(line.split(" | ", 1)[1] for line in lines[3:]).split()
        assert text == (long.words + " ... (1,234 more tokens) xxbos").split()
    page = shown._repr_html_()
    assert page.count("<tr>") == 3 and "<b>" not in page and html.escape(long.words) in page
    assert repr(shown) == shown.table()
    assert len(shown.lines()) == 3 and shown.lines()[2] == "  [pos] xxbos"
