"""The commands that use trained models, in this process but for one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

import ulmfit
from tests.training.runs import rows_of
from ulmfit.distributed.runtime import Runtime

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# tokenizer


def test_tokenizer_is_trained_on_the_training_split(command, runs, reviews):
    (line,) = command("tokenizer", "--data", reviews, "--output", "t.json")
    trained = ulmfit.Tokenizer.from_file("t.json")
    assert trained.fingerprint == ulmfit.Tokenizer.from_file(runs.lm / "tokenizer.json").fingerprint
    assert f"{len(trained):,} tokens" in line and trained.fingerprint in line


def test_tokenizer_options(command, reviews):
    command(
        "tokenizer",
        "--data",
        reviews,
        "--output",
        "t.json",
        "--rules",
        "fastai2",
        "--vocab-size",
        100,
        "--subword",
        "bpe",
    )
    trained = ulmfit.Tokenizer.from_file("t.json")
    assert (len(trained), trained.rules, trained.subword) == (100, "fastai2", "bpe")


def test_tokenizer_overwrites_nothing(mistake, reviews, tmp_path):
    (tmp_path / "t.json").write_text("mine")
    assert "t.json exists" in mistake("tokenizer", "--data", reviews, "--output", "t.json")
    assert (tmp_path / "t.json").read_text() == "mine"
    assert "no/t.json cannot be written" in mistake("tokenizer", "--data", reviews, "--output", "no/t.json")
    assert "--min-freq" in mistake("tokenizer", "--data", reviews, "--min-freq", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


# show


def test_show_reads_language_model_rows_that_go_on(command, runs, reviews):
    lines = command("show", "--data", reviews, "--tokenizer", runs.lm, "--rows", 2, "--bptt", 7, "--batch-size", 4)
    assert len(lines) == 6
    assert lines[0] == "epoch 0 step 0: 4 rows of 7 tokens" and lines[3] == "epoch 0 step 1: 4 rows of 7 tokens"
    rows = [line.split(": ", 1)[1].split(" ") for line in lines if line.startswith("  row")]
    assert [len(row) for row in rows] == [7] * 4 and rows[0][0] == "xxbos"
    tok = ulmfit.Tokenizer.from_file(runs.lm / "tokenizer.json")
    with open(reviews, encoding="utf-8", newline="") as file:
        documents = [
            " ".join(word if word in tok.vocab else "xxunk" for word in tok.tokenize([row["text"]])[0])
            for row in csv.DictReader(file)
        ]
    opening = " ".join(rows[0] + rows[2])  # the first row of both steps: 14 tokens of one document or two
    assert any(document.startswith(opening[:60]) for document in documents)


def test_show_reads_documents_with_their_labels(command, runs, reviews):
    lines = command(
        "show",
        "--data",
        reviews,
        "--tokenizer",
        runs.clf / "model",
        "--task",
        "clf",
        "--rows",
        3,
        "--steps",
        1,
        "--bptt",
        1000,
    )
    assert lines[0].startswith("epoch 0 step 0: ") and "documents of" in lines[0] and len(lines) == 4
    tok = ulmfit.Tokenizer.from_file(runs.lm / "tokenizer.json")
    truth = {}
    for row in rows_of(reviews):
        words = [word if word in tok.vocab else "xxunk" for word in tok.tokenize([row["text"]])[0]]
        truth[" ".join(repr(word)[1:-1] for word in words)] = row["label"]
    for line in lines[1:]:
        label, text = line.strip().removeprefix("[").split("] ", 1)
        assert truth[text] == label


def test_show_names_its_mistakes(mistake, runs, reviews):
    assert "no column class" in mistake(
        "show", "--data", reviews, "--tokenizer", runs.lm, "--task", "clf", "--label-column", "class"
    )
    assert "absent" in mistake("show", "--data", reviews, "--tokenizer", "absent")
    assert "lower --batch-size" in mistake("show", "--data", reviews, "--tokenizer", runs.lm, "--batch-size", 10**6)
    assert "--rows" in mistake("show", "--tokenizer", runs.lm, "--rows", 0)


# predict


def test_predict_texts(command, runs):
    classifier = ulmfit.TextClassifier.from_pretrained(runs.clf)
    texts = ["a good film", "a bad film, and long", ""]
    lines = command("predict", "--model", runs.clf, *texts)
    assert lines[:2] == [f"{label}\t{row.max():.4f}" for label, _, row in classifier.predict(texts[:2])]
    assert lines[2] == "\t\tempty"


@pytest.mark.parametrize("chunk", (7, 2048))
def test_predict_a_corpus_in_each_format(command, runs, reviews, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("ulmfit.cli.predict.CHUNK", chunk)
    wanted = ulmfit.TextClassifier.from_pretrained(runs.clf).predict([row["text"] for row in rows_of(reviews)])
    names = ["p.csv", "p.jsonl", "p.parquet", "p.tsv", "p.txt"]
    for name in names:
        assert command("predict", "--model", runs.clf, "--data", reviews, "--output", name) == []
    json_rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    tables = [rows_of("p.csv"), rows_of("p.tsv", "\t"), pq.read_table("p.parquet").to_pylist()]
    txt_rows = [line.split("\t") for line in Path("p.txt").read_text().splitlines()]
    assert command("predict", "--model", runs.clf, "--data", reviews) == Path("p.txt").read_text().splitlines()
    given = rows_of(reviews)
    for number, (prediction, a, c, row) in enumerate(zip(wanted, json_rows, txt_rows, given, strict=True)):
        assert a["row"] == int(c[0]) == number
        assert a["label"] == c[1] == prediction.label and a["input"] == row and a["reason"] == ""
        np.testing.assert_allclose(list(a["probabilities"].values()), prediction.probabilities, atol=1e-5)
        assert float(c[2]) == pytest.approx(prediction.probabilities.max(), abs=1e-4)
        for table in tables:
            found = table[number]
            assert list(found) == ["row", "label", "neg", "pos", "reason", "text", "input_label"]
            assert int(found["row"]) == number and found["label"] == prediction.label and found["reason"] == ""
            np.testing.assert_allclose([float(found["neg"]), float(found["pos"])], prediction.probabilities, atol=1e-5)
            assert {"text": found["text"], "label": found["input_label"]} == row
    assert all(len(table) == len(wanted) for table in tables)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_predict_leaves_nothing_behind_a_mistake(mistake, runs, reviews, tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    assert "p.csv exists" in mistake("predict", "--model", runs.clf, "--data", reviews, "--output", "p.csv")
    assert "cannot be written as .xlsx" in mistake("predict", "--model", runs.clf, "good", "--output", "p.xlsx")
    assert "either texts or --data" in mistake("predict", "--model", runs.clf)
    assert "either texts or --data" in mistake("predict", "--model", runs.clf, "text", "--data", reviews)
    assert "LanguageModel" in mistake("predict", "--model", runs.lm, "text")
    assert "no column body" in mistake("predict", "--model", runs.clf, "--data", reviews, "--text-column", "body")
    assert "--model" in mistake("predict", "text")
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv"]


@pytest.mark.parametrize("world_size", (1, 2, 3, 8))
@pytest.mark.parametrize("num_rows", (0, 1, 5, 16))
def test_shares_of_the_processes_joined_by_rank_are_the_whole(world_size, num_rows):
    shares = [
        Runtime.own_rows(SimpleNamespace(rank=rank, world_size=world_size), num_rows) for rank in range(world_size)
    ]
    assert [row for share in shares for row in share] == list(range(num_rows))


# generate


def test_generate(command, runs):
    options = ("--seed", 3, "--max-new-tokens", 6, "--temperature", 0.9, "--top-k", 50, "--min-p", 0.01)
    lines = command("generate", "--model", runs.lm, "I liked  this", "The", *options)
    model = ulmfit.LanguageModel.from_pretrained(runs.lm)
    texts = model.generate(["I liked  this", "The"], seed=3, max_new_tokens=6, temperature=0.9, top_k=50, min_p=0.01)
    assert lines == "\n".join(texts).split("\n")  # a text may hold new lines


def test_generate_names_its_mistakes(mistake, runs):
    assert "TextClassifier" in mistake("generate", "--model", runs.clf, "The")
    assert "temperature is -1" in mistake("generate", "--model", runs.lm, "The", "--temperature", -1)
    assert "--top-k" in mistake("generate", "--model", runs.lm, "The", "--top-k", 0)
    assert "absent does not exist" in mistake("generate", "--model", "absent", "The")


def test_int8_moves_probabilities_a_little(command, mistake, runs, reviews):
    plain, int8 = (
        [line.split("\t") for line in command("predict", "--model", runs.clf, "--data", reviews, *more)]
        for more in ((), ("--int8",))
    )
    differences = [abs(float(a[2]) - float(b[2])) for a, b in zip(plain, int8, strict=True)]
    assert 0 < max(differences) < 0.02
    (line,) = command("evaluate", "--model", runs.clf, "--data", reviews, "--int8")
    (other,) = command("evaluate", "--model", runs.clf, "--data", reviews)
    assert json.loads(line)["loss"] != json.loads(other)["loss"] == pytest.approx(json.loads(line)["loss"], rel=0.02)
    assert "--int8 is for classifiers" in mistake("evaluate", "--model", runs.lm, "--data", reviews, "--int8")


# the columns that a classifier was trained on


@pytest.fixture
def two_columns(runs, tmp_path):
    """A classifier of texts in the columns title and body, and a table that also has a column text."""
    shutil.copytree(runs.clf / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"text_columns": ["title", "body"]}))
    with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "title", "body", "label"])
        table.writerows([f"one film {n}", f"a bad {n}", "film not good", "neg"] for n in range(20))
    return ["--model", "model", "--data", "new.csv"]


def test_predict_and_evaluate_read_what_the_classifier_was_trained_on(command, two_columns):
    given = ("--text-column", "title,body")
    assert command("predict", *two_columns) == command("predict", *two_columns, *given)
    assert command("predict", *two_columns) != command("predict", *two_columns, "--text-column", "text")
    for split in (("--split", "all"), ("--valid", "0.5")):
        own, other, text = (
            json.loads(command("evaluate", *two_columns, *split, *more)[0])["loss"]
            for more in ((), given, ("--text-column", "text"))
        )
        assert own == other != text


def test_a_table_with_other_columns_than_the_classifier_was_trained_on(command, mistake, two_columns, tmp_path):
    (tmp_path / "texts.csv").write_text("text\none film\n")
    assert len(command("predict", "--model", "model", "--data", "texts.csv")) == 1
    (tmp_path / "half.csv").write_text("text,body\none film,was good\n")
    assert "half.csv has no column title; the model was trained on it" in mistake(
        "predict", "--model", "model", "--data", "half.csv"
    )


# The command line itself


def test_the_real_command(runs):
    def run(*argv):
        return subprocess.run(
            [sys.executable, "-m", "ulmfit", *argv],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(Path(ulmfit.__file__).parents[1])},
        )

    done = run("predict", "--model", runs.clf, "good", "bad")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] in ("neg", "pos") for line in done.stdout.splitlines()] == [True, True]
    done = run("predict", "--model", "absent", "good")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: absent does not exist") and done.stderr.count("\n") == 1
