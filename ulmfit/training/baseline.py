"""The rivals that a classifier must beat: the majority class, and TF-IDF with logistic regression.

Both see the same training rows as the classifier. The regularisation of the logistic regression is chosen on the same
validation rows. The second one needs scikit-learn.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ulmfit.batches.order import Draw, permutation
from ulmfit.data.corpus import Corpus
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find
from ulmfit.data.splits import Split
from ulmfit.errors import StoppedEarly
from ulmfit.fit_config import FitConfig
from ulmfit.training.clf_training import balanced_draw
from ulmfit.training.label_baseline import fit as fit_labels
from ulmfit.training.label_baseline import scores_of_set
from ulmfit.training.scores import macro_f1

MOST_ROWS = 100_000  # labelled texts that are held in memory
MOST_FEATURES = 300_000
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # C of the logistic regression
NOT_INSTALLED = "scikit-learn is not installed"


def is_installed() -> bool:
    """Whether scikit-learn can be imported."""
    return find_spec("sklearn") is not None


class _Impossible(Exception):
    """There is nothing to train the logistic regression on; the message tells why."""


@dataclass(frozen=True)
class _Model:
    vectorizer: Any
    classifier: Any
    strength: float

    def predict(self, texts: list[str]) -> np.ndarray:
        """The classes of texts, int64 [n]."""
        return self.classifier.predict(self.vectorizer.transform(texts))


def has_labels(config: FitConfig, access: Access) -> bool:
    """Whether the corpus has a column that may hold labels: any besides the texts and a mark of validation rows.

    If the label column has another name, `open_corpus` raises a UserError that lists the columns.
    """
    train = find(config.data, access).get("train")
    if train is None or config.label_column is not None or train.default_label or "label" in train.columns:
        return True
    texts = [name.strip() for name in (config.text_column or "text").split(",")]
    others = set(train.columns) - {*texts, "is_valid", str(config.valid)}
    return bool(others) and len(train.columns) > 1


def run_baselines(
    corpus: Corpus, *, labels: int | None, seed: int, wanted: bool, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Train and score both rivals.

    Args:
        labels: number of labelled documents to train on, drawn as for the classifier; None for all.
        wanted: whether to train the logistic regression.
        stopped: asked between fits.

    Returns:
        JSON-able: `rows`, the number of rows by split ("train": those that the classifier trains on); `classes`;
        `majority` and `tfidf`, the scores of each: "minutes", and by split accuracy and f1. `tfidf` is None where it
        was not trained, and `reason` tells why.

    Raises:
        UserError: a row is at fault, or there are fewer than `labels` documents.
        StoppedEarly: `stopped` has said so.
    """
    assert corpus.label_names is not None
    num_classes = len(corpus.label_names)
    begun = time.monotonic()
    texts, truth, num_rows = _training_rows(corpus.splits["train"], labels, seed)
    scored = {name: split for name, split in corpus.splits.items() if name != "train"}
    if corpus.label_sets is not None:
        return _several_labels(corpus, texts, truth, num_rows, wanted=wanted, begun=begun, stopped=stopped)
    majority = int(np.bincount(truth, minlength=num_classes).argmax())
    guesses = {name: _confusion(lambda texts: np.full(len(texts), majority), split, num_classes)
               for name, split in scored.items()}  # fmt: skip
    found: dict[str, Any] = {
        "rows": {"train": num_rows} | {name: int(confusion.sum()) for name, confusion in guesses.items()},
        "classes": corpus.label_names,
        "majority": {"class": corpus.label_names[majority], "minutes": 0.0}
        | {name: _scores(confusion) for name, confusion in guesses.items()},
        "tfidf": None,
        "reason": _obstacle(corpus, wanted),
    }
    if found["reason"] is not None:
        return found
    try:
        model = _fit(texts, truth, corpus.splits["valid"], stopped)
    except _Impossible as error:
        return found | {"reason": str(error)}
    scores = {name: _scores(_confusion(model.predict, split, num_classes)) for name, split in scored.items()}
    return found | _trained(model.strength, len(texts), begun, scores)


def _obstacle(corpus: Corpus, wanted: bool) -> str | None:
    """Why the logistic regression is not trained; None if it is."""
    if not wanted:
        return "--no-baseline"
    if not is_installed():
        return NOT_INSTALLED
    return None if "valid" in corpus.splits else "no row is held out for validation"


def _trained(strength: float, num_rows: int, begun: float, scores: dict[str, Any]) -> dict[str, Any]:
    """The entries of a logistic regression in the result of `run_baselines`."""
    minutes = (time.monotonic() - begun) / 60
    return {"tfidf": {"C": strength, "rows": num_rows, "minutes": minutes} | scores, "reason": None}


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_FEATURES)


def _several_labels(
    corpus: Corpus,
    texts: list[str],
    truth: np.ndarray,
    num_rows: int,
    *,
    wanted: bool,
    begun: float,
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """As `run_baselines`, where a class number is one of a set of labels. There is a micro F1 too."""
    assert corpus.label_sets is not None
    sets, names = corpus.label_sets.matrix(), corpus.label_sets.names
    scored = {name: _held_in_memory(split) for name, split in corpus.splits.items() if name != "train"}
    majority = int(np.bincount(truth).argmax())
    found: dict[str, Any] = {
        "rows": {"train": num_rows} | {name: len(labels) for name, (_, labels) in scored.items()},
        "classes": list(names),
        "majority": {"class": corpus.label_sets.sets[majority], "minutes": 0.0}
        | {name: scores_of_set(sets[majority], sets[labels], names) for name, (_, labels) in scored.items()},
        "tfidf": None,
        "reason": _obstacle(corpus, wanted),
    }
    if found["reason"] is not None:
        return found

    def before_each() -> None:
        if stopped():
            raise StoppedEarly("asked while the baseline was trained")

    valid = (scored["valid"][0], sets[scored["valid"][1]])
    try:
        model = fit_labels(_vectorizer(), texts, sets[truth], valid, STRENGTHS, before_each)
    except ValueError:  # no text has a word of two letters or more
        return found | {"reason": "the texts have no words that it can count"}
    scores = {name: model.scores(texts, sets[labels], names) for name, (texts, labels) in scored.items()}
    return found | _trained(model.strength, len(texts), begun, scores)


def _held_in_memory(split: Split) -> tuple[list[str], np.ndarray]:
    """At most `MOST_ROWS` texts of a split and their class numbers."""
    texts: list[str] = []
    classes: list[int] = []
    for batch in split.batches():
        texts += batch.texts
        classes += batch.labels or []
        if len(texts) >= MOST_ROWS:
            break
    return texts[:MOST_ROWS], np.array(classes[:MOST_ROWS], dtype=np.int64)


def _labels(batch: Any) -> np.ndarray:
    return np.asarray(batch.labels, dtype=np.int64)


def _training_rows(split: Split, labels: int | None, seed: int) -> tuple[list[str], np.ndarray, int]:
    """(texts, classes, number of rows that the classifier trains on); at most `MOST_ROWS` texts, drawn by the seed."""
    texts: list[str] = []
    classes: list[np.ndarray] = []
    for batch in split.batches():
        classes.append(_labels(batch))
        texts += batch.texts[: MOST_ROWS - len(texts)]
    truth = np.concatenate(classes)
    chosen = np.arange(len(truth)) if labels is None else balanced_draw(truth, labels, seed=seed)
    num_rows = len(chosen)
    if num_rows > MOST_ROWS:
        chosen = np.sort(chosen[permutation(num_rows, seed, 0, Draw.BASELINE_ROWS)[:MOST_ROWS]])
    if len(truth) <= MOST_ROWS:
        return [texts[index] for index in chosen], truth[chosen], num_rows
    wanted, texts, first = set(chosen.tolist()), [], 0
    for batch in split.batches():
        texts += [text for place, text in enumerate(batch.texts, first) if place in wanted]
        first += len(batch.texts)
    return texts, truth[chosen], num_rows


def _fit(texts: list[str], truth: np.ndarray, valid: Split, stopped: Callable[[], bool]) -> _Model:
    """The model of the regularisation that is best on the validation rows; of equals, the strongest one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(truth)) < 2:
        raise _Impossible("all the rows drawn for training have one class")
    vectorizer = _vectorizer()
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word of two letters or more
        raise _Impossible("the texts have no words that it can count") from None
    held_out = []
    for batch in valid.batches():
        held_out.append((vectorizer.transform(batch.texts), _labels(batch)))
        if sum(len(labels) for _, labels in held_out) >= MOST_ROWS:
            break
    best, most = None, -1
    for strength in STRENGTHS:
        if stopped():
            raise StoppedEarly("asked while the baseline was trained")
        classifier = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(features, truth)
        right = sum(int((classifier.predict(part) == labels).sum()) for part, labels in held_out)
        if right > most:
            best, most = _Model(vectorizer, classifier, strength), right
    assert best is not None
    return best


def _confusion(predict: Callable[[list[str]], np.ndarray], split: Split, num_classes: int) -> np.ndarray:
    """Rows: true classes, columns: predicted ones; int64 [C, C]."""
    cells = np.zeros(num_classes * num_classes, dtype=np.int64)
    for batch in split.batches():
        cells += np.bincount(_labels(batch) * num_classes + predict(batch.texts), minlength=len(cells))
    return cells.reshape(num_classes, num_classes)


def _scores(confusion: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "f1": macro_f1(torch.from_numpy(confusion).double()),
    }
