"""config.json as users edit it and disks damage it: refused in a sentence, or read as the command line would read it.

ULMFIT_FUZZ sets how many edits of a run's file are tried (the budget of CI is small).
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import runs
from ulmfit import train_language_model
from ulmfit.cli.options import parse
from ulmfit.config import ClassifierConfig, LMConfig, load_options, options
from ulmfit.config_check import check
from ulmfit.cores import machine_cores
from ulmfit.errors import UserError

DEEP = "deep"  # stands for 100,000 levels, which json.dumps could not write
VALUES = [
    None, True, False, "false", "", "x", "\ud800", "a\0b", 0, -1, 1.5, 1e300, -1e-300, 10**400, float("nan"),
    float("inf"), [], {}, ["x"], {"a": 1}, [[[[]]]], DEEP,
]  # fmt: skip
BUDGET = int(os.environ.get("ULMFIT_FUZZ", 12))


def write(path: Path, content: Any) -> None:
    text = json.dumps(content)
    path.write_text(text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000))


def one_sentence(error: UserError) -> bool:
    text = str(error)
    return 0 < len(text) < 600 and "\n" not in text and not text.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LMConfig, ClassifierConfig])
def test_an_edited_option_is_refused_or_could_stand_on_the_command_line(kind, tmp_path):
    """So that "samples": "false" is no True, and no thread count is obeyed that --threads would refuse."""
    file = tmp_path / "config.json"
    good = options(kind(output_dir="run"))
    refused = 0
    for name in sorted(good.keys() - {"config", "resume", "lr_find", "lr_find_stage"}):  # which are not taken over
        for value in VALUES:
            write(file, {"options": good | {name: value}})
            try:
                found = load_options(file, kind)
                check(found)
            except UserError as error:
                assert one_sentence(error), error
                refused += 1
                continue
            again = parse(kind, runs.arguments(found))
            assert options(again) == options(found), (name, value)
            stands = getattr(found, name)
            assert stands == value or stands == str(value), (name, value, stands)
    assert refused > 10 * len(good)


@pytest.mark.parametrize("content", [[], 7, "x", None, {}, {"options": []}, {"options": 3}, {"options": [["seed", 1]]}])
def test_a_file_that_is_no_config_is_refused(content, tmp_path):
    write(tmp_path / "config.json", content)
    with pytest.raises(UserError, match="is not the config.json of a run; give one"):
        parse(LMConfig, ["--config", str(tmp_path)])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, reviews):
    """A run that is stopped after two of three steps, and its configuration."""
    config = runs.lm_config(
        tmp_path_factory.mktemp("stopped") / "run", data=str(reviews), preset="tiny", max_steps=3, save_every=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ulmfit.training.loop.Loop._stop_agreed", lambda self: self.stop.requested())
        assert train_language_model(config, runs.StopAtCall(2)).state == "preempted"
    return config


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it: (configuration, config.json)."""
    import shutil

    shutil.copytree(stopped.output_dir, tmp_path / "run")
    config = copy.copy(stopped)
    config.output_dir = str(tmp_path / "run")
    return config, tmp_path / "run" / "config.json"


def without_copies(run: Path) -> None:
    """Make the checkpoints those of an earlier version, which hold no copy of config.json."""
    for manifest in run.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["files"]["config.json"]
        manifest.write_text(json.dumps(content))


HARMS = {
    "gone": lambda file: file.unlink(),
    "cut short": lambda file: file.write_text(file.read_text()[:300]),
    "deep": lambda file: file.write_text("[" * 100_000),
    "nonsense": lambda file: file.write_text(file.read_text().replace('"bptt": 12', '"bptt": "many"')),
}


def test_a_command_line_wins_over_a_file_also_with_an_alternative(tmp_path):
    """A run's --resume never is no option of the next: it would move its own checkpoints aside at every start."""
    (tmp_path / "config.json").write_text(
        json.dumps({"options": {"max_steps": 40, "tokenizer": "t.json", "resume": "never", "lr_find": True, "seed": 7}})
    )
    file = ["--config", str(tmp_path), "--output-dir", "x"]
    found = parse(LMConfig, file)
    assert (found.max_steps, found.tokenizer, found.resume, found.lr_find, found.seed) == (
        40,
        "t.json",
        "auto",
        False,
        7,
    )
    found = parse(LMConfig, [*file, "--epochs", "2", "--init", "english"])
    assert (found.max_steps, found.epochs, found.tokenizer, found.init, found.seed) == (None, 2, None, "english", 7)


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_config_does_not_cost_a_run_its_checkpoints(harm, run, capsys):
    config, file = run
    before = json.loads(file.read_text())
    HARMS[harm](file)
    assert train_language_model(config).state == "done"
    told = capsys.readouterr().out
    assert "going on by the copy in the newest checkpoint" in told and "step-00000002" in told
    after = json.loads(file.read_text())
    assert (after["identity"], after["resolved"]) == (before["identity"], before["resolved"])


def test_a_damaged_config_without_a_copy_is_refused_and_nothing_is_lost(run):
    config, file = run
    without_copies(file.parent)
    HARMS["nonsense"](file)
    with pytest.raises(
        UserError, match=r"config.json is damaged \(has .* as the option bptt\); put it right to go on from"
    ):
        train_language_model(config)
    assert len(list(file.parent.glob("checkpoints/step-*"))) == 2
    file.write_text(file.read_text().replace('"bptt": "many"', '"bptt": 12'))
    assert train_language_model(config).state == "done"


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to every value in a JSON value."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def edited(content: Any, path: tuple, value: Any) -> Any:
    result = copy.deepcopy(content)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    if value == "DELETE":
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return result


@pytest.mark.slow
def test_an_edit_anywhere_in_the_config_of_a_run_is_refused_in_a_sentence_or_harmless(run, monkeypatch):
    """Of a run whose checkpoints hold no copy. What is harmless gives the identity, and ends the run."""
    config, file = run
    without_copies(file.parent)
    good = json.loads(file.read_text())
    random_ = random.Random(0)
    edits = [(path, value) for path in places(good) for value in [*VALUES, "DELETE"]]
    monkeypatch.setattr("ulmfit.training.run_task._guarded", lambda loop, _: ("done", loop.position.step))
    counts = {"refused": 0, "harmless": 0}
    for path, value in random_.sample(edits, min(BUDGET, len(edits))):
        write(file, edited(good, path, value))
        try:
            assert train_language_model(config).step == 2, (path, value)
            counts["harmless"] += 1
        except UserError as error:
            assert one_sentence(error), (path, value, error)
            counts["refused"] += 1
    assert counts["refused"] and counts["harmless"]
    write(file, good)
    monkeypatch.undo()
    assert train_language_model(config).state == "done"


def test_no_more_threads_than_cores_are_used(run, capsys, monkeypatch):
    """A run of a larger machine goes on here, and keeps its number for a return."""
    asked, (config, file) = [], run
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    config.threads = 1000
    assert train_language_model(config).state == "done"
    assert max(asked) <= machine_cores() and json.loads(file.read_text())["threads"] == 1000
    assert f"this machine has {machine_cores()} cores" in capsys.readouterr().out
