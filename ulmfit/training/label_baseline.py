"""The rivals where a text may have several labels: the most frequent set of labels, and one TF-IDF regression a label.

The regularisation and the thresholds are chosen on the validation rows, as those of the classifier are. The logistic
regressions need scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ulmfit.training.label_scores import choose_thresholds, label_metrics

SCORES = ("accuracy", "micro_f1", "f1")


@dataclass(frozen=True)
class OneVersusRest:
    """A fitted rival.

    Attributes:
        classifiers: by label a logistic regression, or the share 0 or 1 of a label that no or every text has.
        thresholds: by label.
        strength: the regularisation, C.
    """

    vectorizer: Any
    classifiers: list[Any]
    thresholds: list[float]
    strength: float

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [n, labels]."""
        return _probabilities(self.classifiers, self.vectorizer.transform(texts))

    def scores(self, texts: Sequence[str], truth: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        """Of texts with the labels `truth`, [n, labels] of 0 and 1."""
        found = label_metrics(self.probabilities(texts), truth, names, self.thresholds)
        return {name: found[name] for name in SCORES}


def scores_of_set(chosen: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The scores where every text gets the same labels, `chosen` [labels] of 0 and 1."""
    found = label_metrics(np.repeat(chosen[None], len(truth), 0), truth, names, [0.5] * len(names))
    return {name: found[name] for name in SCORES}


def fit(
    vectorizer: Any,
    texts: Sequence[str],
    truth: np.ndarray,
    valid: tuple[Sequence[str], np.ndarray],
    strengths: Sequence[float],
    before_each: Callable[[], None],
) -> OneVersusRest:
    """The rival with the highest micro F1 on the validation rows; of equals, the most regularised one.

    Args:
        vectorizer: fitted here.
        truth: float32 [n, labels] of 0 and 1.
        valid: texts and labels of the validation rows.
        before_each: called before each regression; it may raise.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features = vectorizer.fit_transform(texts)
    held_out, wanted = vectorizer.transform(valid[0]), valid[1] > 0.5
    best, highest = None, -1.0
    for strength in strengths:
        classifiers: list[Any] = []
        for column in truth.T:
            before_each()
            if column.min() == column.max():
                classifiers.append(float(column[0]))
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifiers.append(LogisticRegression(C=strength, max_iter=1000).fit(features, column))
        probabilities = _probabilities(classifiers, held_out)
        thresholds = choose_thresholds(probabilities, wanted)
        names = [str(index) for index in range(truth.shape[1])]
        score = label_metrics(probabilities, wanted, names, thresholds)["micro_f1"]
        if score > highest:
            best, highest = OneVersusRest(vectorizer, classifiers, thresholds, strength), score
    assert best is not None
    return best


def _probabilities(classifiers: Sequence[Any], features: Any) -> np.ndarray:
    columns = [
        np.full(features.shape[0], classifier)
        if isinstance(classifier, float)
        else classifier.predict_proba(features)[:, 1]
        for classifier in classifiers
    ]
    return np.stack(columns, 1)
