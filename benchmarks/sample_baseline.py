"""Bag-of-words baselines on the embedded sample: how far counting words stays below the ceiling.

    python benchmarks/sample_baseline.py [--seed 0]

Needs scikit-learn (a development dependency). Fits logistic regression on TF-IDF of words, and of words and word
pairs, with the strength of the penalty chosen on valid, and scores test once.
"""

from __future__ import annotations

import argparse

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ulmfit.data import sample

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def baseline_accuracy(longest: int, *, seed: int = 0) -> float:
    """Test accuracy of TF-IDF + logistic regression over word n-grams of up to `longest` words."""
    texts, labels = {}, {}
    for split in ("train", "valid", "test"):
        rows = list(sample.generate(split, seed=seed))
        texts[split] = [row["text"] for row in rows]
        labels[split] = [row["label"] for row in rows]
    # Words of one letter and punctuation are kept: "a", "I" and "!" are words to the language model, too.
    vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    features = {"train": vectorizer.fit_transform(texts["train"])}
    features |= {split: vectorizer.transform(texts[split]) for split in ("valid", "test")}
    models = [
        LogisticRegression(C=penalty, max_iter=2000).fit(features["train"], labels["train"]) for penalty in PENALTIES
    ]
    best = max(models, key=lambda model: model.score(features["valid"], labels["valid"]))
    return float(best.score(features["test"], labels["test"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the generated sample (default 0)")
    seed = parser.parse_args().seed
    print(f"ceiling                        {sample.CEILING:.3f}")
    print(f"words                          {baseline_accuracy(1, seed=seed):.3f}")
    print(f"words and word pairs           {baseline_accuracy(2, seed=seed):.3f}")
    print(f"words, pairs and triples       {baseline_accuracy(3, seed=seed):.3f}")


if __name__ == "__main__":
    main()
