"""The command that scores a trained model, in this process."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest

import ulmfit
from tests.training.runs import rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# evaluate


def last_metrics(run, split):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == "eval" and line["split"] == split][-1]


def test_evaluate_scores_what_training_scored(command, runs, reviews):
    for run in (runs.lm, runs.clf):
        (line,) = command("evaluate", "--model", run, "--data", reviews, "--split", "valid")
        scores, trained = json.loads(line), last_metrics(run, "valid")
        assert scores["split"] == "valid" and 0 < scores["documents"] < 40 and command.err == ""
        assert scores["loss"] == pytest.approx(trained["loss"], rel=1e-5)
        assert scores["accuracy"] == pytest.approx(trained["accuracy"], rel=1e-5)


def test_evaluate_reads_a_language_model_in_the_rows_of_its_training(command, runs, reviews, tmp_path):
    def scores(model, *more):
        (line,) = command("evaluate", "--model", model, "--data", reviews, "--split", "all", *more)
        return json.loads(line)

    trained = scores(runs.lm / "model")
    assert (trained["rows"], trained["bptt"]) == (8, 20) and trained == scores(runs.lm, "--batch-size", 8)
    # A model of an earlier version: in its run, and alone.
    shutil.copytree(runs.lm, tmp_path / "run")
    file = tmp_path / "run" / "model" / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("eval_rows") == 8
    file.write_text(json.dumps(config))
    assert scores("run") == scores("run/model") == trained and command.err == ""
    shutil.move("run/model", "alone")
    alone = scores("alone")
    assert command.err == "alone does not tell the rows of its training; reading in 64\n" and alone["rows"] == 64
    assert alone == scores(runs.lm, "--batch-size", 64) and alone["loss"] != trained["loss"]


def test_evaluate_a_file_without_splits_scores_every_row(command, runs, reviews):
    rows = rows_of(reviews)
    (line,) = command("evaluate", "--model", runs.clf, "--data", reviews)
    scores = json.loads(line)
    predicted = ulmfit.TextClassifier.from_pretrained(runs.clf).predict([row["text"] for row in rows])
    hits = sum(prediction.label == row["label"] for prediction, row in zip(predicted, rows, strict=True))
    loss = -np.mean(
        [
            np.log(prediction.probabilities[["neg", "pos"].index(row["label"])])
            for prediction, row in zip(predicted, rows, strict=True)
        ]
    )
    assert scores["split"] == "all" and scores["documents"] == len(rows)
    assert scores["accuracy"] == pytest.approx(hits / len(rows))
    assert scores["loss"] == pytest.approx(loss, rel=1e-4)
    assert sum(map(sum, scores["confusion"])) == len(rows) and scores["labels"] == ["neg", "pos"]


def split_folder(tmp_path, reviews, **splits):
    """A folder of one file a split: name=(first row, last row)."""
    rows = rows_of(reviews)
    (tmp_path / "corpus").mkdir()
    for name, (first, last) in splits.items():
        with open(tmp_path / "corpus" / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["text", "label"])
            table.writeheader()
            table.writerows(rows[first:last])
    return "corpus"


def test_evaluate_takes_test_then_valid(command, mistake, runs, reviews, tmp_path):
    data = split_folder(tmp_path, reviews, train=(0, 50), valid=(50, 70), test=(70, 100))
    documents = {}
    for split in (None, "train", "validation", "test", "all"):
        (line,) = command("evaluate", "--model", runs.clf, "--data", data, *(["--split", split] if split else []))
        documents[split] = (json.loads(line)["split"], json.loads(line)["documents"])
    assert documents == {
        None: ("test", 30),
        "train": ("train", 50),
        "validation": ("valid", 20),
        "test": ("test", 30),
        "all": ("all", 100),
    }
    assert "no split trial, only" in mistake("evaluate", "--model", runs.clf, "--data", data, "--split", "trial")
    assert "--valid" in mistake("evaluate", "--model", runs.clf, "--data", data, "--valid", "0.1")
    os.remove("corpus/test.csv")
    (line,) = command("evaluate", "--model", runs.lm, "--data", data)
    assert (json.loads(line)["split"], json.loads(line)["documents"]) == ("valid", 20)


def test_evaluate_the_rows_that_a_column_marks(command, runs, reviews, tmp_path):
    rows = rows_of(reviews)
    with open(tmp_path / "marked.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["text", "label", "is_valid"])
        table.writeheader()
        table.writerows(row | {"is_valid": number % 4 == 0} for number, row in enumerate(rows))
    (line,) = command("evaluate", "--model", runs.clf, "--data", "marked.csv")
    assert (json.loads(line)["split"], json.loads(line)["documents"]) == ("valid", len(rows) // 4)


@pytest.mark.parametrize(
    "option", [["--unlabelled", "1"], ["--encoding", "utf-16"], ["--separator", ";"], ["--skip-unseen"]]
)
def test_how_data_are_read_is_not_asked_of_a_run(mistake, runs, option):
    """They were ignored."""
    assert f"{option[0]} is for --data" in mistake("evaluate", "--model", runs.clf, *option)


def test_evaluate_refuses_labels_that_the_model_does_not_know(mistake, runs, tmp_path):
    (tmp_path / "new.csv").write_text("text,label\n" + "one film,pos\n" * 5 + "another,meh\n")
    sentence = mistake("evaluate", "--model", runs.clf, "--data", "new.csv")
    assert "'meh'" in sentence and "new.csv" in sentence and "neg, pos" in sentence


def test_evaluate_needs_labels_for_a_classifier_alone(command, mistake, runs, tmp_path):
    (tmp_path / "new.csv").write_text("text,sentiment\n" + "one film was good,pos\n" * 5)
    assert "no column label; choose one of text, sentiment" in mistake(
        "evaluate", "--model", runs.clf, "--data", "new.csv"
    )
    (line,) = command("evaluate", "--model", runs.clf, "--data", "new.csv", "--label-column", "sentiment")
    assert json.loads(line)["documents"] == 5
    (line,) = command("evaluate", "--model", runs.lm, "--data", "new.csv", "--text-column", "text")
    assert json.loads(line)["perplexity"] == pytest.approx(np.exp(json.loads(line)["loss"]))


def test_evaluate_leaves_unlabelled_rows_out_and_says_so(command, mistake, runs, tmp_path):
    (tmp_path / "new.csv").write_text("text,label\n" + "one film,pos\n" * 39 + "another,\n")
    (line,) = command("evaluate", "--model", runs.clf, "--data", "new.csv")
    assert json.loads(line)["documents"] == 39 and command.err.strip() == "skipped rows: 1 unlabelled"
    (tmp_path / "few.csv").write_text("text,label\n" + "one film,pos\n" * 5 + "another,\n" * 20)
    (line,) = command("evaluate", "--model", runs.clf, "--data", "few.csv")
    assert json.loads(line)["documents"] == 5 and command.err.strip() == "skipped rows: 20 unlabelled"
    (tmp_path / "none.csv").write_text("text,label\n" + "another,\n" * 20)
    assert "no labelled row" in mistake("evaluate", "--model", runs.clf, "--data", "none.csv")
