"""The training of the linear classifier of n-grams, against scikit-learn's and against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ulmfit.training import ngram_training
from ulmfit.training.ngram_training import count, log_count_ratios, one_hot, trained

VOCAB = 40


def documents(number: int = 60, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Documents of three classes, each of which has some words more often, and their classes."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, number)
    found = []
    for one in classes:
        words = np.concatenate([np.arange(VOCAB), np.repeat(np.arange(10 * one, 10 * one + 10), 3)])
        found.append(generator.choice(words, generator.integers(1, 15)))
    return found, classes


def counted(some: list[np.ndarray]) -> ngram_training.Counted:
    return count(np.concatenate(some), np.array([len(one) for one in some]), VOCAB, 3)


def test_the_counts_of_two_documents():
    found = counted([np.array([5, 7, 5]), np.array([7])])
    # The tokens 5 and 7, and the pairs (5, 7) and (7, 5); (5, 7) across the border of the documents is none.
    assert found.keys.tolist() == [5 * 41, 5 * 41 + 8, 7 * 41, 7 * 41 + 6]
    rare, common = np.log(3 / 2) + 1, 1.0
    np.testing.assert_allclose(found.idf, [rare, rare, common, rare])
    raw = np.array([(1 + np.log(2)) * rare, rare, common, rare])
    np.testing.assert_allclose(found.value, [*raw / np.linalg.norm(raw), 1.0])
    assert (found.row.tolist(), found.place.tolist()) == ([0, 0, 0, 0, 1], [0, 1, 2, 3, 2])
    # By hand: class 0 has the first document with 4 n-grams, class 1 the second with 1.
    ratios = log_count_ratios(found, np.eye(2))
    p, q = np.array([2, 2, 2, 2]) / 8, np.array([1, 1, 2, 1]) / 5
    np.testing.assert_allclose(ratios, [np.log(p / q), np.log(q / p)])
    # Of the first document a quarter is counted for class 1.
    ratios = log_count_ratios(found, np.array([[0.75, 0.25], [0.0, 1.0]]))
    p, q = np.array([1.75, 1.75, 1.75, 1.75]) / 7, np.array([1.25, 1.25, 2.25, 1.25]) / 6
    np.testing.assert_allclose(ratios, [np.log(p / q), np.log(q / p)])


def test_only_the_most_frequent_are_kept(monkeypatch):
    some, _ = documents()
    whole = counted(some)
    monkeypatch.setattr(ngram_training, "MOST_FEATURES", 30)
    few = counted(some)
    frequency = np.bincount(whole.place)
    assert len(few.keys) == 30 and set(few.keys) <= set(whole.keys)
    kept = np.isin(whole.keys, few.keys)
    assert frequency[kept].min() >= frequency[~kept].max()
    norms = np.bincount(few.row, weights=few.value**2)
    np.testing.assert_allclose(norms[norms > 0], 1.0)
    monkeypatch.setattr(ngram_training, "MOST_WEIGHTS", 60)  # of three classes
    assert len(counted(some).keys) == 20


@pytest.mark.parametrize("classes", [2, 3])
def test_the_weights_are_those_of_scikit_learn(classes):
    linear = pytest.importorskip("sklearn.linear_model")
    sparse = pytest.importorskip("scipy.sparse")
    some, labels = documents()
    labels = labels % classes
    found = counted(some)
    features = sparse.csr_matrix((found.value, (found.row, found.place)), shape=(len(some), len(found.keys)))
    wanted = one_hot(labels, classes)
    ratios = log_count_ratios(found, wanted)
    tokens = torch.zeros(len(some), 16, dtype=torch.int64)
    for row, one in zip(tokens, some, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    for strength, net in trained(found, wanted, VOCAB, (1.0, 30.0)):
        ours = net(tokens, [len(one) for one in some]).logits.softmax(1).detach().numpy()
        if classes == 2:  # whose ratios differ in their sign alone
            peer = linear.LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(
                features.multiply(ratios[1]), labels
            )
            np.testing.assert_allclose(ours, peer.predict_proba(features.multiply(ratios[1])), atol=2e-3)
            continue
        # With a scale for each class it has no peer there: the gradient of what is minimised is zero.
        weights = (net.weight.detach().double().numpy()) / ratios
        slope = ratios * ((ours - wanted).T @ features) + weights / strength
        assert np.abs(slope).max() < 1e-2 and np.abs((ours - wanted).sum(0)).max() < 1e-2


def test_a_document_with_probabilities_is_as_one_of_each_class_with_these_weights():
    some, labels = documents(40)
    wanted = np.random.default_rng(1).dirichlet(np.ones(3), len(some)).round(1)
    wanted[:, 2] = 1 - wanted[:, 0] - wanted[:, 1]
    tens = np.rint(10 * wanted).astype(int)  # of ten copies of a document, so many are of each class
    copies = [text for text in some for _ in range(10)]
    classes = np.concatenate([np.repeat(np.arange(3), of_one) for of_one in tens])
    whole, few = counted(copies), counted(some)
    # The smooth idf of ten copies, and one of each n-gram added in the ratios, are other numbers; the sums are the same.
    ratios = np.ones((3, len(few.keys)))
    weights = np.random.default_rng(2).normal(size=(3, len(few.keys) + 1))
    values = few.value
    whole = replace(whole, value=np.concatenate([np.tile(values[few.row == row], 10) for row in range(len(some))]))
    loss, gradient = ngram_training._loss(few, ratios, weights, wanted.T, 0.1)
    other, slope = ngram_training._loss(whole, ratios, weights, one_hot(classes, 3).T, 0.1)
    assert float(loss) == pytest.approx(float(other), rel=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_it_can_be_broken_off():
    some, labels = documents()

    class Asked(Exception):
        pass

    calls = []

    def asked() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Asked

    with pytest.raises(Asked):
        list(trained(counted(some), one_hot(labels, 3), VOCAB, before_each=asked))
    assert len(calls) == 3
