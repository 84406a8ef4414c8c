"""Several labels a row: lists, cells with a separator, columns of 0 and 1."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import numpy as np
import pytest

from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.in_memory import in_memory
from ulmfit.data.label_sets import LabelSets, labels_of, suspicion
from ulmfit.errors import UserError

ROWS = [["film", "pos"], ["pos", "film"], ["pos"], [], None, ["book"], ["book", "neg", "book"], ["neg"]]


def read(split) -> list[tuple[str, ...]]:
    """By row of a split, its labels."""
    names = [labels_of(name) for name in split.label_names]
    return [tuple(names[label]) for batch in split.batches() for label in batch.labels]


def corpus_of(data, **options):
    return open_corpus(data if isinstance(data, str) else in_memory(data), task="clf", valid="0.5", **options)


@pytest.fixture
def forms(tmp_path):
    """The same rows in each way to write them: (data, options)."""
    texts = [f"text number {row % 8} of {row}" for row in range(80)]
    rows = ROWS * 10
    (tmp_path / "lists.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": row}) + "\n" for text, row in zip(texts, rows, strict=True))
    )
    cells = ["" if row is None else "; ".join(row) or ";" for row in rows]
    (tmp_path / "cells.csv").write_text(
        "text,label\n" + "".join(f"{t},{c}\n" for t, c in zip(texts, cells, strict=True))
    )
    names = ["book", "film", "neg", "pos"]
    marks = [["" if row is None else str(int(name in row)) for name in names] for row in rows]
    (tmp_path / "marks.csv").write_text(
        f"text,{','.join(names)}\n" + "".join(f"{t},{','.join(m)}\n" for t, m in zip(texts, marks, strict=True))
    )
    return {
        "lists": (str(tmp_path / "lists.jsonl"), {}),
        "cells": (str(tmp_path / "cells.csv"), {"label_separator": ";"}),
        "marks": (str(tmp_path / "marks.csv"), {"label_column": ",".join(names)}),
        "memory": ({"text": texts, "label": rows}, {}),
        "arrays": ({"text": texts, "label": [row if row is None else np.array(row, dtype="U9") for row in rows]}, {}),
    }


def test_all_ways_to_write_labels_are_the_same_corpus(forms):
    found = {}
    for form, (data, options) in forms.items():
        corpus = corpus_of(data, **options)
        assert corpus.label_names == ["book", "film", "neg", "pos"]
        assert corpus.label_sets is not None and corpus.label_sets.matrix().shape == (6, 4)
        found[form] = {name: read(split) for name, split in corpus.splits.items()}
        assert corpus.splits["train"].skipped["unlabelled"] + corpus.splits["valid"].skipped["unlabelled"] == 10
    assert all(other == found["lists"] for other in found.values())
    counts = Counter(found["lists"]["train"] + found["lists"]["valid"])
    assert counts == {("film", "pos"): 20, ("pos",): 10, (): 10, ("book",): 10, ("book", "neg"): 10, ("neg",): 10}
    assert Counter(found["lists"]["valid"]) == {labels: number // 2 for labels, number in counts.items()}  # stratified


def test_a_language_model_holds_out_the_same_rows(forms):
    data, options = forms["cells"]
    classifier = corpus_of(data, **options).splits["valid"]
    texts = [text for batch in classifier.batches() for text in batch.texts]
    valid = open_corpus(data, task="lm", valid="0.5", **options).splits["valid"]
    assert set(texts) <= {text for batch in valid.batches() for text in batch.texts}


def test_rare_sets_are_held_out_too():
    rng = np.random.default_rng(0)
    rows = [[f"l{label}" for label in np.flatnonzero(rng.random(12) < 0.4)] for _ in range(400)]  # nearly all different
    corpus = open_corpus(in_memory({"text": [f"text {i}" for i in range(400)], "label": rows}), task="clf", valid="0.2")
    valid = read(corpus.splits["valid"])
    assert len(valid) == 80
    counts = Counter(label for row in valid for label in row)
    assert all(15 <= counts[f"l{label}"] <= 50 for label in range(12))


def test_rows_that_are_no_answer_are_told(tmp_path):
    def refused(data, match, **options):
        with pytest.raises(UserError, match=match):
            corpus_of(data, **options)

    texts = ["one", "two", "three", "four"]
    refused({"text": texts, "a": [1, 0, 2, 1], "b": [0, 0, 1, 1]}, "write 0 or 1 in each column", label_column="a,b")
    refused({"text": texts, "a": [1, 0, None, 1], "b": [0, 0, 1, 1]}, "write 0 or 1", label_column="a,b")
    refused({"text": texts, "a": [1, 0, 0, 1]}, "no column b", label_column="a,b")
    refused({"text": texts, "a": [1, 0, 0, 1]}, "names a column twice", label_column="a,a")
    refused({"text": texts, "label": [["a"], "b", ["a"], ["b"]]}, "holds lists and 'b'")
    refused({"text": texts, "label": [["a"]] * 4}, "all training rows .* have the labels a")
    refused({"text": texts, "label": [[]] * 4}, "all training rows .* have no label;")
    refused({"text": texts, "a": [1, 0, 0, 1]}, "holds an empty name", label_column="a,")
    refused({"text": texts, "label": ["a", "b", "a,b", ""]}, "--label-separator is empty", label_separator="")
    refused({"text": texts, "label": [[1, 0], [0, 1], [0, 0], [1.0, True]]}, "holds lists of 2 numbers 0 and 1")
    refused((texts, np.eye(4)), r"are an array of shape \[4, 4\]; give a dict")
    refused({"text": texts, "label": ["a,b", "a", "b", ""], "x": [1, 1, 0, 0]}, "leave out one of them",
            label_column="label,x", label_separator=",")  # fmt: skip
    split = {"train": {"text": texts, "label": [["a"], ["b"], [], ["b"]]}, "valid": {"text": ["x"], "label": [["c"]]}}
    with pytest.raises(UserError, match="label 'c' in the valid rows .* was not seen in training"):
        open_corpus(in_memory(split), task="clf")


def test_separators_have_names_and_a_cell_may_be_a_list():
    texts = [f"text {row}" for row in range(12)]
    for separator, cells in (("semicolon", ["a;b", "a", ";"]), ("tab", ["a\tb", "a", "\t"]), (" ", ["a b", "a", " "]), ("\\t", ["b\ta", "a", " \t "]),
                             (",", ['["a", "b"]', "['a']", "[]"]), (" and ", ["a and b", "a", "[]"])):  # fmt: skip
        corpus = corpus_of({"text": texts, "label": cells * 4}, label_separator=separator)
        assert corpus.label_names == ["a", "b"] and not corpus.notes
        assert Counter(read(corpus.splits["train"])) == {("a", "b"): 2, ("a",): 2, (): 2}
    assert LabelSets.of_model({"multi_label": True, "label_names": ["a"]}, "tab").separator == "\t"
    for cell in ("[a", "[1, [2]]", "{'a'}", "[" * 5000 + "]" * 5000, "['a', f()]"):  # no lists of labels
        corpus = corpus_of({"text": texts, "label": [cell, "b;c", "b"] * 4}, label_separator=";")
        assert cell in corpus.label_names


def test_lists_of_a_dataset():
    texts = [f"text {row}" for row in range(12)]
    lists = [["a"], ["a", "b"], []] * 4
    data = datasets.Dataset.from_dict({"text": texts, "label": lists})
    found = corpus_of(data)
    assert (
        found.label_sets.names == ("a", "b")
        and found.label_names == corpus_of({"text": texts, "label": lists}).label_names
    )
    other = datasets.Dataset.from_dict({"text": texts, "label": lists[::-1]})
    assert in_memory(data).sources["train"].fingerprint != in_memory(other).sources["train"].fingerprint


def test_rows_without_a_label_may_come_first():
    """More of them than are looked at to find out that the column has lists."""
    texts = [f"text {number}" for number in range(2500)]
    lists = [None] * 2400 + [["a"], ["b", "c"]] * 50
    assert open_corpus(in_memory({"text": texts, "label": lists}), task="clf").label_sets.names == ("a", "b", "c")


def test_sets_in_memory_are_lists():
    texts = [f"text {row}" for row in range(12)]
    rows = [{"a", "b", "c", "d"}, frozenset("ab"), set()]
    sets, lists = (corpus_of({"text": texts, "label": form * 4}) for form in (rows, [sorted(row) for row in rows]))
    assert sets.label_names == lists.label_names == ["a", "b", "c", "d"] and sets.fingerprint == lists.fingerprint


def test_what_is_probably_meant_otherwise_is_told():
    texts = [f"text {row}" for row in range(12)]

    def notes(cells, **options):
        return corpus_of({"text": texts, "label": cells * 4}, **options).notes

    assert any("has the label separator '|'" in note for note in notes(["a,b", "a", "c"], label_separator="|"))
    assert not notes(["a|b", "a", "c"], label_separator="|") and not notes(["|", "a", "c"], label_separator="|")
    for cells in (["['a', 'b']", "['a']", "[]"], ['["a"]', "[]", "[]"]):
        assert any("to read it as a list, give --label-separator ','" in note for note in notes(cells))


def test_marks_of_unlabelled_rows_are_refused_until_they_are_explained():
    texts = [f"text {row}" for row in range(12)]
    for mark, cells in (("NA", ["a;b", "NA", "b"]), ("-1", ["1;2", "-1", "2"]), ("null", ["a;b", "null", "b"])):
        data = {"text": texts, "label": cells * 4}
        with pytest.raises(UserError, match=f"has the label {mark}; add --unlabelled {mark} if it marks rows"):
            corpus_of(data, label_separator=";")
        assert mark in corpus_of(data, label_separator=";", unlabelled="none").label_names
        corpus = corpus_of(data, label_separator=";", unlabelled=mark)
        assert mark not in corpus.label_names and sum(len(read(split)) for split in corpus.splits.values()) == 8
        rows = open_rows(in_memory(data), label_names=corpus.label_names, several=LabelSets(("label",), ";"),
                         keep_unlabelled=False, unlabelled=mark)  # fmt: skip
        assert len(read(rows)) == 8
    assert "NA" in corpus_of({"text": texts, "label": [["a"], ["NA"], []] * 4}).label_names  # a list says what it holds


def test_columns_of_a_model_are_all_needed_to_score():
    data = in_memory({"text": ["one", "two"], "a": [1, 0], "b": [0, 1]})
    with pytest.raises(UserError, match="names no column for the label c of the model"):
        open_rows(data, label_names=["a", "b", "c"], several=LabelSets(("x", "y")), label_column="a,b")
    rows = open_rows(data, label_names=["a", "b"], several=LabelSets(("x", "y")), label_column="b,a")
    assert read(rows) == [("a",), ("b",)]


def test_rows_to_score_may_leave_out_unseen_labels():
    data = in_memory({"text": ["one", "two", "three"], "label": ["a,b", "c", ","]})
    names = ["a", "b"]
    several = LabelSets(("label",), ",")
    with pytest.raises(UserError, match="label 'c'"):
        open_rows(data, label_names=names, several=several, keep_unlabelled=False)
    rows = open_rows(data, label_names=names, several=several, keep_unlabelled=False, skip_unseen=True)
    assert read(rows) == [("a", "b"), ()] and sum(rows.skipped.values()) == 1


def test_cells_that_look_like_several_labels_are_told():
    for names in (["film#pos", "pos#film", "neg"], ["a", "b", "a,b"], ["a|b", "b | a"]):
        assert "--label-separator" in str(suspicion(names, "label"))
    for names in (["neg", "pos"], ["a/b", "c/d"], ["R&B", "rock"], ["C#", "F#"], ["science,fiction", "x"]):
        assert suspicion(names, "label") is None
    texts = [f"text {row}" for row in range(8)]
    corpus = corpus_of({"text": texts, "label": ["pos#film", "film#pos"] * 4})
    assert any("--label-separator '#'" in note for note in corpus.notes)
