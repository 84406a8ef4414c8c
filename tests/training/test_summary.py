"""What a job advises at its end can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.training.result import TrainingResult
from ulmfit.training.summary import as_markdown, summarize


def summary_of(
    classifiers: int, data: str = "reviews.csv", run: str = "runs/my reviews", *, init: bool = True
) -> dict[str, Any]:
    """Of a job that is worse than its baseline. The members have an accuracy of 0.70, 0.71, ..., and together 0.8."""
    scores = {"accuracy": 0.9, "f1": 0.9}
    rivals = {"rows": {"train": 5000, "test": 100}, "classes": ["a", "b"], "reason": None,
              "majority": {"minutes": 0.0, "test": scores}, "tfidf": {"minutes": 0.1, "test": scores}}  # fmt: skip
    names = ["clf", *(f"clf-{number}" for number in range(2, classifiers + 1))]
    lm, *members = (
        TrainingResult(
            "lm" if name == "lm" else "clf", "done", 10, Path(run, name), Path(run, name, "model"),
            {"test": {"accuracy": 0.7 + 0.01 * place, "f1": 0.7}},
        )
        for place, name in enumerate(["lm", *names], -1)
    )  # fmt: skip
    return summarize(
        data=data,
        rivals=rivals,
        language_model=lm,
        classifiers=members,
        seeds=range(5, 5 + classifiers),
        scores={"test": {"accuracy": 0.8, "f1": 0.8}},
        minutes={"lm": 1.0} | dict.fromkeys(names, 2.0) | {"mean": 0.5},
        model=f"{run}/model",
        used={"init": init, "unlabelled": True, "length": {"lm": ("epochs", 2), "clf": ("epochs", 3)}},
    )


def test_one_classifier_is_advised_to_go_on_to_three():
    summary = summary_of(1)
    assert summary["beats_baseline"] is False and "members" not in summary
    (line,) = (line for line in summary["advice"] if "three classifiers" in line)
    (command,) = re.findall(r"ulmfit (fit .+) trains two more", line)
    options = parse(COMMANDS["fit"].options, shlex.split(command)[1:])
    assert (options.output_dir, options.ensemble) == ("runs/my reviews", 3)
    # Data from Python are not in the directory.
    assert "the same call with ensemble=3" in "".join(summary_of(1, "in memory: a table, 3 rows")["advice"])
    assert not any("three classifiers" in line for line in summary_of(3)["advice"])


def test_the_other_direction_is_advised_only_where_the_same_command_can_train_it():
    told = [any("--backwards" in line for line in summary_of(1, init=init)["advice"]) for init in (False, True)]
    assert told == [True, False]  # --init names weights that read in one direction


def test_several_classifiers_are_shown_with_each_of_them_beside():
    summary = summary_of(3)
    assert [(member["run"], member["seed"], round(member["test"]["accuracy"], 2)) for member in summary["members"]] == [
        ("runs/my reviews/clf", 5, 0.7), ("runs/my reviews/clf-2", 6, 0.71), ("runs/my reviews/clf-3", 7, 0.72)]  # fmt: skip
    assert summary["systems"]["ulmfit"]["minutes"] == 7.5
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in as_markdown(summary).splitlines()]
    assert ["ulmfit, mean of 3 classifiers", "0.800", "0.800", "7.5"] in rows
    assert ["one of them alone", "0.700 to 0.720", "0.700", "3.0"] in rows
    assert "Minutes: language model 1.0, 3 classifiers 6.0, their mean 0.5." in as_markdown(summary)
    assert "Minutes: language model 1.0, classifier 2.0, n-grams 0.5." in as_markdown(summary_of(1))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_job_with_nothing_to_compare_ends_with_a_command_that_uses_its_model(labelled):
    """No labelled rows are held out, or there are no labels."""
    runs = Path("runs/my reviews")
    lm, clf = (TrainingResult(task, "done", 10, runs / task, runs / task / "model") for task in ("lm", "clf"))
    summary = summarize(data="reviews.csv", rivals={"rows": {"train": 2}} if labelled else None, language_model=lm,
                        classifiers=[clf] if labelled else [], seeds=[0], scores={}, minutes={"lm": 1.0},
                        model=str(runs / "model"), used={})  # fmt: skip
    (line,) = re.findall("^Use it: ulmfit (.+)$", as_markdown(summary), re.MULTILINE)
    name, *words = shlex.split(line)
    model = parse(COMMANDS[name].options, words).model
    assert (name, model) == (("predict", [str(runs)]) if labelled else ("generate", str(runs)))
