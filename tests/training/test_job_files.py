"""What users and disks do to the files of a job: damage is told or made again, and costs no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ulmfit
from ulmfit.config import LMConfig
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig
from ulmfit.run.status import read_status
from ulmfit.run.stored import read_stored
from ulmfit.training.job_files import begun_options, minutes_of, sound_rivals

DEEP = "[" * 100_000 + "]" * 100_000
SCORES = {"minutes": 0.1, "valid": {"accuracy": 0.5, "f1": 0.4}}
RIVALS = {
    "rows": {"train": 9, "valid": 2},
    "classes": ["neg", "pos"],
    "majority": {"class": "neg"} | SCORES,
    "tfidf": SCORES,
    "reason": None,
}


def stored(tmp_path: Path, content) -> Path:
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        "",
        DEEP,
        "[]",
        "{}",
        {"task": "fit"},
        {"task": "fit", "options": [["seed", 1]]},
        *(
            {"task": "fit", "options": options}
            for options in (
                {"lm": ["a"]},
                {"clf": 1.5},
                {"epochs": []},
                {"samples": "false"},
                {"lm": {"epochs": "many"}},
                {"clf": {"lr": {"a": []}}},
            )
        ),
    ],
)
def test_damaged_options_of_a_job_are_told_and_those_of_the_command_taken(content, tmp_path):
    told: list[str] = []
    with pytest.raises(UserError, match="start afresh with --resume never"):  # it may be the file of another program
        begun_options(stored(tmp_path, content), pytest.fail)
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").touch()
    assert begun_options(stored(tmp_path, content), told.append) is None
    assert len(told) == 1 and told[0].endswith("; going on by the options of this command")


def test_sound_options_are_taken_silently(tmp_path):
    options = {"seed": 3, "epochs": 2, "lm": {"lr": 0.1}, "of_a_later_version": {}}
    assert begun_options(stored(tmp_path, {"task": "fit", "options": options}), pytest.fail) == options | {
        "ensemble": 1,
        "ngrams": False,
    }
    options |= {"ensemble": None, "ngrams": None}  # not settled yet
    assert begun_options(stored(tmp_path, {"task": "fit", "options": options}), pytest.fail) == options


def test_numbers_of_a_status_edited_by_hand(tmp_path):
    (tmp_path / "status.json").write_text('{"state": 1, "step": "x", "minutes": {"lm": "z", "clf": NaN, "x": 1}}')
    assert minutes_of(read_status(tmp_path)) == {} and read_status(tmp_path).keys() == {"minutes"}
    (tmp_path / "status.json").write_text('{"state": "done", "step": 3, "minutes": "abc"}')
    assert minutes_of(read_status(tmp_path)) == {} and read_status(tmp_path)["step"] == 3
    assert minutes_of({"minutes": {"lm": 2, "clf": 0.5, "mean": 1}}) == {"lm": 2.0, "clf": 0.5, "mean": 1.0}


@pytest.mark.parametrize(
    "edit",
    [
        {"rows": {}},
        {"rows": {"train": 9, "valid": 2, "test": 3}},
        {"rows": {"train": "9", "valid": 2}},
        {"classes": 2},
        {"classes": [1]},
        {"majority": None},
        {"tfidf": 4},
        {"tfidf": {"minutes": 1, "valid": {"accuracy": 0.5}}},
        {"tfidf": {"minutes": 1, "valid": {"accuracy": float("nan"), "f1": 1}}},
        {"reason": ["x"]},
    ],
)
def test_scores_of_the_rivals_that_lack_something_are_made_again(edit):
    assert sound_rivals(RIVALS) == RIVALS and sound_rivals(RIVALS | {"tfidf": None, "reason": "why"}) is not None
    assert sound_rivals(RIVALS | edit) is None and sound_rivals([1]) is None


def test_a_training_does_not_take_a_job_for_a_damaged_run(tmp_path):
    stored(tmp_path, {"task": "fit", "options": {}})
    with pytest.raises(
        UserError, match="holds a job of fit, whose trainings are in its folders lm and clf; name another"
    ):
        read_stored(tmp_path)


@pytest.mark.parametrize("kind", [LMConfig, FitConfig])
@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.parametrize("target", ["gone", "link"])
def test_an_output_directory_behind_a_link_that_leads_nowhere_is_refused(kind, below, target, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / target)
    train = ulmfit.train_language_model if kind is LMConfig else ulmfit.fit
    with pytest.raises(UserError, match="link is a link that leads nowhere; remove it"):
        train(kind(output_dir=str(tmp_path / "link" / below)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]
