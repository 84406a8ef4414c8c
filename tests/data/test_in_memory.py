"""Corpora that Python code holds in memory: every container, their identity, and runs on them."""

from __future__ import annotations

import dataclasses
import enum
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import ulmfit
from tests.training import runs as short
from ulmfit.cli.options import parse
from ulmfit.data.corpus import open_corpus
from ulmfit.data.in_memory import InMemory, in_memory
from ulmfit.errors import UserError

TEXTS = [f"film number {number} was {'good' if number % 3 else 'bad'}" for number in range(60)]
LABELS = ["neg" if number % 3 == 0 else "pos" for number in range(60)]
COLUMNS = {"text": TEXTS, "label": LABELS}


class Opinion(enum.Enum):
    BAD = 0
    GOOD = 1


def polars(columns):
    return pytest.importorskip("polars").DataFrame(columns)


LABELLED = {
    "dict of columns": lambda: COLUMNS,
    "pandas frame": lambda: pd.DataFrame(COLUMNS, index=range(100, 160)),
    "pandas frame of categories": lambda: pd.DataFrame(COLUMNS).astype({"label": "category"}),
    "polars frame": lambda: polars(COLUMNS),
    "datasets.Dataset": lambda: datasets.Dataset.from_dict(COLUMNS),
    "pair of lists": lambda: (TEXTS, LABELS),
    "pair of arrays": lambda: (np.array(TEXTS), np.array(LABELS)),
    "pair of a frame's columns": lambda: (pd.Series(TEXTS), pd.Series(LABELS)),
    "pair of their values": lambda: (pd.Series(TEXTS).values, pd.Series(LABELS).values),
    "pair with categories": lambda: (pd.Series(TEXTS).values, pd.Categorical(LABELS)),
    "dict of what pandas has": lambda: {"text": pd.Index(TEXTS), "label": pd.Series(LABELS).astype("category").values},
    "dict of pyarrow's": lambda: {"text": pa.chunked_array([TEXTS]), "label": pa.array(LABELS)},
    "one split": lambda: {"train": COLUMNS},
}


def rows(data, task="clf", **options) -> dict[str, list[tuple]]:
    """(text, label) of every split."""
    corpus = open_corpus(InMemory(data), task=task, **options)
    names = corpus.label_names or []
    return {
        name: [
            (text, names[label] if batch.labels else None)
            for batch in split.batches()
            for text, label in zip(batch.texts, batch.labels or [0] * len(batch.texts), strict=True)
        ]
        for name, split in corpus.splits.items()
    }


@pytest.mark.parametrize("name", LABELLED)
def test_every_container_holds_the_same_corpus(name):
    data = LABELLED[name]()
    found = rows(data)
    assert sorted(found["train"] + found["valid"]) == sorted(zip(TEXTS, LABELS, strict=True))
    assert found == rows(COLUMNS)
    assert InMemory(data).sources["train"].fingerprint == InMemory(COLUMNS).sources["train"].fingerprint


def test_labels_that_are_tensors_are_their_numbers():
    numbers = [number % 3 for number in range(60)]
    assert rows((TEXTS, [torch.tensor(number) for number in numbers])) == rows((TEXTS, numbers))


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, lambda texts: polars({"text": texts})["text"],
                                  lambda texts: datasets.Dataset.from_dict({"text": texts})["text"]])  # fmt: skip
def test_texts_alone(make):
    found = rows(make(TEXTS), "lm")
    assert sorted(text for part in found.values() for text, _ in part) == sorted(TEXTS)


def test_splits():
    train, valid, test = ({"text": TEXTS[a:b], "label": LABELS[a:b]} for a, b in ((0, 40), (40, 50), (50, 60)))
    expected = {"train": 40, "valid": 10, "test": 10}
    for data in (
        {"train": pd.DataFrame(train), "validation": (valid["text"], valid["label"]), "test": test},
        datasets.DatasetDict(
            {name: datasets.Dataset.from_dict(part) for name, part in zip(expected, (train, valid, test), strict=True)}
        ),
    ):
        assert {name: len(part) for name, part in rows(data).items()} == expected


def test_the_classes_of_a_data_set_are_its_own():
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"]))
    data = datasets.Dataset.from_dict(COLUMNS, features=features)
    assert open_corpus(InMemory(data), task="clf").label_names == ["pos", "neg"]
    assert sorted(rows(data)["train"]) == sorted(rows(COLUMNS)["train"])


def test_missing_values_are_rows_at_fault_and_unlabelled_rows():
    labels = [int(label == "pos") for label in LABELS]
    frame = pd.DataFrame({"text": [*TEXTS * 2, None, float("nan"), pd.NA], "label": [*labels * 2, 1, 0, 1]})
    split = open_corpus(InMemory(frame), task="clf", valid=0.2).splits
    counted = {name: sum(1 for _ in part.batches()) and part.skipped["no text"] for name, part in split.items()}
    assert sum(counted.values()) == 3
    numbers = pd.DataFrame({"text": TEXTS[:21], "label": [*[0.0, 1.0] * 10, None]})  # as pandas holds a missing integer
    names = open_corpus(InMemory(numbers), task="clf").label_names
    assert names == ["0", "1"]


def test_the_identity_is_the_content():
    fingerprint = InMemory(COLUMNS).sources["train"].fingerprint
    others = (
        COLUMNS | {"text": [*TEXTS[:-1], "another"]},
        COLUMNS | {"label": LABELS[::-1]},
        {"text": TEXTS[::-1], "label": LABELS[::-1]},
        {"texts": TEXTS, "label": LABELS},
    )
    assert len({fingerprint, *(InMemory(other).sources["train"].fingerprint for other in others)}) == 5
    # So is that of labels of any type. A cache holds what was read of a fingerprint.
    numbers = np.array([label == "pos" for label in LABELS], dtype=int)
    kinds = [
        lambda ones: [Opinion(one) for one in ones.tolist()],
        lambda ones: [b"ab"[one : one + 1] for one in ones],
        lambda ones: pd.cut(ones, [-1, 0, 1]),
        lambda ones: torch.tensor(ones),
    ]
    found = [InMemory(COLUMNS | {"label": kind(ones)}) for kind in kinds for ones in (numbers, 1 - numbers)]
    assert len({one.sources["train"].fingerprint for one in found}) == 8
    first, second = (COLUMNS | {"text": ["fault at 0x7ffe in main", *TEXTS[2:], last]} for last in "ab")
    assert InMemory(first).sources["train"].fingerprint != InMemory(second).sources["train"].fingerprint
    # What can be neither text nor label does not count, and need not be readable twice alike.
    for _ in range(2):
        more = COLUMNS | {"object": [object() for _ in TEXTS]}
        assert InMemory(more).sources["train"].fingerprint == InMemory(more).sources["train"].fingerprint


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (iter(TEXTS), "data= is of type list_iterator; give a path, a data frame"),
        ({*TEXTS}, "data= is of type set; give"),
        (b"text", "data= is of type bytes; give"),
        ([{"text": "a"}], "data= is a list of dict and not of texts; give"),
        ([1, 2], "data= is a list of int and not of texts"),
        ((TEXTS, LABELS[:3]), "differ in length (text 60, label 3); give a value for each row"),
        ((TEXTS, iter(LABELS)), "the labels in data= are of type list_iterator; give a list"),
        ((pa.table({"text": TEXTS}), LABELS), "the texts in data= are of type Table; give a list"),
        ({"text": "abc"}, "column text of data= is of type str; give a list"),
        ({}, "data= is an empty dict"),
        ([], "the list of texts in memory is empty; give data with rows"),
        ({"train": TEXTS, "training": TEXTS}, "data= holds a split twice (train, training)"),
    ],
)
def test_anything_else_is_refused(data, sentence):
    with pytest.raises(UserError) as caught:
        in_memory(data)
    assert sentence in str(caught.value)


@pytest.mark.slow
def test_a_run_describes_its_data_and_goes_on_with_the_same(tmp_path, runs):
    config = short.clf_config(tmp_path / "clf", data=(TEXTS, LABELS), encoder=runs.lm, max_steps=4)
    given = dict(vars(config))
    assert ulmfit.train_classifier(config, short.StopAtCall(2)).state == "preempted"
    assert vars(config) == given
    stored = json.loads((tmp_path / "clf" / "config.json").read_text())["options"]["data"]
    assert stored == "in memory: pair of texts and labels, train 60 rows, columns text, label"
    assert not any(TEXTS[0] in file.read_text(errors="replace") for file in (tmp_path / "clf").rglob("*.json"))
    other = dataclasses.replace(config, data=(TEXTS, LABELS[::-1]))
    with pytest.raises(UserError, match="holds another run"):
        ulmfit.train_classifier(other)
    with pytest.raises(UserError, match="with the same data="):
        ulmfit.train_classifier(dataclasses.replace(config, data=None))
    rerun = parse(ulmfit.ClassifierConfig, ["--config", str(tmp_path / "clf"), "--output-dir", str(tmp_path / "new")])
    with pytest.raises(UserError, match="was given its data from Python .*with the same data="):
        ulmfit.train_classifier(rerun)
    # The same rows in another container are the same data.
    done = ulmfit.train_classifier(dataclasses.replace(config, data=pd.DataFrame(COLUMNS)))
    assert done.state == "done" and done.step == 4


def test_texts_of_every_kind_are_classified(runs):
    model = ulmfit.TextClassifier.from_pretrained(runs.clf)
    wanted = model.predict(TEXTS[:5])
    texts = TEXTS[:5]
    columns = {"id": list(range(5)), "text": texts, "label": LABELS[:5]}
    frame = pd.DataFrame(columns)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    data = datasets.Dataset.from_dict(columns)
    for given in (tuple(texts), pd.Series(texts), np.array(texts), iter(texts), {"text": texts}, columns, frame, rows,
                  iter(rows), data, data.to_iterable_dataset(), datasets.DatasetDict({"train": data}),
                  frame.rename(columns={"text": "body"}).drop(columns="label"), frame.iloc[::-1][::-1],
                  frame.set_index("id")):  # fmt: skip
        assert model.predict(given) == wanted, type(given)
    assert model.predict(frame.assign(title="x"), text_column="title") == model.predict(["x"] * 5)
    for nothing in ([], pd.Series([], dtype=str), frame.iloc[:0], {"text": []}):
        assert model.predict(nothing) == []


def test_polars_frames_are_classified(runs):
    model = ulmfit.TextClassifier.from_pretrained(runs.clf)
    frame = polars({"number": [1, 2], "text": TEXTS[:2]})
    assert model.predict(frame) == model.predict(frame["text"]) == model.predict(TEXTS[:2])


def test_a_row_without_a_text_has_its_place(runs):
    model = ulmfit.TextClassifier.from_pretrained(runs.clf)
    rows = ["good", None, "", float("nan"), " \n", pd.NA, "bad"]
    wanted = ["", "no text", "empty", "no text", "empty", "no text", ""]
    for given in (rows, pd.Series(rows), pd.DataFrame({"text": rows, "n": range(7)}), {"text": rows}):
        found = model.predict(given)
        assert [prediction.reason for prediction in found] == wanted
        assert found[0] == model.predict("good") and found[-1] == model.predict("bad")
        label, index, probabilities = found[1]
        assert (label, index) == ("", -1) and np.isnan(probabilities).all() and len(probabilities) == 2
    assert found[1] == found[2] and len({found[1], found[2]}) == 1
    assert model.predict("").reason == "empty"


def test_what_is_no_text_is_refused_in_a_sentence(runs):
    model = ulmfit.TextClassifier.from_pretrained(runs.clf)
    language_model = ulmfit.LanguageModel.from_pretrained(runs.lm)
    tokenizer = model.tokenizer
    frame = pd.DataFrame({"a": ["x y", "z w"], "b": ["x", "y"]})
    for wrong, sentence in (
        (frame, "has no column text; choose one of a, b"),
        ({"train": frame, "test": frame}, "rows are expected and not the splits train, test; give one of them"),
        ({"text": "a"}, "column text of data= is of type str; give a list"),
        (["a", 3], "text 1 is of type int; give a str"),
        (np.array([["a", "b"]]), "text 0 is of type ndarray; give a str"),
        ([{"text": "a"}, "b"], "row 1 is of type str and others are dicts"),
        (b"a", "texts are expected and not bytes"),
        ({"a", "b"}, "texts are expected and not set"),
        (3, "texts are expected and not int"),
        (None, "texts are expected and not NoneType"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.predict(wrong)
    table = r"not a (dict|DataFrame|Dataset); give one of its columns \(text, label\)"
    for wrong in (COLUMNS, pd.DataFrame(COLUMNS), datasets.Dataset.from_dict(COLUMNS)):
        for read in (language_model.generate, tokenizer.encode, tokenizer.tokenize, ulmfit.Tokenizer.train):
            with pytest.raises(UserError, match=table):
                read(wrong)
    for read in (language_model.generate, tokenizer.encode, tokenizer.tokenize):
        with pytest.raises(UserError, match="text 1 is of type NoneType"):
            read(["a", None])
