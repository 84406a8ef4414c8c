"""Rows at fault are counted over the corpus; rows without a label are none; every row has its place for prediction."""

from __future__ import annotations

import json

import pytest

from tests.data.files import MODES, write
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.faults import Tally
from ulmfit.errors import UserError
from ulmfit.excerpts import LONGEST, excerpt, failure, hide_values, listed, listed_values, values_shown

pytestmark = pytest.mark.usefixtures("alone")


def table(path, rows):
    return write(path, "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


def labelled(number, every=1):
    return [(f"text number {n}", "np"[n // every % 2] if n % every == 0 else "") for n in range(number)]


def read(corpus):
    """(rows left, what was skipped) of each split."""
    return {
        name: (sum(len(batch.texts) for batch in split.batches(7)), dict(split.skipped))
        for name, split in corpus.splits.items()
    }


@MODES
def test_a_corpus_with_few_labels(streaming):
    table("few.csv", labelled(400, every=10))
    found = read(open_corpus("few.csv", task="clf", valid=0.3, streaming=streaming))
    assert sum(rows for rows, _ in found.values()) == 40 and all(rows for rows, _ in found.values())
    assert sum(skipped["unlabelled"] for _, skipped in found.values()) == 360
    assert sum(rows for rows, _ in read(open_corpus("few.csv", task="lm", streaming=streaming)).values()) == 400


@pytest.mark.parametrize("faults, others", ((2, 38), (3, 57), (10, 190)))
def test_faults_count_over_the_corpus_and_not_in_a_split(faults, others):
    rows = [("", "n")] * faults + labelled(others)
    table("train.csv", rows[faults:])
    table("valid.csv", [*rows[:faults], *labelled(2)])
    read(open_corpus("train.csv", task="clf", valid="valid.csv"))  # 5 % of all, most of the split
    table("valid.csv", [*rows[:faults], ("", "n"), ("a text", "p")])
    with pytest.raises(UserError, match=rf"valid.csv has {faults + 1} rows at fault among the {faults + others + 2} "):
        read(open_corpus("train.csv", task="clf", valid="valid.csv"))


def test_what_is_certain_is_refused_before_the_other_splits_are_read():
    table("rows.csv", [("", "n")] * 60 + labelled(40))
    corpus = open_corpus("rows.csv", task="clf", valid=0.1)
    with pytest.raises(UserError, match="rows at fault among the 100 of the corpus"):
        list(corpus.splits["train"].batches())


def test_a_tally_waits_for_all_splits_unless_the_total_is_known():
    tally = Tally(["train", "valid"])
    tally.report("train", "a.csv", 10, {"empty": 5, "unlabelled": 5})
    tally.check()
    tally.report("valid", "b.csv", 90, {})
    tally.check()
    tally.report("valid", "b.csv", 89, {"torn": 1})
    with pytest.raises(UserError, match=r"a.csv and b.csv has 6 rows at fault among the 99 .*\(empty 5, torn 1\)"):
        tally.check()


def test_a_split_without_a_label_is_refused_in_words_of_its_own():
    table("train.csv", labelled(20))
    table("valid.csv", [("a text", ""), ("another", "")])
    with pytest.raises(UserError, match=r"valid.csv leaves no labelled row for the valid split \(unlabelled 2\)"):
        read(open_corpus("train.csv", task="clf", valid="valid.csv"))


@pytest.mark.parametrize("labels", [["", ""], ["-1", "-1"]])
def test_a_test_split_whose_labels_are_kept_back_is_left_out(labels):
    """As tasks are published; a data set of the hub cannot be edited."""
    rows = [(text, "np".index(label)) for text, label in labelled(30)]
    table("d/train.csv", [*rows, ("a text", 2)])
    table("d/test.csv", [("a text", labels[0]), ("another", labels[1])])
    corpus = open_corpus("d", task="clf")
    assert set(corpus.splits) == {"train", "valid"} and corpus.label_names == ["0", "1", "2"]
    assert "no row of d/test.csv has a label, so the test split is left out" in corpus.notes
    assert sum(rows for rows, _ in read(corpus).values()) == 31
    table("d/test.csv", [("a text", labels[0]), ("another", 1)])
    assert set(open_corpus("d", task="clf").splits) == {"train", "valid", "test"}


def test_classes_that_are_probably_one_are_told():
    table(
        "rows.csv", [(f"text number {n}", ["pos", "Neg", " Pos", "so  so", "so so", "neg"][n % 6]) for n in range(60)]
    )
    [warning] = [note for note in open_corpus("rows.csv", task="clf").notes if "case" in note]
    assert warning.startswith("warning: the classes Neg, neg of column label differ in case or blanks only")
    table("rows.csv", labelled(60))
    assert not any("case" in note for note in open_corpus("rows.csv", task="clf").notes)


def test_a_column_of_texts_is_no_column_of_labels():
    table("rows.csv", labelled(60))
    with pytest.raises(
        UserError, match=r"column text of rows.csv has \d+ different values in \d+ training rows, so they"
    ):
        open_corpus("rows.csv", task="clf", label_column="text", text_column="label")
    table("classes.csv", [(f"text {n}", f"class {n // 2}") for n in range(80)])
    assert len(open_corpus("classes.csv", task="clf").label_names) == 40
    table("tiny.csv", [(f"text {n}", f"class {n}") for n in range(6)])
    assert len(open_corpus("tiny.csv", task="clf", valid=table("v.csv", [("a text", "class 0")])).label_names) == 6


def test_unseen_labels_are_left_out_where_asked():
    table("new.csv", [("one", "n"), ("two", "neutral"), ("three", "p"), ("four", "")])
    with pytest.raises(UserError, match="'neutral'"):
        list(open_rows("new.csv", label_names=["n", "p"], keep_unlabelled=False).batches())
    split = open_rows("new.csv", label_names=["n", "p"], keep_unlabelled=False, skip_unseen=True)
    assert [batch.texts for batch in split.batches()] == [["one", "three"]]
    assert split.skipped == {"unseen label": 1, "unlabelled": 1}


def test_every_row_has_its_place():
    lines = ["good", "", "  ", "bad \udcff byte", "last"]
    write("a.txt", "\n".join(lines).encode("utf-8", "surrogateescape"))
    rows = [{"text": line} for line in lines[:3]] + [{"text": None}, {"other": 1}]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    wanted = {
        "a.txt": ["", "empty", "empty", "undecodable", ""],
        "a.jsonl": ["", "empty", "empty", "no text", "no text", "torn"],
    }
    for data, reasons in wanted.items():
        batches = list(open_rows(data).every_row(2))
        assert [why for batch in batches for why in batch.reasons] == reasons
        assert [batch.first + n for batch in batches for n in range(len(batch.texts))] == list(range(len(reasons)))
    write("b.txt", "good\n\n  \r\n" * 30 + "last")
    split = open_rows("b.txt")
    assert sum(len(batch.texts) for batch in split.batches(2)) == 31 and not split.skipped


# Values in messages


def test_values_are_cut_and_hidden():
    text = "a secret of the patient that is longer than forty characters"
    assert len(excerpt(text)) <= LONGEST + 2 and "characters" not in excerpt(text) + listed([text])
    assert listed(["text", "label"]) == "text, label" and "(25 in all)" in listed(range(25))
    with values_shown(False):
        for shown in (excerpt(text), excerpt(3), listed([text]), listed_values(["neg"]), failure(ValueError(text))):
            assert "secret" not in shown and "neg" not in shown
        assert listed(["text", "label"]) == "text, label"
    with values_shown():
        hide_values()
        assert "secret" not in excerpt(text)
    assert "secret" in excerpt(text)
