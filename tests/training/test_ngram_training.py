"""The training of the linear classifier of n-grams, against scikit-learn's and against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ulmfit.training import ngram_training
from ulmfit.training.ngram_training import count, log_count_ratios, trained

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
    ratios = log_count_ratios(found, np.array([0, 1]), 2)
    p, q = np.array([2, 2, 2, 2]) / 8, np.array([1, 1, 2, 1]) / 5
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
    ratios = log_count_ratios(found, labels, classes)
    tokens = torch.zeros(len(some), 16, dtype=torch.int64)
    for row, one in zip(tokens, some, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    for strength, net in trained(found, labels, classes, VOCAB, (1.0, 30.0)):
        ours = net(tokens, [len(one) for one in some]).logits.softmax(1).detach().numpy()
        if classes == 2:  # whose ratios differ in their sign alone
            peer = linear.LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(
                features.multiply(ratios[1]), labels
            )
            np.testing.assert_allclose(ours, peer.predict_proba(features.multiply(ratios[1])), atol=2e-3)
            continue
        # With a scale for each class it has no peer there: the gradient of what is minimised is zero.
        weights = (net.weight.detach().double().numpy()) / ratios
        wanted = np.eye(classes)[labels]
        slope = ratios * ((ours - wanted).T @ features) + weights / strength
        assert np.abs(slope).max() < 1e-2 and np.abs((ours - wanted).sum(0)).max() < 1e-2


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
        list(trained(counted(some), labels, 3, VOCAB, before_each=asked))
    assert len(calls) == 3
