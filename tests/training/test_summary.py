"""What a job advises at its end can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.training.result import TrainingResult
from ulmfit.training.summary import as_markdown, summarize


def test_the_advice_to_average_seeds_names_commands_that_parse_and_seeds_that_are_not_the_jobs():
    scores = {"accuracy": 0.9, "f1": 0.9}
    rivals = {"rows": {"train": 5000, "test": 100}, "classes": ["a", "b"], "reason": None,
              "majority": {"minutes": 0.0, "test": scores}, "tfidf": {"minutes": 0.1, "test": scores}}  # fmt: skip
    lm, clf = (
        TrainingResult(task, "done", 10, Path("runs/reviews", task), Path("runs/reviews", task, "model"), metrics)
        for task, metrics in (("lm", {}), ("clf", {"test": {"accuracy": 0.8, "f1": 0.8}}))
    )
    summary = summarize(
        data="reviews.csv",
        rivals=rivals,
        language_model=lm,
        classifier=clf,
        minutes={"lm": 1.0, "clf": 1.0},
        model="runs/reviews/model",
        used={"init": True, "unlabelled": True, "seed": 1, "length": {"lm": ("epochs", 2), "clf": ("epochs", 3)}},
    )
    assert summary["beats_baseline"] is False
    (line,) = (line for line in summary["advice"] if "seeds" in line)
    train, predict = re.findall(r"ulmfit ([^,]+)", line)
    options = parse(COMMANDS["train-clf"].options, shlex.split(train)[1:])
    assert (options.data, options.encoder, options.seed) == ("reviews.csv", "runs/reviews/lm", 2)
    models = parse(COMMANDS["predict"].options, shlex.split(predict)[1:]).model
    assert models == ["runs/reviews", options.output_dir, "runs/reviews-seed3"]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_job_with_nothing_to_compare_ends_with_a_command_that_uses_its_model(labelled):
    """No labelled rows are held out, or there are no labels."""
    runs = Path("runs/my reviews")
    lm, clf = (TrainingResult(task, "done", 10, runs / task, runs / task / "model") for task in ("lm", "clf"))
    summary = summarize(data="reviews.csv", rivals={"rows": {"train": 2}} if labelled else None, language_model=lm,
                        classifier=clf if labelled else None, minutes={"lm": 1.0}, model=str(runs / "model"), used={})  # fmt: skip
    (line,) = re.findall("^Use it: ulmfit (.+)$", as_markdown(summary), re.MULTILINE)
    name, *words = shlex.split(line)
    model = parse(COMMANDS[name].options, words).model
    assert (name, model) == (("predict", [str(runs)]) if labelled else ("generate", str(runs)))
