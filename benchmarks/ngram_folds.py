"""What n-grams in the mean of a job's classifiers are worth, on folds of small tasks.

    python benchmarks/ngram_folds.py --tasks TASKS --work WORK [--task cr mr trec] [--folds 0 1] [--seeds 3]

Folds and language models are those of tasks_cv.py. On each fold SEEDS classifiers are trained with default options, and
the linear classifier of n-grams by `ulmfit.training.ngram_training`. The rows that the fold leaves out are cut into halves
in twenty ways: on one half strength and share are chosen as `ulmfit fit` does on its validation rows (lowest loss, or
without n-grams), the other half is scored, and the two change places. The last columns tell what plain TF-IDF would give
in place of the scaling by log-count ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import tasks_cv
import torch

from ulmfit import TextClassifier, train_classifier
from ulmfit.config import ClassifierConfig
from ulmfit.parallel_inference import TorchReader
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import ngram_training
from ulmfit.training.ngram_member import SHARES, loss

CUTS = 20


def network_rows(fold: Path, encoder: str, seed: int, work: Path) -> np.ndarray:
    """Probabilities of a fold's held-out rows by the classifier of a seed, trained where they are not kept."""
    file = work / f"{fold.parent.name}-{fold.name}-{seed}.npy"
    if not file.exists():
        output = work / "clf" / fold.parent.name / fold.name / str(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            train_classifier(ClassifierConfig(data=str(fold), output_dir=str(output), encoder=encoder, threads=1, seed=seed,
                                              draw_seed=0, resume="never", save_every=0))  # fmt: skip
        model = TextClassifier.from_pretrained(output, backend="torch")
        np.save(file, model.probabilities(read(fold, "valid")[0]))
        shutil.rmtree(output)
    return np.load(file).astype(np.float64)


def read(fold: Path, split: str) -> tuple[list[str], list[str]]:
    """Texts and labels. A text without a word has one, so that rows stay in step."""
    rows = pd.read_csv(fold / f"{split}.csv", keep_default_na=False)
    return [text if text.strip() else "." for text in rows["text"]], [str(label) for label in rows["label"]]


def ngram_rows(fold: Path, tokenizer: Tokenizer, *, scaled: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """By strength the probabilities of a fold's held-out rows, and their classes."""
    texts, labels = read(fold, "train")
    classes = {name: number for number, name in enumerate(sorted(set(labels)))}
    documents, words = tokenizer.encode(texts), len(tokenizer)
    lengths = np.array([len(one) for one in documents])
    counted = ngram_training.count(np.concatenate(documents), lengths, words, len(classes))
    ratios = ngram_training.log_count_ratios
    if not scaled:
        ngram_training.log_count_ratios = lambda counted, wanted: np.ones((wanted.shape[1], len(counted.keys)))
    wanted = ngram_training.one_hot(np.array([classes[label] for label in labels]), len(classes))
    try:
        nets = [net for _, net in ngram_training.trained(counted, wanted, words)]
    finally:
        ngram_training.log_count_ratios = ratios
    texts, labels = read(fold, "valid")
    documents = tokenizer.encode(texts)
    found = [TorchReader(net, pad_id=0, backwards=False).probabilities(documents).astype(np.float64) for net in nets]
    return found, np.array([classes[label] for label in labels])


def chosen_on_halves(alone: np.ndarray, words: list[np.ndarray], truth: np.ndarray) -> tuple[float, float, float]:
    """Mean accuracy and loss on the halves that nothing was chosen on, and how often n-grams joined."""
    means = [alone] + [(1 - share) * alone + share * rows for rows in words for share in SHARES]
    right, losses, joined = [], [], []
    for cut in range(CUTS):
        order = np.random.default_rng(cut).permutation(len(truth))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for chosen_on, scored_on in (halves, halves[::-1]):
            best = int(np.argmin([loss(rows[chosen_on], truth[chosen_on]) for rows in means]))
            right.append((means[best][scored_on].argmax(1) == truth[scored_on]).mean())
            losses.append(loss(means[best][scored_on], truth[scored_on]))
            joined.append(best > 0)
    return float(np.mean(right)), float(np.mean(losses)), float(np.mean(joined))


def options_of(page: str) -> argparse.ArgumentParser:
    """The options that few_labels.py has too; `page` is the script's description."""
    parser = argparse.ArgumentParser(description=page.splitlines()[0])
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=["cr", "mr", "trec"])
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1])
    return parser


def prepared(task: Path, work: Path) -> tuple[list[Path], str, Tokenizer]:
    """The folds of a task, its language model with default options, trained where it is not there yet, and its tokenizer."""
    folds = tasks_cv.folds_of(task, work)
    with contextlib.redirect_stdout(io.StringIO()):
        encoder = tasks_cv.trained_language_model("d", {}, task, work, "english")
    return folds, encoder, Tokenizer.from_file(Path(encoder) / "model/tokenizer.json")


def main() -> None:
    """Train what is missing and print a line a fold."""
    parser = options_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("task fold nets | alone | with n-grams, joined | n-grams alone (best strength) | with plain TF-IDF, joined")
    for task in args.task:
        folds, encoder, tokenizer = prepared(args.tasks / task, args.work)
        for number in args.folds:
            fold = folds[number]
            rows = [network_rows(fold, encoder, seed, args.work) for seed in range(args.seeds)]
            scaled, truth = ngram_rows(fold, tokenizer, scaled=True)
            plain, _ = ngram_rows(fold, tokenizer, scaled=False)
            best = max((one.argmax(1) == truth).mean() for one in scaled)
            for nets in sorted({1, args.seeds}):
                alone = np.mean(rows[:nets], 0)
                accuracy, cost, joined = chosen_on_halves(alone, scaled, truth)
                simple = chosen_on_halves(alone, plain, truth)
                print(
                    f"{task:5} {number} {nets} | {(alone.argmax(1) == truth).mean():.4f} ({loss(alone, truth):.4f}) | "
                    f"{accuracy:.4f} ({cost:.4f}), {joined:.2f} | {best:.4f} | {simple[0]:.4f} ({simple[1]:.4f}), {simple[2]:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
