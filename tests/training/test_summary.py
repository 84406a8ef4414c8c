"""What a job that does not beat its baseline advises can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.training.result import TrainingResult
from ulmfit.training.summary import summarize


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
