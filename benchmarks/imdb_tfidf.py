"""Bag-of-words baseline on IMDb: TF-IDF of words and word pairs, logistic regression.

    ULMFIT_DATA=FOLDER python benchmarks/imdb_tfidf.py [--folder FOLDER/imdb] [--train N] [--seed 0]

Reads train.parquet and test.parquet (columns text, label) of the Large Movie Review Dataset, fits on the
whole train split, or on N rows of it drawn by the seed, and prints the accuracy on the whole test split, scored
once: the regularisation is scikit-learn's default and nothing is tuned. Needs the extra "dev".
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def read_split(path: Path) -> tuple[list[str], np.ndarray]:
    """The texts and integer labels of a parquet file."""
    table = pq.read_table(path, columns=["text", "label"])
    return table["text"].to_pylist(), table["label"].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ["ULMFIT_DATA"]) / "imdb" if "ULMFIT_DATA" in os.environ else None
    parser.add_argument("--folder", type=Path, default=default, help="default: $ULMFIT_DATA/imdb")
    parser.add_argument("--train", type=int, default=None, help="rows of train to fit on; default: all")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows of --train")
    args = parser.parse_args()
    if args.folder is None:
        parser.error("set ULMFIT_DATA or give --folder")

    texts, labels = read_split(args.folder / "train.parquet")
    if args.train is not None:
        chosen = np.random.default_rng(args.seed).permutation(len(texts))[: args.train]
        texts, labels = [texts[i] for i in chosen], labels[chosen]
    test_texts, test_labels = read_split(args.folder / "test.parquet")

    start = time.perf_counter()
    model = make_pipeline(
        # The reviews keep their HTML line breaks; "br" would else be the most frequent feature of all.
        TfidfVectorizer(
            preprocessor=lambda text: text.replace("<br />", " ").lower(),
            ngram_range=(1, 2),
            min_df=3,
            sublinear_tf=True,
        ),
        LogisticRegression(max_iter=1000),
    )
    model.fit(texts, labels)
    accuracy = model.score(test_texts, test_labels)
    print(f"{len(texts)} train, {len(test_texts)} test, {time.perf_counter() - start:.0f} s")
    print(f"accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
