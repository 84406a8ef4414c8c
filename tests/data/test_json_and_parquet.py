"""Rows of JSON, Parquet and fastText as other programs write them."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import whole, write
from tests.data.tables import rows, source
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.encoding import TORN
from ulmfit.data.sources import find
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone", "small_chunks")
TEXTS = [f"film number {number}, café" for number in range(30)]
ROWS = [{"text": text, "label": "np"[number % 2]} for number, text in enumerate(TEXTS)]
PAIRS = [(row["text"], row["label"]) for row in ROWS]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}
SHAPES = {
    "array": ROWS,
    "under data": {"version": 1, "data": ROWS},
    "under another key": {"reviews": ROWS, "page": {"next": None}},
    "columns": COLUMNS,
    "columns of pandas": {name: {str(n): value for n, value in enumerate(part)} for name, part in COLUMNS.items()},
    "index of pandas": {str(number): row for number, row in enumerate(ROWS)},
    "split of pandas": {"columns": ["text", "label"], "index": list(range(30)), "data": [list(pair) for pair in PAIRS]},
}


# JSON


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_json_as_one_value(shape, indent):
    found = source(json.dumps(SHAPES[shape], indent=indent, ensure_ascii=False), "a.json")
    assert rows(found, "text", "label") == PAIRS


def test_arrays_of_texts_and_of_other_things():
    assert rows(source(json.dumps(TEXTS), "a.json")) == [(text,) for text in TEXTS]
    assert rows(source('[{"text": "a"}, 7, {"text": "b"}, [1]]', "a.json")) == [("a",), (TORN,), ("b",), (TORN,)]
    for wrong in ('[{"text": "a"}, {"te', '[{"text": "a"} {"text"]', "[1, 2"):
        with pytest.raises(UserError, match=r"a.json (is no whole JSON array|does not hold)"):
            rows(source(wrong, "a.json"))


def test_an_array_is_read_piece_by_piece(monkeypatch):
    """No more than a few chunks are in memory at a time."""
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 1000)
    found = source(json.dumps([{"text": f"text {number}"} for number in range(2000)]), "a.json")
    longest = 0
    more = json.JSONDecoder.raw_decode

    def watched(self, text, at=0):
        nonlocal longest
        longest = max(longest, len(text))
        return more(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", watched)
    assert sum(len(batch["text"]) for batch in found.read(["text"], 50)) == 2000 and longest < 3000


def test_keys_that_first_appear_late(monkeypatch):
    monkeypatch.setattr("ulmfit.data.readers._FIRST_ROWS", 100)
    lines = [{"text": f"text {number}"} for number in range(3000)] + [{"text": "last", "class": "a"}]
    write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    split = open_rows("a.jsonl", label_column="class", label_names=["a"])
    assert [label for label in whole(split)[1] if label >= 0] == [0]
    with pytest.raises(UserError, match="a.jsonl has no column klass; its columns are text"):
        open_rows("a.jsonl", label_column="klass", label_names=["a"])


def test_values_inside_values():
    lines = [{"review": {"body": text, "by": {"name": "x"}}, "label": n % 2} for n, text in enumerate(TEXTS)]
    found = source("".join(json.dumps(line) + "\n" for line in lines), "a.jsonl")
    assert found.columns == ["review.body", "review.by.name", "label"]
    assert open_corpus("a.jsonl", task="clf", text_column="review.body").label_names == ["0", "1"]
    assert rows(found, "review.body") == [(text,) for text in TEXTS]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_lines_and_arrays_in_one_folder(names):
    """A file of the other form was one torn row."""
    given = [{"text": f"text {n}", "label": n % 2} for n in range(100)]
    write(f"d/{names[0]}.jsonl", "".join(json.dumps(row) + "\n" for row in given))
    write(f"d/{names[1]}.json", json.dumps(given))
    split = open_rows("d")
    texts = whole(split)[0]
    assert texts == [row["text"] for row in given] * 2
    done = 0
    for batch in split.batches(30):
        done += len(batch.texts)
        rest = [text for later in split.batches(7, batch.after) for text in later.texts]
        assert rest == texts[done:]


def test_files_with_other_names_of_classes_are_refused():
    """Their numbers would be those of other classes."""
    for file, classes in (("a", ["neg", "pos"]), ("b", ["pos", "neg"])):
        features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=classes))
        rows = {"text": [f"{file} {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{file}.parquet")
    with pytest.raises(UserError, match=r"classes of column label have other names or another order in b.parquet"):
        open_corpus("*.parquet", task="clf")


def test_a_declared_class_may_mean_unlabelled():
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos", "unknown"])
    )
    given = {"text": [f"text {n}" for n in range(60)], "label": [n % 3 for n in range(60)]}
    datasets.Dataset.from_dict(given, features=features).to_parquet("c.parquet")
    corpus = open_corpus("c.parquet", task="clf", unlabelled="unknown")
    assert corpus.label_names == ["neg", "pos"]
    assert sum(len(whole(split)[0]) for split in corpus.splits.values()) == 40
    assert open_corpus("c.parquet", task="clf").label_names == ["neg", "pos", "unknown"]
    assert any(
        "that --unlabelled names" in note for note in open_corpus("c.parquet", task="clf", unlabelled="unkown").notes
    )


def test_lists_are_no_texts():
    write("a.jsonl", "".join(json.dumps({"text": text.split(), "label": n % 2}) + "\n" for n, text in enumerate(TEXTS)))
    with pytest.raises(UserError, match="column text of a.jsonl holds list, no text; make texts of it"):
        open_corpus("a.jsonl", task="clf")


def test_lines_that_are_no_objects_are_torn_rows():
    lines = ['{"text": "a"}', "{broken", "7", "", "[]", '{"text": "b"}', "null", "[" * 100_000]
    assert rows(source("\n".join(lines), "a.jsonl")) == [("a",), *[(TORN,)] * 3, ("b",), *[(TORN,)] * 2]


# Parquet


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "binary", "large_binary"])
def test_types_of_texts(kind):
    column = pa.array(TEXTS)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pa, kind)())
    labels = pa.array([row["label"] for row in ROWS]).dictionary_encode()
    pq.write_table(pa.table({"text": column, "label": labels}), "a.parquet", row_group_size=7)
    assert rows(find("a.parquet")["train"]) == PAIRS
    assert open_corpus("a.parquet", task="clf").label_names == ["n", "p"]


def test_fields_of_structs_and_lists():
    table = pa.table(
        {"review": [{"text": text, "stars": 3} for text in TEXTS], "words": [text.split() for text in TEXTS]}
    )
    pq.write_table(table, "a.parquet")
    found = find("a.parquet")["train"]
    assert found.columns == ["review.text", "review.stars", "words"] and found.num_rows == 30
    assert open_corpus("a.parquet", task="lm").text_columns == ["review.text"]
    assert rows(found, "review.text", "review.stars") == [(text, 3) for text in TEXTS]
    with pytest.raises(UserError, match="column words of a.parquet holds list.*, no text"):
        open_corpus("a.parquet", task="lm", text_column="words")


# fastText


def test_lines_of_fasttext():
    content = "".join(f"__label__{row['label']} {row['text']}\n" for row in ROWS)
    found = source(content, "a.txt")
    assert rows(found) == PAIRS and found.notes == ["a.txt: lines of fastText; __label__... is the label"]
    corpus = open_corpus("a.txt", task="clf")
    assert corpus.label_names == ["n", "p"] and "__label__" not in "".join(whole(corpus.splits["train"])[0])
    assert "__label__" not in "".join(whole(open_corpus("a.txt", task="lm").splits["train"])[0])
    assert rows(source(content + "no label\n\n__label__n\n", "a.txt"))[30:] == [
        ("no label", None),
        ("", None),
        ("", "n"),
    ]
    with pytest.raises(UserError, match="has a line with 2 labels, and its first 1,000 lines have one each"):
        rows(source(content * 40 + "__label__n __label__p both\n", "a.txt"))


def test_lines_of_fasttext_with_several_labels():
    found = source("__label__n __label__p both\n__label__p one\nnone\n" * 5, "a.txt")
    assert rows(found)[:3] == [("both", ["n", "p"]), ("one", ["p"]), ("none", None)]
    corpus = open_corpus("a.txt", task="clf", valid="0.4")
    assert corpus.label_names == ["n", "p"] and corpus.label_sets.sets == ('["n", "p"]', '["p"]')
    assert corpus.splits["train"].count_labels().keys() == set(corpus.label_sets.sets)


# Labels


@pytest.mark.parametrize("labels, names", [
    ([True, False], ["False", "True"]), ([0.5, 1.5], ["0.5", "1.5"]), ([1.0, 0.0], ["0", "1"]),
    (["--1", "1"], ["--1", "1"]), (["2020-01-01", "2021-01-01"], ["2020-01-01", "2021-01-01"]),
    ([-1, 0, 1, 2], ["0", "1", "2"]), ([-2, -1, 0, 1], ["-2", "-1", "0", "1"]), ([-1, "a", "b"], ["-1", "a", "b"]),
])  # fmt: skip
def test_labels_of_every_type(labels, names):
    data = {"text": [f"film {n}" for n in range(60)], "label": [labels[n % len(labels)] for n in range(60)]}
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(*data.values(), strict=True)]
    write("a.jsonl", "\n".join(lines))
    write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(*data.values(), strict=True)))
    from ulmfit.data.in_memory import in_memory

    for where in ("a.jsonl", "a.csv", in_memory(data)):
        assert open_corpus(where, task="clf").label_names == names


@pytest.mark.parametrize("labels", [(-1, 1), (-1, 0, 1), (-1, 0)])
def test_minus_one_beside_one_is_not_guessed(labels):
    from ulmfit.data.in_memory import in_memory

    data = {"text": [f"film {n}" for n in range(60)], "label": [labels[n % len(labels)] for n in range(60)]}
    write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(*data.values(), strict=True)))
    for where in ("a.csv", in_memory(data)):
        with pytest.raises(UserError, match="has the labels -1, .*; add --unlabelled -1 if .* or --unlabelled none"):
            open_corpus(where, task="clf")
        assert open_corpus(where, task="clf", unlabelled="none").label_names == list(map(str, labels))
        if len(labels) == 3:
            corpus = open_corpus(where, task="clf", unlabelled="-1")
            assert corpus.label_names == ["0", "1"] and whole(corpus.splits["train"])
            assert corpus.splits["train"].skipped["unlabelled"] > 10


def test_another_value_means_unlabelled():
    write("a.csv", "text,label\n" + "".join(f"film {n},{('pos', 'neg', '?')[n % 3]}\n" for n in range(90)))
    assert open_corpus("a.csv", task="clf").label_names == ["?", "neg", "pos"]
    corpus = open_corpus("a.csv", task="clf", unlabelled="?")
    assert corpus.label_names == ["neg", "pos"] and set(whole(corpus.splits["train"])[1]) == {0, 1}


def test_dates_in_memory_are_part_of_the_identity():
    import datetime

    from ulmfit.data.in_memory import in_memory

    def fingerprint(year: int) -> str:
        days = [datetime.date(year, 1, 1 + number % 2) for number in range(60)]
        return open_corpus(in_memory({"text": [f"film {n}" for n in range(60)], "label": days}), task="lm").fingerprint

    assert fingerprint(2020) != fingerprint(2021)
