"""What a classifier gains from the mean with TF-IDF + logistic regression on the same training rows.

    python benchmarks/with_words.py RUN [--test]

RUN is the directory of a classifier's training, or that of a job of `ulmfit fit`. Its corpus is read as it was read then.
The strength of the regression is the one with which the mean has the lowest loss on the validation rows; the mean is the
geometric one, with equal weights. With --test the test rows are scored, once. Needs the extra "sklearn".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rivals
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ulmfit import TextClassifier
from ulmfit.config import ClassifierConfig
from ulmfit.data.corpus import Split
from ulmfit.distributed.runtime import open_runtime
from ulmfit.training.begun import read_begun
from ulmfit.training.setup import corpus_of_run

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)  # C


def rows(split: Split) -> tuple[list[str], np.ndarray]:
    """Texts and class numbers, int64 [n]."""
    batches = list(split.batches())
    texts = [text for batch in batches for text in batch.texts]
    return texts, np.array([label for batch in batches for label in batch.labels], dtype=np.int64)


def mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The geometric mean of probabilities [n, C], which sums to one."""
    product = np.sqrt(np.maximum(first * second, 1e-30))
    return product / product.sum(1, keepdims=True)


def scores(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy, and loss in nats."""
    true = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)
    return float((probabilities.argmax(1) == labels).mean()), float(-np.log(true).mean())


def main() -> None:
    """Print a line a system and split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--test", action="store_true", help="score the test rows too")
    options = parser.parse_args()
    training = options.run / "clf" if (options.run / "clf").is_dir() else options.run
    config = ClassifierConfig(output_dir=str(training))
    begun = read_begun(config)
    if begun is None:
        parser.error(f"{training} holds no training")
    model = TextClassifier.from_pretrained(options.run)
    filled = begun.fill(config)
    with open_runtime(filled) as (runtime, _):
        splits = corpus_of_run(filled, begun, runtime, model.label_names).splits
        texts, labels = rows(splits["train"])
        judged = {name: rows(splits[name]) for name in ("valid", "test") if name in splits}
    vectors = TfidfVectorizer(preprocessor=rivals.clean, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectors.fit_transform(texts)
    valid_texts, valid_labels = judged["valid"]
    ours, new = model.probabilities(valid_texts), vectors.transform(valid_texts)

    def loss_of_mean(words: LogisticRegression) -> float:
        return scores(mean(ours, words.predict_proba(new)), valid_labels)[1]

    words = min(
        (LogisticRegression(C=strength, max_iter=300).fit(features, labels) for strength in STRENGTHS), key=loss_of_mean
    )
    print(f"{len(texts):,} training rows, C = {words.C:g}")
    for name, (some, truth) in judged.items():
        if name == "test":
            if not options.test:
                continue
            ours, new = model.probabilities(some), vectors.transform(some)
        theirs = words.predict_proba(new)
        right = [(found.argmax(1) == truth).astype(float) for found in (ours, mean(ours, theirs))]
        error = np.std(right[1] - right[0]) / np.sqrt(len(truth))
        for system, found in (("ulmfit", ours), ("TF-IDF", theirs), ("mean", mean(ours, theirs))):
            accuracy, loss = scores(found, truth)
            print(f"{name}, {len(truth):,} rows: {system:6}  accuracy {accuracy:.4f}  loss {loss:.4f}")
        print(f"{name}: the mean is ahead of ulmfit by {np.mean(right[1] - right[0]):.4f} (standard error {error:.4f})")


if __name__ == "__main__":
    main()
