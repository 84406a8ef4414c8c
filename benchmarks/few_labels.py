"""Few labels and many texts without: what n-grams add to a job's networks, on folds of small tasks.

    python benchmarks/few_labels.py --tasks TASKS --work WORK [--task cr mr trec] [--folds 0 1] [--labels 100] [--draws 2]
        [--unequal [--thin 5]]

Folds and language models are those of tasks_cv.py: a language model has read the texts of all folds, without labels. Of a
fold's training rows about N are drawn evenly from the classes, and N/5 more (at least 20) to choose by; the others are texts
without a label, at most 8,000. With --unequal they are drawn as they come, at least two of each class to train on; --thin 5 keeps a
fifth of the rows of the first class (by name), also of those held out. Three classifiers are trained with default options.
N-grams join their mean as in `ulmfit fit`, in two ways: those of the labels alone, by the loss on the N/5 rows, and those that
have learned of the networks too. A line a draw has accuracy, macro F1 and loss on the rows that the fold leaves out; the last
lines are means over the draws of a task. Unlike in a job, texts without a label may be equal to others, and have no limit of tokens.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import rivals
import torch
from ngram_folds import options_of, prepared, read
from sklearn.metrics import f1_score

from ulmfit import TextClassifier, train_classifier
from ulmfit.config import ClassifierConfig
from ulmfit.parallel_inference import TorchReader
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.ngram_member import best, loss, mixed
from ulmfit.training.ngram_teaching import MOST_TEXTS, Lesson, teaches
from ulmfit.training.ngram_training import one_hot

NETWORKS = 3


class Draw:
    """The rows of one draw.

    Attributes:
        texts, classes: of the fold's training rows; classes int64 [n].
        labelled, chosen_by, others: places among them: with labels, to choose by, and without labels.
        held_out, truth: texts and classes that the fold leaves out.
    """

    def __init__(self, fold: Path, number: int, draw: int, *, unequal: bool = False, thin: int = 1) -> None:
        self.unequal = unequal
        self.texts, labels = thinned(*read(fold, "train"), thin)
        self.held_out, truth = thinned(*read(fold, "valid"), thin)
        self.names = sorted({*labels, *truth})
        self.classes = np.array([self.names.index(label) for label in labels])
        self.truth = np.array([self.names.index(label) for label in truth])
        rng = np.random.default_rng((7, number, int(fold.name), draw))
        order = rng.permutation(len(self.texts))
        self.labelled = self._drawn(order, number, 2)
        rest = rng.permutation(np.setdiff1d(order, self.labelled, assume_unique=True))
        self.chosen_by = self._drawn(rest, max(20, number // 5), 0)
        self.others = np.setdiff1d(rest, self.chosen_by)[:MOST_TEXTS]

    def _drawn(self, order: np.ndarray, number: int, least: int) -> np.ndarray:
        each = least if self.unequal else max(1, round(number / len(self.names)))
        even = np.concatenate([order[self.classes[order] == one][:each] for one in range(len(self.names))])
        if not self.unequal:
            return even
        return np.concatenate([even, order[~np.isin(order, even)][: number - len(even)]])

    def some(self, places: np.ndarray) -> list[str]:
        """The texts at these places."""
        return [self.texts[place] for place in places]


def thinned(texts: list[str], labels: list[str], most: int) -> tuple[list[str], list[str]]:
    """Of the rows of the first class (by name) one in so many, and all others."""
    first, seen, kept = min(labels), 0, []
    for place, label in enumerate(labels):
        if label != first or seen % most == 0:
            kept.append(place)
        seen += label == first
    return [texts[place] for place in kept], [labels[place] for place in kept]


def network_rows(draw: Draw, encoder: str, file: Path) -> dict[str, np.ndarray]:
    """Mean probabilities by the networks, float64 [n, C]: of others, the rows to choose by, and those held out."""
    if not file.exists():
        work = file.with_suffix("")
        work.mkdir(parents=True)
        for name, places in (("train", draw.labelled), ("valid", draw.chosen_by)):
            labels = [draw.names[one] for one in draw.classes[places]]
            pd.DataFrame({"text": draw.some(places), "label": labels}).to_csv(work / f"{name}.csv", index=False)
        texts = {"un": draw.some(draw.others), "va": draw.some(draw.chosen_by), "h": draw.held_out}
        rows = defaultdict(list)
        for seed in range(NETWORKS):
            with contextlib.redirect_stdout(io.StringIO()):
                run = train_classifier(ClassifierConfig(data=str(work), output_dir=str(work / str(seed)), encoder=encoder,
                                                        threads=1, seed=seed, draw_seed=0, save_every=0, samples=False))  # fmt: skip
            model = TextClassifier.from_pretrained(run.run_dir, backend="torch")
            for name, some in texts.items():
                rows[name].append(model.probabilities(some))
        np.savez(file, **{name: np.array(found) for name, found in rows.items()})
        shutil.rmtree(work)
    with np.load(file) as kept:
        return {name: kept[name].astype(np.float64).mean(0) for name in kept.files}


def joining(
    tokenizer: Tokenizer,
    labelled: tuple[list[str], np.ndarray],
    others: tuple[list[str], np.ndarray],
    chosen_by: tuple[list[str], np.ndarray],
    mean: np.ndarray,
) -> Callable[[list[str], np.ndarray], np.ndarray]:
    """Train n-grams, and choose them as `ulmfit fit` does.

    Args:
        labelled: texts, and their classes, int64 [n].
        others: texts without a label, and what the networks say of them, float64 [n, C].
        chosen_by: texts and classes of the rows to choose by.
        mean: of the networks' probabilities of these rows, float64 [n, C].

    Returns:
        A function of texts and their probabilities by the networks: those with n-grams, where these join.
    """
    if not teaches(len(labelled[0]), len(others[0])):
        others = [], others[1][:0]
    documents = tokenizer.encode([*labelled[0], *others[0]])
    wanted = np.concatenate([one_hot(labelled[1], mean.shape[1]), others[1]])
    lesson = Lesson(np.concatenate(documents), np.array([len(one) for one in documents]), wanted, len(labelled[0]))
    chosen = best(lesson, tokenizer.encode(chosen_by[0]), chosen_by[1], mean, len(tokenizer))
    if chosen is None:
        return lambda texts, rows: rows
    words, share = TorchReader(chosen.net, pad_id=0, backwards=False), chosen.share
    return lambda texts, rows: mixed(rows, words.probabilities(tokenizer.encode(texts)), share)


def main() -> None:
    """Train what is missing and print a line a draw, and the means."""
    parser = options_of(__doc__)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--unequal", action="store_true")
    parser.add_argument("--thin", type=int, default=1)
    args = parser.parse_args()
    if args.thin != 1 and not args.unequal:
        parser.error("--thin makes the classes unequal; give --unequal too")
    torch.set_num_threads(1)
    print("task fold draw | TF-IDF | networks | with n-grams of the labels | with n-grams of labels and networks")
    for task in args.task:
        folds, encoder, tokenizer = prepared(args.tasks / task, args.work)
        lines = []
        for fold in args.folds:
            for number in range(args.draws):
                draw = Draw(folds[fold], args.labels, number, unequal=args.unequal, thin=args.thin)
                kind = f"-unequal-{args.thin}" if args.unequal else ""
                rows = network_rows(draw, encoder, args.work / f"{task}-{fold}-{args.labels}-{number}{kind}.npz")
                labelled, kept = ((draw.some(some), draw.classes[some]) for some in (draw.labelled, draw.chosen_by))
                fit = rivals.tfidf(*labelled, *kept)
                line = scores(fit(draw.held_out), draw.truth)
                others = draw.some(draw.others)
                joins = [joining(tokenizer, labelled, (others[:most], rows["un"][:most]), kept, rows["va"])
                         for most in (0, len(others))]  # fmt: skip
                for found in (rows["h"], *(join(draw.held_out, rows["h"]) for join in joins)):
                    line += [*scores(found.argmax(1), draw.truth), loss(found, draw.truth)]
                print(task, fold, number, shown(line), flush=True)
                lines.append(line)
        print(task, "mean of", len(lines), shown(list(np.mean(lines, 0))), flush=True)


def scores(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Accuracy and macro F1 of classes, int64 [n]."""
    return [float((found == truth).mean()), float(f1_score(truth, found, average="macro", zero_division=0.0))]


def shown(line: list[float]) -> str:
    """Columns of accuracy, F1 and, of all but the first, the loss."""
    more = (line[at : at + 3] for at in range(2, len(line), 3))
    return f"| {line[0]:.4f}, {line[1]:.4f} | " + " | ".join(
        f"{one[0]:.4f}, {one[1]:.4f} ({one[2]:.4f})" for one in more
    )


if __name__ == "__main__":
    main()
