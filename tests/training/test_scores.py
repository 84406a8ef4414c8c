"""Scores against scikit-learn."""

import numpy as np
import pytest
import torch

from ulmfit.training.scores import macro_f1


def test_macro_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    left_out = 0
    for _ in range(300):
        classes = int(rng.integers(1, 9))
        number = int(rng.integers(1, 30))  # so few that a class may occur in the truth, the predictions, or neither
        truth, predicted = rng.integers(0, classes, (2, number))
        confusion = torch.zeros(classes, classes, dtype=torch.float64)
        np.add.at(confusion.numpy(), (truth, predicted), 1)
        left_out += len({*truth, *predicted}) < classes
        expected = metrics.f1_score(truth, predicted, average="macro", zero_division=0)
        assert macro_f1(confusion) == pytest.approx(expected, abs=1e-12)
    assert left_out > 30


def test_a_class_that_does_not_occur_costs_nothing():
    assert macro_f1(torch.tensor([[3.0, 0, 0], [0, 4, 0], [0, 0, 0]])) == 1.0
