"""Text classifiers that a user would try first. Each is fitted on labelled texts and scored on others.

A rival is a function of (texts, labels, validation texts, validation labels) that returns a function from texts to
classes. What it has to choose (a strength of regularisation, say) is chosen on the validation rows.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

Predict = Callable[[Sequence[str]], np.ndarray]
Fit = Callable[[Sequence[str], np.ndarray, Sequence[str], np.ndarray], Predict]

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # C of the linear models


def clean(text: str) -> str:
    """The text without HTML line breaks, in lower case."""
    return text.replace("<br />", " ").lower()


def tfidf(texts, labels, valid_texts, valid_labels) -> Predict:
    """TF-IDF of words and word pairs, logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(preprocessor=clean, ngram_range=(1, 2), min_df=1, sublinear_tf=True)
    model = _best_linear(vectors.fit_transform(texts), labels, vectors.transform(valid_texts), valid_labels)
    return lambda new: model.predict(vectors.transform(new))


def tfidf_of_probabilities(texts: Sequence[str], probabilities: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    """TF-IDF of words and word pairs, a logistic regression that learns probabilities [n, C], and gives such."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(preprocessor=clean, ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    features = vectors.fit_transform(texts)
    classes = probabilities.shape[1]
    # A text with the probabilities p is as C texts, each of one class with the weight of its p.
    model = LogisticRegression(C=10.0, max_iter=300).fit(
        vstack([features] * classes), np.repeat(np.arange(classes), len(texts)), sample_weight=probabilities.T.ravel()
    )
    return lambda new: model.predict_proba(vectors.transform(new))


def nbsvm(texts, labels, valid_texts, valid_labels) -> Predict:
    """NB-SVM (Wang and Manning, ACL 2012, section 2.3): a linear model of word pairs scaled by their log-count ratio.

    For two classes. The interpolation with the mean weight, which the paper has, changes nothing in a logistic
    regression that is chosen on validation rows; it is left out, as is usual.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counts = CountVectorizer(
        preprocessor=clean, ngram_range=(1, 2), binary=True, min_df=1, token_pattern=r"\w+|[^\w\s]"
    )
    features = counts.fit_transform(texts)
    classes = np.unique(labels)
    if len(classes) != 2:
        raise ValueError(f"NB-SVM is for two classes; there are {len(classes)}")
    sums = [np.asarray(features[labels == one].sum(0)).ravel() + 1.0 for one in classes]
    ratio = np.log((sums[1] / sums[1].sum()) / (sums[0] / sums[0].sum()))
    scaled = features.multiply(ratio).tocsr()
    model = _best_linear(scaled, labels, counts.transform(valid_texts).multiply(ratio).tocsr(), valid_labels)
    return lambda new: model.predict(counts.transform(new).multiply(ratio).tocsr())


def fasttext(texts, labels, valid_texts, valid_labels) -> Predict:
    """fastText with word pairs; rate and epochs chosen on the validation rows (Joulin et al., EACL 2017)."""
    import fasttext as library

    def line(text: str) -> str:
        return " ".join(clean(text).split())

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        file.write_text("".join(f"__label__{y} {line(x)}\n" for x, y in zip(texts, labels, strict=True)))
        found = []
        for rate in (0.1, 0.5, 1.0):
            for epochs in (10, 50):
                model = library.train_supervised(
                    str(file), lr=rate, epoch=epochs, wordNgrams=2, dim=50, bucket=200_000, thread=1, verbose=0
                )
                found.append((_fasttext_classes(model, [line(x) for x in valid_texts]), model))
    # The first of equals: no later one is preferred by chance.
    model = max(found, key=lambda pair: float(np.mean(pair[0] == valid_labels)))[1]
    return lambda new: _fasttext_classes(model, [line(x) for x in new])


def _fasttext_classes(model, lines: list[str]) -> np.ndarray:
    # The wrapper's own `predict` asks numpy for a copy in a way that numpy 2 refuses; the core below it does not.
    found = model.f.multilinePredict([f"{line}\n" for line in lines], 1, 0.0, "strict")[0]
    return np.array([int(names[0].removeprefix("__label__")) for names in found])


def minilm(texts, labels, valid_texts, valid_labels) -> Predict:
    """Sentence embeddings of all-MiniLM-L6-v2, logistic regression; texts are cut at 256 word pieces."""
    from all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    cache: dict[str, np.ndarray] = _EMBEDDED

    def embed(some: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(some) if text not in cache]
        cache.update(zip(new, encoder.encode(new, batch_size=64, show_progress_bar=False), strict=True))
        return np.stack([cache[text] for text in some])

    model = _best_linear(embed(texts), labels, embed(valid_texts), valid_labels)
    return lambda new: model.predict(embed(new))


_EMBEDDED: dict[str, np.ndarray] = {}  # the test texts are the same for every draw of labels


def _best_linear(features, labels, valid_features, valid_labels):
    """The logistic regression whose strength does best on the validation rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    models = []
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(LogisticRegression(C=strength, max_iter=300).fit(features, labels))
    return max(models, key=lambda model: model.score(valid_features, valid_labels))


RIVALS: dict[str, Fit] = {"tfidf": tfidf, "nbsvm": nbsvm, "fasttext": fasttext, "minilm": minilm}
NEEDS = {
    "tfidf": ("sklearn",),
    "nbsvm": ("sklearn",),
    "fasttext": ("fasttext",),
    "minilm": ("all_minilm_l6_v2", "sentence_transformers"),
}


def missing(name: str) -> list[str]:
    """The modules that a rival needs and that are not installed."""
    return [module for module in NEEDS[name] if find_spec(module) is None]
