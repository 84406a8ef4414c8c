"""ulmfit sweep: trials, a restart, a trial that was cut off, several labels. Most of it is skipped where optuna is missing."""

from __future__ import annotations

import json

import filelock
import pytest

from ulmfit import cli
from ulmfit.cli.options import parse
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.sweep_config import SweepConfig


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2h", 7200)])
def test_time_budgets(text, expected):
    assert SweepConfig(time_budget=text).seconds == expected
    for wrong in (text.strip()[:-1], "0m", "-1h", "soon", ""):
        with pytest.raises(UserError, match="write 90s, 30m or 2h"):
            _ = SweepConfig(time_budget=wrong).seconds


@pytest.fixture
def sweep(tmp_path, reviews, runs, capsys):
    """`ulmfit sweep` with more options, in one directory. Gives the study."""
    optuna = pytest.importorskip("optuna")

    def run(*more, code=0):
        common = [] if "--data" in more else ["--data", str(reviews), "--encoder", str(runs.lm)]
        words = ["sweep", *common, "--output-dir", str(tmp_path / "sweep"), "--most-epochs", "1", "--clf.batch-size", "16",
                 "--clf.bptt", "20", "--threads", "1", *map(str, more)]  # fmt: skip
        assert cli.main(words) == code
        run.out, run.err = capsys.readouterr()
        journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "sweep" / "journal.log"))
        return optuna.load_study(study_name="ulmfit", storage=optuna.storages.JournalStorage(journal))

    run.state = optuna.trial.TrialState
    return run


def test_two_trials_a_restart_and_other_options(sweep, tmp_path, runs):
    first = sweep("--trials", 1)
    (trial,) = first.trials
    assert trial.state == sweep.state.COMPLETE and set(trial.params) == {"lr", "drop_mult", "epochs"}
    assert (trial.params["lr"], trial.params["drop_mult"]) == (5e-3, 0.4)  # the recipe's own
    stored = json.loads((tmp_path / "sweep" / "trial-00000" / "config.json").read_text())["options"]
    assert stored["lr"] == 5e-3 and stored["keep_best"] is None and stored["encoder"] == str(runs.lm)
    found = sweep("--trials", 2)
    assert [one.state for one in found.trials] == [sweep.state.COMPLETE] * 2
    assert found.trials[0].params == trial.params != found.trials[1].params
    assert f"the best of 2 trials: accuracy {found.best_value:.4f}" in sweep.out
    assert not list((tmp_path / "sweep").glob("????????????????????????????????.lock"))
    sweep("--trials", 3, "--clf.lr", "1e-3", "--metric", "f1", code=2)
    assert "is a sweep with other options (clf, metric)" in sweep.err


def test_the_best_evaluation_is_kept_where_a_training_alone_would_not_keep_it(sweep, tmp_path):
    sweep("--trials", 1, "--labels", 40, "--metric", "f1")
    stored = json.loads((tmp_path / "sweep" / "trial-00000" / "config.json").read_text())
    assert stored["options"]["keep_best"] is True and stored["resolved"]["keep_best"] is True


def test_a_sweep_of_an_earlier_version_goes_on_with_the_best_of_all_evaluations(sweep, tmp_path):
    sweep("--trials", 1)
    journal = tmp_path / "sweep" / "journal.log"
    kept = [line for line in journal.read_text().splitlines(keepends=True) if '"best_clearly"' not in line]
    journal.write_text("".join(kept))
    sweep("--trials", 2)
    stored = json.loads((tmp_path / "sweep" / "trial-00001" / "config.json").read_text())
    assert stored["options"]["keep_best"] is True


def test_a_folder_with_a_file_of_another_program_takes_a_sweep(sweep, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text('{"a": 1}')
    sweep("--trials", 1)
    assert (tmp_path / "sweep" / "config.json").read_text() == '{"a": 1}'


def test_a_trial_that_was_cut_off_goes_on(sweep, tmp_path, monkeypatch):
    """By the time budget, by Ctrl-C, and by a kill, which leaves a trial running under a lock that nobody holds."""
    from ulmfit.training import sweep as module

    directories, scores = [], iter([None, KeyboardInterrupt, SystemExit, {"accuracy": 0.5}])

    def train(config, params, encoder, directory, minutes, stop):
        directories.append((directory.name, params))
        found = next(scores)
        if isinstance(found, type):
            raise found
        return found

    monkeypatch.setattr(module, "train", train)
    sweep("--trials", 1, code=130)
    with pytest.raises(SystemExit):
        sweep("--trials", 1)
    killed = module.optuna.load_study(study_name="ulmfit", storage=_storage(module, tmp_path)).trials[-1]
    assert killed.state == sweep.state.RUNNING
    worker = killed.user_attrs["worker"]
    with filelock.FileLock(tmp_path / "sweep" / f"{worker}.lock"):  # as if it were alive
        _begin_only(module, monkeypatch, sweep)
    found = sweep("--trials", 1)
    assert [trial.state for trial in found.trials] == [sweep.state.FAIL] * 3 + [sweep.state.COMPLETE]
    assert directories == [directories[0]] * 4


def _storage(module, tmp_path):
    journal = str(tmp_path / "sweep" / "journal.log")
    return module.optuna.storages.JournalStorage(
        module.JournalFileBackend(journal, module.JournalFileOpenLock(journal))
    )


def _begin_only(module, monkeypatch, sweep):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_work", lambda *_: None)
        assert sweep("--trials", 1).trials[-1].state == sweep.state.RUNNING


def test_trials_that_fail_are_left_out_and_three_end_the_sweep(sweep, monkeypatch):
    from ulmfit.training import sweep as module

    outcomes = iter([ValueError("diverged"), {"accuracy": 0.5}, *[ValueError("diverged")] * 3])

    def train(*_):
        found = next(outcomes)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(module, "train", train)
    assert [one.state for one in sweep("--trials", 1).trials] == [sweep.state.FAIL, sweep.state.COMPLETE]
    assert "trial 0 failed: diverged" in sweep.out
    assert len(sweep("--trials", 2, code=1).trials) == 5


def test_a_stop_request_ends_a_sweep_before_its_next_trial(sweep, monkeypatch, reviews, runs, tmp_path, capsys):
    from ulmfit.training import sweep as module

    stop = StopRequest()

    def train(*_):
        stop.reason = "SIGTERM"

    monkeypatch.setattr(module, "train", train)
    module.sweep(SweepConfig(data=str(reviews), encoder=str(runs.lm), output_dir=str(tmp_path / "sweep")), stop)
    assert "0 of 30 trials are done; the same command goes on" in capsys.readouterr().out


def test_several_labels_and_a_language_model_of_its_own(sweep, tmp_path):
    rows = [["", "sea", "hill", "sea;hill"][row % 4] or ";" for row in range(60)]
    table = "text,tags\n" + "".join(
        f"{label.replace(';', ' and ')} w{row % 7},{label}\n" for row, label in enumerate(rows)
    )
    (tmp_path / "a.csv").write_text(table)
    several = ["--data", tmp_path / "a.csv", "--label-column", "tags", "--label-separator", ";", "--preset", "tiny",
               "--init", "none", "--lm.max-steps", 2, "--lm.batch-size", 4, "--clf.max-steps", 2]  # fmt: skip
    found = sweep(*several, "--trials", 1)
    assert (tmp_path / "sweep" / "lm" / "model" / "model.safetensors").is_file()
    assert "the best of 1 trials: micro_f1" in sweep.out
    assert set(found.trials[0].params) == {"lr", "drop_mult"}  # --clf.max-steps takes the place of epochs
    config = json.loads((tmp_path / "sweep" / "trial-00000" / "model" / "config.json").read_text())
    assert config["label_names"] == ["hill", "sea"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label-column", "stars"], "has no column stars"),
        (["--clf.batch-size", "1"], "--clf.batch-size 1 is too small"),
        (["--clf.drop-mult", "2"], "--clf.drop-mult 2 makes"),
        (["--metric", "micro_f1"], "micro_f1"),
    ],
)
def test_mistakes_are_told_before_the_language_model_is_trained(options, sentence, tmp_path, reviews, capsys):
    pytest.importorskip("optuna")
    words = [
        "sweep",
        "--data",
        str(reviews),
        "--preset",
        "tiny",
        "--init",
        "none",
        "--lm.max-steps",
        "2",
        "--trials",
        "1",
    ]
    assert cli.main([*words, "--output-dir", str(tmp_path / "new"), *options]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_sweep_without_a_trial_takes_other_options(sweep, tmp_path):
    """Its first start met a mistake; the cure is another option."""
    sweep("--trials", 1, "--labels", 5000, code=2)
    assert "--labels 5000 is more than" in sweep.err
    assert sweep("--trials", 1).trials[-1].state == sweep.state.COMPLETE


def test_mistakes_are_told_before_anything_is_written(tmp_path, reviews):
    sweep = pytest.importorskip("ulmfit.training.sweep", exc_type=UserError).sweep
    common = ["--data", str(reviews), "--output-dir", str(tmp_path / "sweep")]
    for words, told in (
        (["--clf.lrr", "1"], "no option --clf.lrr"),
        (["--time-budget", "8"], "--time-budget 8 is no time"),
        (["--encoder", "english", "--lm.epochs", "2"], "--lm and --init are for a language model"),
        (["--clf.metric", "f1"], "give --metric"),
        (["--clf.output-dir", "x"], "--clf.output-dir is set by"),
        (["--trials", "0"], "--trials is 0; give at least 1"),
        (["--most-epochs", "0"], "--most-epochs is 0; give at least 1"),
    ):
        with pytest.raises(UserError) as error:
            sweep(parse(SweepConfig, [*common, *words]))
        assert told in str(error.value)
    assert not (tmp_path / "sweep").exists()
