"""What the whole job tells: mistakes and other jobs are refused, and its summary is honest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.training import runs
from ulmfit import cli
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig, stage_configs
from ulmfit.training import fit as module
from ulmfit.training import job_files

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path) -> Path:
    runs.write_reviews(tmp_path / "reviews.csv", 120)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished job with a test split, an unlabelled row and all of the summary. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    splits = folder / "data"
    splits.mkdir()
    for name, number in (("train", 120), ("valid", 30), ("test", 30)):
        runs.write_reviews(splits / f"{name}.csv", number)
    (splits / "unsup.csv").write_text("text,label\nzebra zebra zebra,\n")
    ulmfit.fit(job.config(folder, "run", data=str(splits), baseline=True))
    return folder


def test_a_finished_job_says_so_and_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in sorted((finished / "run").rglob("*")) if path.is_file()}
    assert cli.main(["fit", "--output-dir", str(finished / "run")]) == 0
    out = capsys.readouterr().out
    assert "holds this job, finished" in out and "TF-IDF + logistic regression" in out
    assert before == {path: path.read_bytes() for path in sorted((finished / "run").rglob("*")) if path.is_file()}


def test_evaluate_scores_the_splits_of_the_job(finished, capsys):
    """It scored the embedded sample."""
    assert cli.main(["evaluate", "--model", str(finished / "run")]) == 0
    scores = json.loads(capsys.readouterr().out)
    told = json.loads((finished / "run" / "summary.json").read_text())["systems"]["ulmfit"]["test"]
    assert scores["documents"] == 30 and scores["loss"] == pytest.approx(told["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "7"], "seed: 3 -> 7"),
        (["--lm.max-steps", "9"], "max-steps: 6 -> 9"),
        (["--clf.lr", "1"], "lr: "),
        (["--data", "nowhere.csv"], "no file or folder nowhere.csv"),
    ],
)
def test_another_job_is_refused_and_changes_nothing(finished, options, sentence, capsys):
    before = {path: path.read_bytes() for path in sorted((finished / "run").rglob("*")) if path.is_file()}
    assert cli.main(["fit", "--output-dir", str(finished / "run"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in sorted((finished / "run").rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_column": "stars"}, "has no column stars"),
        ({"labels": 10_000}, "--labels 10000 is more than"),
        ({"preset": "tiny", "init": "english"}, "leave out --preset"),
        ({"lm": {"epoch": 3}}, "--lm.epoch is no option of train-lm; the nearest is --lm.epochs"),
        ({"lm": {"data": "x"}}, "--lm.data is an option of the whole job; give --data"),
        ({"clf": {"encoder": "x"}}, "--clf.encoder is set by fit itself"),
        ({"clf": {"batch_size": 1}}, "--clf.batch-size 1 is too small"),
        ({"clf": {"drop_mult": 2.0}}, "--clf.drop-mult 2 makes a dropout probability of 1; give less than 2"),
        ({"clf": {"metric": "f1", "keep_best": False}}, "give --clf.keep-best or --clf.stop-after too"),
        ({"clf": {"recipe": "none"}}, "--clf.recipe none takes nothing for granted"),
        ({"lm": {"epochs": 2, "max_steps": 3}}, "--lm.epochs and --lm.max-steps both set the length"),
        ({"lm": 3}, "give a dict of options by name"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
    ],
)
def test_a_mistake_leaves_nothing_behind(folder, options, sentence):
    if torch.cuda.is_available() and "precision" in options:
        pytest.skip("fp16 is good here")
    before = sorted(folder.iterdir())
    with pytest.raises(UserError) as caught:
        ulmfit.fit(job.config(folder, "run", **options))
    assert sentence in str(caught.value)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["run", "not there"])
def test_a_mistake_in_a_job_begun_afresh_moves_the_earlier_one_back(name, folder):
    """It had been moved aside before the language model's options were looked at."""
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"task": "fit", "options": {}}')
    before = {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}
    with pytest.raises(UserError, match="leave out --preset"):
        ulmfit.fit(job.config(folder, name, preset="tiny", init="english", resume="never"))
    assert before == {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def test_the_rivals_of_an_earlier_start_are_those_of_its_rows(folder):
    """Its classifier was refused after the language model's training."""
    first = job.config(folder, "run", clf=job.CLF | {"micro_batches": 200}, baseline=True)
    with pytest.raises(UserError, match="cannot each have one"):
        ulmfit.fit(first)
    stored = json.loads((folder / "run/baseline.json").read_text())
    assert stored["rows"]["train"] == 108 and not (folder / "run/clf").exists()
    found = job_files.rivals_of(folder / "run", stage_configs(first)[1])
    assert found == stored
    for other in ({"labels": 20}, {"valid": "0.2"}, {"seed": 5}):
        assert job_files.rivals_of(folder / "run", stage_configs(dataclasses.replace(first, **other))[1]) is None
    summary = ulmfit.fit(dataclasses.replace(first, clf=job.CLF | {"micro_batches": 1}, labels=20)).summary
    assert summary["rows"]["train"] == 20 == summary["systems"]["TF-IDF + logistic regression"]["rows"]
    shutil.rmtree(folder / "run/clf")
    shutil.rmtree(folder / "run/lm")
    assert job_files.rivals_of(folder / "run", stage_configs(dataclasses.replace(first, labels=20))[1]) is None


def test_only_its_own_directory_is_gone_on_with(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files that are not a run's"):
        ulmfit.fit(job.config(folder, "mine"))
    ulmfit.train_language_model(stage_configs(job.config(folder, "x", lm=job.LM | {"max_steps": 1}))[0])
    with pytest.raises(UserError, match="holds a run of train-lm and not of fit"):
        ulmfit.fit(job.config(folder, "x/lm"))


def test_the_summary_compares_on_the_test_split(finished):
    summary = json.loads((finished / "run" / "summary.json").read_text())
    page = (finished / "run" / "summary.md").read_text()
    systems = summary["systems"]
    assert summary["compared_on"] == "test" and list(systems) == [
        "majority class", "TF-IDF + logistic regression", "ulmfit"]  # fmt: skip
    assert summary["rows"] == {"train": 120, "valid": 30, "test": 30}
    ours = [line for line in runs.events(finished / "run/clf", "eval") if line["split"] == "test"]
    assert systems["ulmfit"]["test"]["accuracy"] == ours[-1]["accuracy"]
    assert summary["beats_baseline"] is (
        ours[-1]["accuracy"] > systems["TF-IDF + logistic regression"]["test"]["accuracy"])  # fmt: skip
    assert summary["verdict"] in page and f"{ours[-1]['accuracy']:.3f}" in page
    assert set(summary["minutes"]) == {"lm", "clf"}
    assert (
        {line["split"] for line in runs.events(finished / "run/lm", "eval")} == set(summary["perplexity"]) == {"valid"}
    )
    # Unlabelled texts are read by the language model: what to try does not ask for them.
    assert "zebra" in ulmfit.LanguageModel.from_pretrained(finished / "run/lm").tokenizer.vocab
    assert not any("unlabelled" in line for line in summary["advice"])
    folders = {path.parent.relative_to(finished / "run").as_posix() for path in finished.rglob("events.out*")}
    assert folders == {"lm/tensorboard", "clf/tensorboard", "tensorboard", "tensorboard/tfidf", "tensorboard/majority"}


def test_texts_without_labels_give_a_language_model(folder):
    (folder / "texts").mkdir()
    (folder / "texts/train.csv").write_text("text\n" + "".join(f"a film that I liked {n}\n" for n in range(40)))
    (folder / "texts/test.csv").write_text("text\na film that nobody liked\n")
    result = ulmfit.fit(job.config(folder, "run", data=str(folder / "texts"), valid=0.5))
    assert result.state == "done" and result.classifier is None and not (folder / "run/clf").exists()
    assert set(result.summary["perplexity"]) == {"valid", "test"}
    assert isinstance(result.model(), ulmfit.LanguageModel)
    assert "no labels" in (folder / "run/summary.md").read_text()
    # A column that may hold labels under another name is asked for instead.
    (folder / "texts.csv").write_text("text,stars\n" + "a film that I liked,5\nthe plot was dull,1\n" * 40)
    with pytest.raises(UserError, match="choose one of text, stars by --label-column"):
        ulmfit.fit(job.config(folder, "other", data=str(folder / "texts.csv")))


def test_a_corpus_too_small_to_hold_out_a_row_is_trained_on(folder):
    (folder / "few.csv").write_text(
        "text,label\nthe film that I liked so much,pos\nthe film that I liked so little,neg\n"
    )
    result = ulmfit.fit(job.config(folder, "run", data=str(folder / "few.csv"), baseline=True,
                                   lm=job.LM | {"max_steps": 1, "min_freq": 1, "batch_size": 2, "bptt": 3}, clf=job.CLF | {"max_steps": 1}))  # fmt: skip
    assert result.state == "done" and "nothing to compare" in result.summary["verdict"]


def test_without_scikit_learn_it_says_how_to_install_it_and_adds_the_line_later(folder, monkeypatch):
    from ulmfit.training import baseline

    for place in (module, baseline):
        monkeypatch.setattr(place, "is_installed", lambda: False)
    result = ulmfit.fit(job.config(folder, "run", baseline=True))
    assert result.summary["systems"]["TF-IDF + logistic regression"] is None
    assert "pip install scikit-learn" in (folder / "run/summary.md").read_text()
    monkeypatch.undo()
    result = ulmfit.fit(job.config(folder, "run", baseline=True))
    assert result.summary["systems"]["TF-IDF + logistic regression"]["valid"]["accuracy"] > 0.3
    assert "pip install" not in (folder / "run/summary.md").read_text()


def test_options_of_the_stages(folder):
    config = FitConfig(data="x.csv", seed=4, epochs=2, recipe="blog", lm={"max_steps": 5, "seed": 1}, clf={"lr": 1e-3},
                       labels=50, output_dir=Path("o"), init="none", backwards=True)  # fmt: skip
    lm, clf = stage_configs(config)
    assert (lm.data, lm.seed, lm.epochs, lm.max_steps, lm.init) == ("x.csv", 1, None, 5, "none")
    assert (lm.recipe, lm.lm_on_test, lm.output_dir, lm.backwards) == ("blog", False, "o/lm", True)
    assert (clf.seed, clf.epochs, clf.lr, clf.labels, clf.encoder) == (4, 2, 1e-3, 50, "o/lm")
    assert clf.on_command_line >= {"lr", "labels", "encoder", "seed"}
