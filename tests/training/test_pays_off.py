"""The method pays off: on sentences of our own writing it beats counting their words and starting without an encoder.

The two tables of tests/fixtures:
    questions.csv   300 questions about goods, hotels, programs, food, travel and films; the kind of the answer is the label
    comments.csv    588 remarks about the same things, with negation, contrast and irony; praise or complaint

A kind of question is told by nouns that seldom repeat (which town, what year), so counting words learns little from 200
of them and an encoder that knows the nouns learns much. The remarks are hard for all: of three, two are classified right, and
counting words is behind by 1.2 standard errors (benchmarks/RESULTS.md). There the default must not lose by three.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import ulmfit
from tests.tiers import long_tier
from ulmfit.config import ClassifierConfig
from ulmfit.model.pretrained import load_model

pytest.importorskip("sklearn")

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDS = 3


def read(name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, labels, and the fold of each: every third of a label's texts is in the same one."""
    with open(FIXTURES / f"{name}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([row["label"] for row in rows])
    folds = np.empty(len(rows), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        folds[members] = np.arange(len(members)) % FOLDS
    return [row["text"] for row in rows], labels, folds


def counting_words(texts: list[str], labels: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The labels that TF-IDF and logistic regression give to the texts outside `train`.

    Its strength is chosen on these very texts, so it is a little too good.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = vectors.fit_transform([text for text, yes in zip(texts, train, strict=True) if yes])
    others = vectors.transform([text for text, yes in zip(texts, train, strict=True) if not yes])
    found = [
        LogisticRegression(C=strength, max_iter=500).fit(known, labels[train]).predict(others)
        for strength in (1.0, 10.0, 100.0)
    ]
    return max(found, key=lambda one: float(np.mean(one == labels[~train])))


@torch.inference_mode()
def pooled(texts: list[str]) -> np.ndarray:
    """The maximum and the mean of the shipped encoder's outputs, float32 [texts, 2E]."""
    net, tokenizer, _ = load_model("english")
    tokens = tokenizer.encode(texts)
    lengths = np.array([len(one) for one in tokens])
    result = np.empty((len(texts), 2 * net.config.embedding_size), dtype=np.float32)
    for length in np.unique(lengths):  # texts of one length need no padding
        rows = np.flatnonzero(lengths == length)
        batch = torch.from_numpy(np.stack([tokens[row] for row in rows]).astype(np.int64))
        output, _ = net.encoder(batch, net.encoder.init_state(len(rows)))
        result[rows] = torch.cat([output.amax(1), output.mean(1)], 1).numpy()
    return result


def test_what_the_shipped_encoder_knows_tells_more_of_a_question_than_its_words():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    texts, labels, folds = read("questions")
    train, features = folds != 0, pooled(texts)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(
        features[train], labels[train]
    )
    ours = model.score(features[~train], labels[~train])
    words = float(np.mean(counting_words(texts, labels, train) == labels[~train]))
    assert ours > words + 0.1, (ours, words)


def write(path: Path, texts: list[str], labels: np.ndarray, chosen: np.ndarray) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows([texts[row], labels[row]] for row in np.flatnonzero(chosen))


@long_tier("the encoder of the package with a linear classifier, above")
@pytest.mark.timeout(3600)  # three folds of a default job, on a busy machine
@pytest.mark.parametrize("name, ahead", [("questions", 1), ("comments", -3)])
def test_the_default_beats_counting_words_and_no_encoder(name, ahead, tmp_path):
    """`ahead`: how far the default must be in front, in standard errors of the difference on the same texts."""
    texts, labels, folds = read(name)
    right = {system: np.empty(len(texts), dtype=bool) for system in ("ulmfit", "no encoder", "words")}
    for fold in range(FOLDS):
        out = folds == fold
        data = tmp_path / str(fold)
        data.mkdir()
        write(data / "train.csv", texts, labels, ~out)
        asked = [texts[row] for row in np.flatnonzero(out)]
        common = {"data": str(data), "samples": False, "threads": 1}
        whole = ulmfit.fit(output_dir=str(tmp_path / f"fit-{fold}"), baseline=False, **common).model()
        ulmfit.train_classifier(ClassifierConfig(output_dir=str(tmp_path / f"none-{fold}"), encoder="none", **common))
        random = ulmfit.TextClassifier.from_pretrained(tmp_path / f"none-{fold}")
        for system, model in (("ulmfit", whole), ("no encoder", random)):
            right[system][out] = [one.label for one in model.predict(asked)] == labels[out]
        right["words"][out] = counting_words(texts, labels, ~out) == labels[out]
    print(name, {system: round(float(hits.mean()), 4) for system, hits in right.items()})
    for rival in ("no encoder", "words"):
        difference = right["ulmfit"].astype(float) - right[rival]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        print(f"  before {rival}: {difference.mean():.4f}, standard error {error:.4f}")
        assert difference.mean() > ahead * error
