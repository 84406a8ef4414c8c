"""The command of a run can be typed, and gives the options that the run had."""

from __future__ import annotations

import pytest

from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.paths import without_folders
from ulmfit.run_command import words_of_command


@pytest.mark.parametrize(
    ("task", "name", "options"),
    [
        ("fit", "fit", {"samples": False, "lm": {"keep_best": False, "max_steps": 5}, "clf": {"calibrate": True}}),
        ("lm", "train-lm", {"data": "a b.csv", "keep_best": False, "lr": 0.01, "seed": 3}),
        ("clf", "train-clf", {"label_column": "a,b", "calibrate": True, "output_dir": "runs/clf"}),
    ],
)
def test_the_words_are_parsed_back_to_the_options(task, name, options):
    words = words_of_command(task, options | {"resume": "never", "max_time": 60.0}, never={"max_time"})
    assert words[:2] == ["ulmfit", name] and not {"--resume", "--max-time", "--output-dir"} & set(words)
    parsed = parse(COMMANDS[name].options, words[2:])
    assert {key: getattr(parsed, key) for key in options} == options


def test_data_from_python_are_left_out_and_what_is_wanted_is_told_by_default_too():
    words = words_of_command(
        "lm", {"data": "in memory: a table"}, always={"output_dir"}, spelled=lambda name, value: name
    )
    assert words == ["ulmfit", "train-lm", "--output-dir", "output_dir"]


@pytest.mark.parametrize(
    ("given", "whole", "shown"),
    [
        ("/somewhere/me/reviews.csv", (), "reviews.csv"),
        ("aclImdb/", (), "aclImdb"),
        ("/", (), "/"),
        ("a=0.7:/somewhere/x/*.csv,b=0.3:s3://bucket/y/z.jsonl", (), "a=0.7:*.csv,b=0.3:z.jsonl"),
        ("a=2:owner/name,b=1:x/y.csv", ("a",), "a=2:owner/name,b=1:y.csv"),
    ],
)
def test_paths_without_folders(given, whole, shown):
    assert without_folders(given, whole) == shown
