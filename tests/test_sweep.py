"""examples/sweep.py: trials, a restart, a trial that was cut off. Skipped where optuna is missing."""

from __future__ import annotations

import importlib.util
import sys

import filelock
import pytest

from tests.training.runs import ROOT

optuna = pytest.importorskip("optuna")
TrialState = optuna.trial.TrialState


@pytest.fixture
def sweep(monkeypatch, tmp_path, reviews, runs):
    """The example as a function of more options, in one folder."""
    specification = importlib.util.spec_from_file_location("sweep_example", ROOT / "examples" / "sweep.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "--data", str(reviews), "--encoder", str(runs.lm), "--study",
                                          str(tmp_path / "study"), "--most-epochs", "1", *more])  # fmt: skip
        module.main()
        return study(tmp_path / "study")

    run.module = module
    return run


def study(folder):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name="ulmfit", storage=storage)


def test_two_trials_and_a_restart(sweep, tmp_path, capsys):
    first = sweep("--trials", "1")
    (trial,) = first.trials
    assert trial.state == TrialState.COMPLETE and set(trial.params) == {"lr", "drop_mult", "epochs"}
    assert (tmp_path / "study" / "trial-00000" / "model" / "model.safetensors").is_file()
    found = sweep("--trials", "2")
    assert [one.state for one in found.trials] == [TrialState.COMPLETE] * 2
    assert found.trials[0].params == trial.params != found.trials[1].params
    assert f"2 trials; the best accuracy is {found.best_value:.4f}" in capsys.readouterr().out


def test_a_trial_that_was_cut_off_goes_on(sweep, tmp_path, monkeypatch):
    """By the time budget, by Ctrl-C, and by a kill, which leaves a trial running under a lock that nobody holds."""
    directories, scores = [], iter([None, KeyboardInterrupt, SystemExit, {"accuracy": 0.5}])

    def train(params, directory, minutes, given):
        directories.append((directory.name, params))
        found = next(scores)
        if isinstance(found, type):
            raise found
        return found

    monkeypatch.setattr(sweep.module, "train", train)
    with pytest.raises(KeyboardInterrupt):
        sweep("--trials", "1")
    with pytest.raises(SystemExit):
        sweep("--trials", "1")
    killed = study(tmp_path / "study").trials[-1]
    assert killed.state == TrialState.RUNNING
    with filelock.FileLock(tmp_path / "study" / f"{killed.user_attrs['worker']}.lock"):  # as if it were alive
        found = sweep("--trials", "0")
        assert found.trials[-1].state == TrialState.RUNNING
    found = sweep("--trials", "1")
    assert [trial.state for trial in found.trials] == [TrialState.FAIL] * 3 + [TrialState.COMPLETE]
    assert directories == [directories[0]] * 4


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_time_budgets(sweep, text, expected):
    assert sweep.module.seconds(text) == expected
    with pytest.raises(Exception, match="write 90s, 30m or 2h"):
        sweep.module.seconds(text[:-1])
