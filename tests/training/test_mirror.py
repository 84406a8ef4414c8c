"""--report-to, through accelerate's own trackers on stand-ins of the three packages: what they get, and what a failure does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from accelerate import PartialState

from tests.training import runs
from ulmfit import train_language_model
from ulmfit.config import LMConfig
from ulmfit.config_check import check
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig, stage_configs
from ulmfit.reports import is_installed, trackers_of
from ulmfit.training.mirror import Mirrors, mirrors

# Each writes what it is given to a file of its own, as lines of JSON.
COMMON = """
import json, types
def put(**line): open({file!r}, "a").write(json.dumps(line) + "\\n")
"""
INIT = """
class Config(dict):
    def update(self, values, allow_val_change): put(config=values)
config = Config()
class Run:
    def log(self, values, step): {log}
    def finish(self): put(finished=True)
def init(**options):
    put(init=options)
    return Run()
"""
MLFLOW = """
utils = types.SimpleNamespace(validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
def search_experiments(filter_string): return [types.SimpleNamespace(experiment_id="7")]
def start_run(**options):
    put(init=options)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=options["run_id"] or "mine"))
def log_params(values): put(config=values)
def log_metrics(values, step): put(values=values, step=step)
def end_run(): put(finished=True)
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins of the three packages. Gives a function that reads what one of them was given."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in ("wandb", "trackio", "mlflow"):
        common = COMMON.format(file=str(folder / f"{name}.jsonl"))
        rest = MLFLOW if name == "mlflow" else INIT.format(log="put(values=values, step=step)")
        (folder / f"{name}.py").write_text(common + rest)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    PartialState(cpu=True)

    def given(name):
        file = folder / f"{name}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    given.folder = folder
    yield given
    for name in ("wandb", "trackio", "mlflow"):
        sys.modules.pop(name, None)


def lines(report, name, key):
    return [line[key] for line in report(name) if key in line]


def test_a_run_is_one_run_in_each_tracker_also_after_a_restart(packages, tmp_path):
    run = tmp_path / "runs" / "reviews"
    run.mkdir(parents=True)
    said = []
    for start in (0, 10):
        mirror = Mirrors(["wandb", "mlflow", "trackio"], run, said.append)
        mirror.begin({"lr": 0.001, "recipe": "quick"})
        mirror.log(start + 5, {"language model/loss/train": 2.5})
        mirror.close()
    assert not said
    for name in ("wandb", "mlflow", "trackio"):
        first, second = lines(packages, name, "init")
        assert [line["step"] for line in packages(name) if "step" in line] == [5, 15]
        assert lines(packages, name, "values") == [{"language model/loss/train": 2.5}] * 2
        assert lines(packages, name, "finished") == [True] * 2
        assert lines(packages, name, "config")[0] == {"lr": 0.001, "recipe": "quick"}
        if name == "mlflow":
            assert (first["run_id"], second["run_id"], first["run_name"]) == (None, "mine", "runs-reviews")
            assert len(lines(packages, name, "config")) == 1  # it refuses to change a parameter
        else:
            assert first == second and first["project"] == "ulmfit" and first["resume"] == "allow"


def test_a_training_sends_what_tensorboard_gets_and_no_text(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 60))
    config = runs.lm_config(tmp_path / "run", data=data, preset="tiny", max_steps=4, eval_every=2, log_every=2,
                            samples=True, report_to="all")  # fmt: skip
    train_language_model(config)
    sent = [(line["step"], set(line["values"])) for line in packages("wandb") if "values" in line]
    assert [step for step, _ in sent] == [2, 2, 4, 4, 4]
    assert "language model/loss/train" in sent[0][1] and "rates by layer/1 lstm 1" in sent[0][1]
    assert sent[1][1] >= {"language model/loss/valid", "language model/perplexity/valid"}
    assert "final/perplexity/valid" in sent[4][1]
    assert lines(packages, "wandb", "config")[0]["batch_size"] == 16
    for name in ("wandb", "trackio", "mlflow"):
        for line in packages(name):
            assert all(isinstance(value, float) for value in line.get("values", {}).values())
            assert all(len(str(value)) < 200 for value in line.get("config", {}).values())
    train_language_model(config)  # finished: it reports nothing
    assert len(lines(packages, "wandb", "init")) == 1


def test_the_rate_finder_sends_nothing_and_says_its_suggestions(packages, tmp_path, monkeypatch):
    """It is no run: none is begun in the directory, and none in the trackers."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 60))
    found = train_language_model(
        runs.lm_config(tmp_path / "run", data=data, preset="tiny", max_steps=4, lr_find=True, report_to="all")
    )
    assert found.state == "found" and found.suggestions["valley"] > 0
    assert [packages(name) for name in ("wandb", "mlflow", "trackio")] == [[], [], []]
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_tracker_that_fails_is_told_once_and_costs_no_step(packages, tmp_path):
    wandb = INIT.format(log="raise ConnectionError('no\\nnetwork')")
    (packages.folder / "wandb.py").write_text("def put(**line): pass\n" + wandb)
    (packages.folder / "mlflow.py").write_text("raise RuntimeError('not for this Python')")
    said = []
    mirror = Mirrors(["wandb", "mlflow", "trackio"], tmp_path, said.append)
    mirror.begin({"lr": 0.001})
    for step in (1, 2, 3):
        mirror.log(step, {"loss": 1.0})
    mirror.close()
    assert sorted(said) == [
        "mlflow gets no more of this run (RuntimeError: not for this Python); the training goes on",
        "wandb gets no more of this run (ConnectionError: no network); the training goes on",
    ]
    assert len(lines(packages, "trackio", "values")) == 3 and lines(packages, "trackio", "finished") == [True]


def test_a_tracker_that_ends_the_process_ends_nothing(packages, tmp_path):
    (packages.folder / "wandb.py").write_text("import sys; sys.exit('no key')")
    said = []
    mirror = Mirrors(["wandb"], tmp_path, said.append)
    mirror.begin({})
    mirror.close()
    assert said == ["wandb gets no more of this run (SystemExit: no key); the training goes on"]


def test_a_network_that_does_not_answer_holds_up_neither_the_steps_nor_the_end(packages, tmp_path, monkeypatch):
    """As it is where packets are lost: a call of the tracker returns minutes later, or never."""
    answers = threading.Event()
    (packages.folder / "wandb.py").write_text(INIT.format(log="answers.wait()") + "def put(**line): pass")
    said = []
    mirror = Mirrors(["wandb"], tmp_path, said.append)
    monkeypatch.setattr("ulmfit.training.mirror.PATIENCE", 0.0)
    monkeypatch.setattr("ulmfit.training.mirror.MOST_WAITING", 2)
    monkeypatch.setattr("builtins.answers", answers, raising=False)
    mirror.begin({})
    for step in range(3):  # the third one finds the queue full, whatever the thread has taken of it
        mirror.log(step, {"loss": 1.0})
    mirror.log(4, {"loss": 1.0})
    mirror.close()
    assert said == ["wandb gets no more of this run (it is 2 points behind); the training goes on"]
    answers.set()


HANGS = """
import atexit, threading
def init(**options): threading.Event().wait()
threading.Thread(target=threading.Event().wait).start()  # Python waits for it at the end
atexit.register(threading.Event().wait)
"""


@pytest.mark.slow
def test_a_tracker_whose_server_is_gone_holds_up_the_end_of_a_command_for_seconds(packages, tmp_path):
    """MLflow and wandb wait for their servers while the process ends, for minutes: here for ever."""
    (packages.folder / "wandb.py").write_text(HANGS)
    data = runs.write_reviews(tmp_path / "reviews.csv", 40)
    options = ["train-lm", "--data", str(data), "--preset", "tiny", "--init", "none", "--max-steps", "2", "--report-to",
               "wandb", "--output-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]  # fmt: skip
    code = (
        "import sys; from ulmfit.cli import main; from ulmfit.training import mirror\n"
        f"mirror.PATIENCE, mirror.LEAVE = 0.5, 0.25\nsys.exit(main({options!r}))"
    )
    path = os.pathsep.join([str(packages.folder), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wandb gets no more of this run (it does not end within 0.5 seconds)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("the model is in ")
    assert done.stderr.splitlines()[-1] == (
        "this process does not wait any longer for wandb (--report-to), which did not end within 0.25 seconds"
    )


def test_a_tracker_gets_no_console_and_no_code_unless_the_user_says_so(packages, tmp_path, monkeypatch):
    for name in ("WANDB_CONSOLE", "WANDB_DISABLE_GIT", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DISABLE_CODE", "false")
    mirror = Mirrors(["wandb"], tmp_path, print)
    mirror.begin({})
    mirror.close()
    assert (os.environ["WANDB_CONSOLE"], os.environ["WANDB_DISABLE_CODE"]) == ("off", "false")


def test_a_mistake_is_a_sentence(packages, monkeypatch, tmp_path):
    assert trackers_of("Trackio, wandb") == ["wandb", "trackio"] and trackers_of("none") == []
    for given in ("tensorboard", "wandb,", ""):
        with pytest.raises(
            UserError, match="--report-to '(tensorboard)?' is not known; give wandb, mlflow, trackio or all"
        ):
            check(LMConfig(report_to=given))
    (tmp_path / "here" / "neptune").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")
    assert is_installed("wandb") and not is_installed("neptune"), "a folder without a package, as wandb leaves one"
    monkeypatch.setattr("ulmfit.reports.find_spec", lambda name: None)
    new, said = runs.lm_config(tmp_path / "run", report_to="wandb"), []
    with pytest.raises(UserError, match="--report-to wandb needs a package that is not installed; pip install wandb$"):
        train_language_model(new)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--report-to all finds none of"):
        train_language_model(runs.lm_config(tmp_path / "run", report_to="all"))
    # A run that has begun is not stopped by it.
    assert mirrors("wandb", tmp_path, said.append) is None
    assert said == ["wandb gets no more of this run (it is not installed here); the training goes on"]


def test_fit_gives_it_to_both_trainings():
    both = stage_configs(FitConfig(report_to="wandb", clf={"report_to": "mlflow"}))
    assert [config.report_to for config in both] == ["wandb", "mlflow"]
