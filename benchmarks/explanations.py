"""How well the contributions of `ulmfit explain` agree with leaving each word out of the text.

    python benchmarks/explanations.py --model RUN --data FILE --texts 50

By text: Spearman's rank correlation, over all words, of the contribution and of the fall of the class's log-odds without
the word; and how many of the five words with the largest contributions are among the five whose removal changes the
log-odds most. Beside them the same with the gradient at the embeddings alone, and for words in a random order.
"""

from __future__ import annotations

import argparse

import numpy as np

from ulmfit import TextClassifier
from ulmfit.data.corpus import open_rows
from ulmfit.explanation import explain
from ulmfit.model import saliency

TOP = 5


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), float64."""
    clipped = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 0."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def agreement(found: np.ndarray, falls: np.ndarray) -> tuple[float, float]:
    """Rank correlation, and the share of the strongest words that are the same."""
    top = [set(np.argsort(-np.abs(values), kind="stable")[:TOP].tolist()) for values in (found, falls)]
    return float(np.corrcoef(ranks(found), ranks(falls))[0, 1]), len(top[0] & top[1]) / TOP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run directory of a classifier")
    parser.add_argument("--data", help="corpus to take texts from (default: the embedded sample)")
    parser.add_argument("--split", default="test", help="its split (default test)")
    parser.add_argument("--texts", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--characters", type=int, default=1500, help="of a text, at most (default 1500)")
    options = parser.parse_args()
    model = TextClassifier.from_pretrained(options.model, backend="torch")
    rows = open_rows(options.data, split=options.split, trained_columns=model.config.get("text_columns", ()))
    texts = [text[: options.characters] for batch in rows.batches() for text in batch.texts]
    texts = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[: options.texts]]

    def contributions(text: str, scales: tuple[float, ...]) -> np.ndarray:
        chosen, saliency.SCALES = saliency.SCALES, scales
        try:
            return np.array([word.contribution for word in explain(model, text, tried=0).words])
        finally:
            saliency.SCALES = chosen

    results: dict[str, list[tuple[float, float]]] = {}
    number = 0
    for seed, text in enumerate(texts):
        found = explain(model, text, tried=0)
        if len(found.words) < 2 * TOP:
            continue
        number += len(found.words)
        without = model.probabilities([found.without([word]) for word in found.words])[:, found.index]
        falls = log_odds(np.array(found.probability)) - log_odds(without)
        tried = {
            "as ulmfit explain": contributions(text, saliency.SCALES),
            "gradient at the embeddings alone": contributions(text, (1.0,)),
            "a random order": np.random.default_rng(seed).normal(size=len(falls)),
        }
        for name, values in tried.items():
            results.setdefault(name, []).append(agreement(values, falls))
    print(f"{options.model}: {len(next(iter(results.values())))} texts, {number:,} words")
    for name, pairs in results.items():
        correlation, same = np.mean(pairs, axis=0)
        print(f"{name}: rank correlation {correlation:.2f}, {same:.0%} of the {TOP} strongest words are the same")


if __name__ == "__main__":
    main()
