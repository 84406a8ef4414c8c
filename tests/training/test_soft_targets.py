"""--probability-columns: one-hot rows train what labels train, bit for bit, and predict's output goes straight back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.training import runs
from ulmfit import cli, train_classifier
from ulmfit.data.corpus import open_corpus
from ulmfit.data.probabilities import SoftSplit
from ulmfit.errors import UserError
from ulmfit.model.soft_loss import soft_cross_entropy

CLASSES = "neg,pos"


def write(path: Path, rows: list[tuple]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "pos", "neg"])
        table.writerows(rows)
    return path


@pytest.fixture
def tables(tmp_path, reviews) -> dict[str, Path]:
    """Reviews with one-hot and with soft probabilities, both beside their labels."""
    with open(reviews, encoding="utf-8", newline="") as file:
        pairs = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    random = np.random.RandomState(0)
    hard = [(text, label, int(label == "pos"), int(label == "neg")) for text, label in pairs]
    sure = random.uniform(0.6, 1, len(pairs)).round(6)
    soft = [(text, label, p if label == "pos" else round(1 - p, 6), p if label == "neg" else round(1 - p, 6))
            for (text, label), p in zip(pairs, sure, strict=True)]  # fmt: skip
    return {"hard": write(tmp_path / "hard.csv", hard), "soft": write(tmp_path / "soft.csv", soft)}


def train(folder: Path, data: Path, **options):
    return train_classifier(runs.clf_config(folder, data=str(data), preset="tiny", **{"max_steps": 4} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_one_hot_rows_has_the_bits_of_the_loss_of_labels(dtype):
    generator = torch.Generator().manual_seed(0)
    for n, classes in ((2, 2), (32, 2), (33, 6), (129, 5)):
        logits = 3 * torch.randn(n, classes, dtype=dtype, generator=generator)
        labels = torch.randint(classes, (n,), generator=generator)
        one_hot = F.one_hot(labels, classes).to(dtype)
        for weight in (None, torch.rand(classes, dtype=dtype, generator=generator) + 0.1):
            hard, soft = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            loss = F.cross_entropy(hard, labels, weight=weight)
            found = soft_cross_entropy(soft, one_hot, weight=weight)
            assert torch.equal(loss, found)
            (loss / 3).backward()
            (found / 3).backward()
            assert torch.equal(hard.grad, soft.grad)
        assert torch.equal(
            F.cross_entropy(logits, labels, reduction="sum"), soft_cross_entropy(logits, one_hot, reduction="sum")
        )
        targets = torch.randn(n, classes, dtype=dtype, generator=generator).softmax(1)
        assert torch.allclose(soft_cross_entropy(logits, targets), F.cross_entropy(logits, targets), rtol=1e-5)


@pytest.mark.slow
def test_one_hot_probabilities_train_what_labels_train(tables, tmp_path):
    options = {"class_weights": "balanced", "labels": 40, "micro_batches": 2}
    hard = train(tmp_path / "a", tables["hard"], **options)
    soft = train(tmp_path / "b", tables["hard"], probability_columns=CLASSES, **options)
    a, b = runs.weights(hard.run_dir), runs.weights(soft.run_dir)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(hard.run_dir) == runs.metrics(soft.run_dir)


@pytest.mark.slow
def test_soft_targets_do_not_depend_on_the_cut_of_the_batch(tables, tmp_path):
    found = [
        train(tmp_path / str(parts), tables["soft"], probability_columns=CLASSES, precision="fp64", micro_batches=parts)
        for parts in (1, 3)
    ]
    assert runs.distance(*(runs.weights(result.run_dir) for result in found)) < 1e-10
    labels = train(tmp_path / "labels", tables["soft"], precision="fp64", max_steps=1)
    losses = [runs.losses(run.run_dir)[0] for run in (found[0], labels)]  # of the same weights
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
def test_what_predict_writes_goes_straight_back(runs_of_reviews, reviews, tmp_path):
    expected = None
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        output = tmp_path / f"predicted.{suffix}"
        assert (
            cli.main(["predict", "--model", str(runs_of_reviews), "--data", str(reviews), "--output", str(output)]) == 0
        )
        corpus = open_corpus(str(output), task="clf", probability_columns=["pos", "neg"], valid=0.2)
        split = corpus.splits["train"]
        batches = list(split.batches())
        rows = np.array([row for batch in batches for row in batch.rows])
        found = split.probabilities(rows)
        assert corpus.label_names == ["pos", "neg"] and isinstance(corpus.splits["valid"], SoftSplit)
        assert np.abs(found.sum(1) - 1).max() < 1e-6
        assert [label for batch in batches for label in batch.labels] == found.argmax(1).tolist()
        texts = [text for batch in batches for text in batch.texts]
        if expected is None:
            expected = texts, found
        assert texts == expected[0] and np.abs(found - expected[1]).max() < 2e-6
    result = train(tmp_path / "run", tmp_path / "predicted.jsonl", probability_columns=CLASSES, max_steps=1)
    assert result.model().label_names == ["neg", "pos"] and 0 <= result.metrics["valid"]["accuracy"] <= 1


@pytest.fixture(scope="module")
def runs_of_reviews(runs) -> Path:
    return runs.clf


def test_validation_may_have_labels_instead(tables, reviews):
    corpus = open_corpus(str(tables["soft"]), task="clf", probability_columns=["neg", "pos"], valid=str(reviews))
    assert not isinstance(corpus.splits["valid"], SoftSplit) and corpus.splits["valid"].label_names == ["neg", "pos"]


def test_rows_without_probabilities_are_left_out(tmp_path):
    rows = [
        (f"text {number}", "", "", "") if number % 4 else (f"text {number}", "pos", 0.9, 0.1) for number in range(40)
    ]
    corpus = open_corpus(str(write(tmp_path / "t.csv", rows)), task="clf", probability_columns=["neg", "pos"])
    batches = list(corpus.splits["train"].batches())
    chosen = np.array([row for batch in batches for row in batch.rows])
    assert set(chosen % 4) == {0} and corpus.splits["train"].skipped["unlabelled"] > 0
    assert np.allclose(corpus.splits["train"].probabilities(chosen), [[0.1, 0.9]])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("t", "", 0.5, 0.2), "the probabilities of row 1 of {} sum to 0.7; make their sum 1"),
        (("t", "", 1.2, -0.2), "row 1 of {} has '-0.2', '1.2' for probabilities"),
        (("t", "", "", 1), "row 1 of {} has '', '1' for probabilities".replace("'', '1'", "'1', ''")),
        (("t", "", "nan", 1), "row 1 of {} has '1', 'nan' for probabilities"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused(tmp_path, row, sentence):
    path = write(tmp_path / "t.csv", [("a text", "", 0.4995, 0.5), row])
    with pytest.raises(UserError) as caught:
        open_corpus(str(path), task="clf", probability_columns=["neg", "pos"])
    assert sentence.format(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"probability_columns": "neg"}, "does not name a column for each of two classes"),
        ({"probability_columns": "neg,neg"}, "does not name a column for each of two classes"),
        ({"probability_columns": "neg,", "max_steps": 1}, "does not name a column for each of two classes"),
        ({"probability_columns": CLASSES, "label_smoothing": 0.1}, "leave out --label-smoothing"),
        ({"probability_columns": "neg,other"}, "has no column other"),
    ],
)
def test_options_that_do_not_fit_are_refused(tables, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tmp_path / "run", tables["soft"], **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_choice_of_columns_is_another_run(tables, tmp_path):
    train(tmp_path / "run", tables["soft"], probability_columns=CLASSES, max_steps=1)
    assert train(tmp_path / "run", tables["soft"], max_steps=1).state == "done"  # what is not given is as it began
    with pytest.raises(UserError, match="probability-columns: neg,pos -> pos,neg"):
        train(tmp_path / "run", tables["soft"], probability_columns="pos,neg", max_steps=1)
    assert json.loads((tmp_path / "run/config.json").read_text())["options"]["probability_columns"] == CLASSES
