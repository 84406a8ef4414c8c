"""The table of launch/reproduce_imdb.sh: every stage of the blog post beside ours, in Markdown.

    python benchmarks/imdb_table.py OUTPUT

OUTPUT holds forwards/ and perhaps backwards/ (jobs of `ulmfit fit`) and both.json. Nothing is trained; the sentences of
the blog post are predicted and continued by the models in OUTPUT/forwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ulmfit import LanguageModel, TextClassifier

# The blog post's figures: fastai v1, a downloaded model of WikiText-103, a rented GPU; test rows as validation.
BLOG_LM, BLOG_CLF, BLOG_LM_HOURS = "0.3285", "0.918", "3.33"
SENTENCES = {
    "I thought I was never going to watch Transformers ever again, but I have to say, Bumblebee is an incredibly nice "
    "breath of fresh air compared to the previous Transformers movies directed by Michael Bay": "pos, 0.932",
    "I am absolutely disgusted to learn about what Mark Zuckerberg did to create Facebook, but I have to say that the "
    "movie was brilliant.": "pos, 0.547",
}
OPENING, WORDS = "I liked this movie because", 40


def events(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stages(run: Path) -> list[tuple[str, str]]:
    """The stages of a training: name, and steps with the last validation accuracy before the next one, if any."""
    found: list[tuple[str, str]] = []
    for line in events(run):
        if line["event"] == "stage" and len(found) == line["index"]:  # a resumed run tells its stage again
            found.append((line["name"], f"{line['steps']:,} steps"))
        elif line["event"] == "eval" and line["split"] == "valid" and found:
            name, steps = found[-1]
            found[-1] = (name, f"{steps.partition(', validation')[0]}, validation accuracy {line['accuracy']:.4f}")
    return found


def direction(folder: Path) -> list[str]:
    """The rows of one direction."""
    summary = json.loads((folder / "summary.json").read_text())
    name, minutes = folder.name, summary["minutes"]
    rows = [f"| {name}: language model, {stage} | | {figures} |" for stage, figures in stages(folder / "lm")]
    rows.append(f"| {name}: language model, hours | {BLOG_LM_HOURS} | {minutes['lm'] / 60:.2f} |")
    rows.append(f"| {name}: next-word accuracy | {BLOG_LM} | {_last(folder / 'lm', 'valid', 'accuracy'):.4f} |")
    rows += [f"| {name}: classifier, {stage} | | {figures} |" for stage, figures in stages(folder / "clf")]
    rows.append(f"| {name}: classifier, hours | out of memory in the last stage | {minutes['clf'] / 60:.2f} |")
    ours = summary["systems"]["ulmfit"]["test"]["accuracy"]
    rows.append(f"| **{name}: accuracy on the 25,000 test reviews** | **{BLOG_CLF}** | **{ours:.4f}** |")
    rival = summary["systems"].get("TF-IDF + logistic regression")
    if rival:
        rows.append(f"| TF-IDF + logistic regression on the same rows | | {rival['test']['accuracy']:.4f} |")
    return rows


def _last(run: Path, split: str, key: str) -> float:
    return [line for line in events(run) if line["event"] == "eval" and line["split"] == split][-1][key]


def main() -> None:
    output = Path(sys.argv[1])
    rows = direction(output / "forwards")
    if (output / "backwards").exists():
        rows += direction(output / "backwards")
    if (output / "both.json").exists():
        both = json.loads((output / "both.json").read_text())["accuracy"]
        rows.append(f"| **both directions: accuracy on the test reviews** | | **{both:.4f}** |")
    classifier = TextClassifier.from_pretrained(output / "forwards")
    for sentence, theirs in SENTENCES.items():
        found = classifier.predict(sentence)
        rows.append(f"| “{sentence[:60]} ...” | {theirs} | {found.label}, {found.probabilities.max():.3f} |")
    print("\n".join(["| | blog post | ours |", "|---|---|---|", *rows]))
    language_model = LanguageModel.from_pretrained(output / "forwards" / "lm")
    print(f"\nContinuations of “{OPENING}”, {WORDS} words, temperature 0.75:\n")
    for seed in (0, 1):
        print(f"- {language_model.generate(OPENING, max_new_tokens=WORDS, temperature=0.75, seed=seed)}")


if __name__ == "__main__":
    main()
