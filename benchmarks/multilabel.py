"""Several labels a text: `ulmfit fit` beside a one-vs-rest TF-IDF, on a set that a small grammar makes.

    python -m benchmarks.multilabel OUTPUT_DIR [--train 1000] [--lm-epochs N] [--clf-epochs N]

A text is a hotel review of 20 to 70 words. It speaks of one to five aspects, praises some and blames others; a label is
an aspect with its opinion (`staff+`, `food-`). Words of praise and blame occur for every aspect, and a third of the
statements are negated ("not at all dirty"), so that a word does not tell the label by itself: the aspect, the word and
the negation do together. One text in eight states no opinion, and has no label.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

import ulmfit
from ulmfit.fit_config import FitConfig

ASPECTS = {
    "room": ["the room", "our bedroom", "the suite"],
    "food": ["the breakfast", "dinner", "the food"],
    "staff": ["the staff", "the reception", "the waiter"],
    "place": ["the location", "the street", "the neighbourhood"],
    "price": ["the price", "the bill", "the rate"],
    "pool": ["the pool", "the sauna", "the gym"],
}
WORDS = {
    "-": "bad awful poor disappointing terrible dreadful mediocre unpleasant".split(),
    "+": "good lovely great pleasant excellent wonderful superb delightful".split(),
}
NEGATIONS = ["not", "not at all", "never", "hardly", "anything but"]
NEUTRAL = [
    "we stayed for two nights in spring.",
    "the train took three hours.",
    "my sister had booked it months before.",
    "we arrived late and left early.",
    "it rained on the second day.",
    "there is a museum around the corner.",
]
JOINTS = [". ", ", but ", " and ", "; ", ", although "]


def review(rng: random.Random) -> tuple[str, list[str]]:
    """A text and its labels."""
    neutral = rng.sample(NEUTRAL, rng.randint(1, 3))
    if rng.random() < 1 / 8:
        return " ".join(rng.sample(NEUTRAL, 4)), []
    labels, statements = [], []
    for aspect in rng.sample(sorted(ASPECTS), rng.randint(1, 5)):
        opinion = rng.choice("+-")
        labels.append(aspect + opinion)
        negated = rng.random() < 1 / 3
        word = rng.choice(WORDS["-+".replace(opinion, "") if negated else opinion])
        statements.append(f"{rng.choice(ASPECTS[aspect])} was {rng.choice(NEGATIONS) + ' ' if negated else ''}{word}")
    text = statements[0]
    for statement in statements[1:]:
        text += rng.choice(JOINTS) + statement
    return f"{' '.join(neutral)} {text}.", labels


def write(path: Path, number: int, seed: str) -> None:
    """A table of reviews, whose labels stand in one cell."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for text, labels in (review(rng) for _ in range(number)):
            rng.shuffle(labels)
            table.writerow([text, ";".join(labels) or ";"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--lm-epochs", type=float, help="of the language model (default: the recipe's)")
    parser.add_argument("--clf-epochs", type=float, help="of the classifier (default: the recipe's)")
    given = parser.parse_args()
    data = given.output_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", given.train), ("valid", 200), ("test", 500)):
        write(data / f"{name}.csv", number, name)
    own = {name: {} if epochs is None else {"epochs": epochs}
           for name, epochs in (("lm", given.lm_epochs), ("clf", given.clf_epochs))}  # fmt: skip
    config = FitConfig(data=str(data), label_separator=";", output_dir=str(given.output_dir / "fit"), **own)
    result = ulmfit.fit(config)
    systems = result.summary["systems"]
    print("| | micro F1 | macro F1 | all labels right | minutes |\n|---|---|---|---|---|")
    for name, scores in systems.items():
        if scores is not None:
            test = scores["test"]
            cells = [f"{test[key]:.3f}" for key in ("micro_f1", "f1", "accuracy")] + [f"{scores['minutes']:.1f}"]
            print(f"| {name} | {' | '.join(cells)} |")
    (given.output_dir / "scores.json").write_text(json.dumps(systems, indent=2) + "\n")


if __name__ == "__main__":
    main()
