"""A job of several classifiers: each is a run of its own, on the rows of the first, and the model is their mean."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.training import runs
from tests.training.runs import content
from ulmfit import cli
from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig, classifier_configs, stage_configs
from ulmfit.report.facts import read_facts
from ulmfit.training import clf_training, ensemble
from ulmfit.training.loop import Loop

NAMES = ("clf", "clf-2", "clf-3")
OPTIONS = {"valid": 0.2, "labels": 80}  # both are drawn by a seed
TEXTS = ["a good film", "the plot was dull and the film too long"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ and a finished job of three classifiers, `three`. Not to be changed."""
    place = tmp_path_factory.mktemp("ensemble")
    runs.write_splits(place / "data", train=120, test=30)
    assert ulmfit.fit(config(place, "three", ensemble=3)).state == "done"
    return place


def config(folder: Path, name: str, **options) -> FitConfig:
    return job.config(folder, name, data=str(folder / "data"), **OPTIONS, **options)


def equal(a: Path, b: Path) -> bool:
    first, second = runs.weights(a), runs.weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_options_of_the_classifiers():
    whole = FitConfig(data="x.csv", seed=4, clf={"lr": 1e-3}, labels=50, output_dir=Path("o"), ensemble=3)
    first, second, third = classifier_configs(whole).values()
    assert first == stage_configs(whole)[1] == classifier_configs(FitConfig(**vars(whole) | {"ensemble": 1}))["clf"]
    assert [(one.seed, one.seed_of_draws, one.output_dir) for one in (first, second, third)] == [
        (4, 4, "o/clf"), (5, 4, "o/clf-2"), (6, 4, "o/clf-3")]  # fmt: skip
    assert (second.lr, second.labels, second.data, second.encoder) == (1e-3, 50, "x.csv", "o/lm")
    assert second.on_command_line == first.on_command_line | {"seed", "draw_seed"}
    own = FitConfig(seed=4, clf={"seed": 9, "draw_seed": 2}, ensemble=2)
    assert [(one.seed, one.seed_of_draws) for one in classifier_configs(own).values()] == [(9, 2), (10, 2)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ensemble": 0}, "--ensemble is 0; give at least 1"),
        ({"ensemble": 101}, "--ensemble is 101; give at most 100"),
        ({"clf": {"ensemble": 2}}, "--clf.ensemble is an option of the whole job; give --ensemble"),
        (
            {"ensemble": 2, "seed": 2**63 - 1},
            "--ensemble 2 takes the seeds from 9223372036854775807 on, which are too large",
        ),
    ],
)
def test_a_number_that_nobody_means_is_refused(options, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        ulmfit.fit(FitConfig(output_dir=tmp_path / "run", **options))
    assert str(caught.value).startswith(sentence) and not (tmp_path / "run").exists()
    if len(options) == 1 and "ensemble" in options:
        with pytest.raises(UserError, match=sentence):
            parse(COMMANDS["fit"].options, ["--ensemble", str(options["ensemble"])])


@pytest.mark.slow
def test_the_classifiers_differ_in_their_seed_alone(folder):
    three = folder / "three"
    stored = [content(three / name / "config.json") for name in NAMES]
    identities = [one["identity"] for one in stored]
    assert [one["seed"] for one in identities] == [3, 4, 5]
    assert [one["draw_seed"] for one in identities] == [None, 3, 3]
    for one in identities:  # the corpus tells which rows are held out
        assert {name: value for name, value in one.items() if "seed" not in name} == {
            name: value for name, value in identities[0].items() if "seed" not in name}  # fmt: skip
    assert not equal(three / "clf", three / "clf-2") and not equal(three / "clf-2", three / "clf-3")


@pytest.mark.slow
def test_the_model_is_their_mean_and_its_scores_are_told(folder, capsys):
    three = folder / "three"
    model = ulmfit.TextClassifier.from_pretrained(three, backend="torch")
    each = [ulmfit.TextClassifier.from_pretrained(three / name, backend="torch") for name in NAMES]
    probabilities = [one.probabilities(TEXTS) for one in each]
    assert np.allclose(model.probabilities(TEXTS), np.mean(probabilities, axis=0), atol=1e-7)
    summary, scores = content(three / "summary.json"), content(three / "ensemble.json")["metrics"]
    for split in ("valid", "test"):
        assert cli.main(["evaluate", "--model", str(three), "--split", split]) == 0
        found = json.loads(capsys.readouterr().out)
        told = summary["systems"]["ulmfit"][split]
        assert (found["models"], found["documents"]) == (3, {"valid": 24, "test": 30}[split])
        assert found["loss"] == pytest.approx(told["loss"], rel=1e-6) and found["accuracy"] == told["accuracy"]
        assert scores[split]["confusion"] == found["confusion"]
        for name, member in zip(NAMES, summary["members"], strict=True):
            ours = [line for line in runs.events(three / name, "eval") if line["split"] == split][-1]
            assert member[split]["loss"] == ours["loss"]
    result = ulmfit.fit(output_dir=three)  # finished: nothing is trained
    assert result.metrics == scores and result.metrics["test"] != result.classifier.metrics["test"]
    figure = result.plot_confusion_matrix("test")
    assert figure.axes and figure is not result.classifier.plot_confusion_matrix("test")
    with pytest.raises(UserError, match="no confusion matrix of the split 'train'"):
        result.plot_confusion_matrix("train")
    capsys.readouterr()
    # All commands take the directory.
    assert cli.main(["explain", str(three), TEXTS[0], "--samples"]) == 0
    assert cli.main(["top-losses", str(three), "--number", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", str(three), "--model", str(three / "clf")]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == 4
    assert isinstance(ulmfit.LanguageModel.from_pretrained(three), ulmfit.LanguageModel)


@pytest.mark.slow
def test_a_report_shows_the_scores_of_all(folder, tmp_path):
    facts = read_facts(str(folder / "three"))
    assert len(facts.members) == 3 and facts.main.metrics == content(folder / "three/ensemble.json")["metrics"]
    page = tmp_path / "report.html"
    assert cli.main(["report", str(folder / "three"), "--output", str(page)]) == 0
    assert "the mean of 3 classifiers" in page.read_text() and "Classifier 1 of 3" in page.read_text()


@pytest.mark.slow
def test_a_card_tells_the_scores_of_its_model(folder, tmp_path):
    def card(name: str, *models: Path) -> str:
        ulmfit.TextClassifier.from_pretrained(models).save_pretrained(tmp_path / name)
        return (tmp_path / name / "README.md").read_text()

    three = folder / "three"
    whole = content(three / "ensemble.json")["metrics"]["test"]["loss"]
    alone = [runs.events(three / name, "eval")[-1]["loss"] for name in NAMES]
    page = card("whole", three)
    assert f"{whole:.3f} |" in page and "The mean of 3 text classifiers (each ULMFiT: AWD-LSTM" in page
    page = card("member", three / "model" / "3")
    assert f"{alone[2]:.3f} |" in page and "A text classifier (ULMFiT" in page
    page = card("two of them", three / "model/1", three / "clf-2")
    assert "The run that made this model is not beside it" in page and f"{alone[0]:.3f}" not in page


@pytest.mark.slow
def test_a_report_of_a_job_that_was_made_larger_and_stopped_tells_of_the_model_that_is_there(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "three", run)
    assert ulmfit.fit(output_dir=run, ensemble=4, max_time=1e-3).state == "preempted"
    facts = read_facts(str(run))
    assert (facts.ensemble, facts.averaged) == (4, 3) and "of the classifier 4 of 4" in facts.unfinished
    assert facts.main.metrics == content(run / "ensemble.json")["metrics"]
    page = tmp_path / "report.html"
    assert cli.main(["report", str(run), "--output", str(page)]) == 0
    assert "the mean of 3 classifiers" in page.read_text()
    assert ulmfit.fit(output_dir=run, ensemble=2).state == "done"
    facts = read_facts(str(run))
    assert facts.averaged == 2 and set(facts.minutes) == {"lm", "clf", "clf-2", "mean"}


@pytest.mark.slow
def test_where_a_language_model_is_wanted_the_jobs_own_is_named(folder):
    with pytest.raises(UserError, match="give the language model that they were made from, .*three/lm$"):
        ulmfit.LanguageModel.from_pretrained(folder / "three" / "model")


@pytest.mark.slow
def test_a_job_of_one_grows_and_shrinks_and_trains_nothing_twice(folder, monkeypatch):
    run, three = folder / "one", folder / "three"
    seeds, trained = [], set()
    draw, step = clf_training.balanced_draw, Loop._step

    def drawing(*labels, seed):
        seeds.append(seed)
        return draw(*labels, seed=seed)

    def stepping(loop, batch):
        trained.add(Path(loop.config.output_dir).name)
        return step(loop, batch)

    one = ulmfit.fit(config(folder, "one"))
    assert not (run / "ensemble.json").exists() and "members" not in one.summary
    assert equal(run / "lm", three / "lm") and equal(run / "clf", three / "clf") and equal(run, run / "clf")
    monkeypatch.setattr(clf_training, "balanced_draw", drawing)
    monkeypatch.setattr(Loop, "_step", stepping)
    grown = ulmfit.fit(output_dir=run, ensemble=3)
    assert trained == {"clf-2", "clf-3"} and set(seeds) == {3}
    assert [member.run_dir.name for member in grown.members] == list(NAMES) and grown.classifier == grown.members[0]
    assert all(equal(run / name, three / name) for name in NAMES)
    assert sorted(entry.name for entry in (run / "model").iterdir()) == ["1", "2", "3", "bundle.json"]
    assert content(run / "ensemble.json") == content(three / "ensemble.json")
    assert content(run / "config.json")["options"]["ensemble"] == 3
    # The same command finds it finished, what is damaged is made again, and fewer are the first of them.
    monkeypatch.setattr(Loop, "_step", pytest.fail)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert ulmfit.fit(output_dir=run).summary == grown.summary
    assert before == {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    (run / "ensemble.json").write_text("{}")
    shutil.rmtree(run / "model" / "2")
    assert ulmfit.fit(output_dir=run).summary == grown.summary
    assert before == {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert cli.main(["fit", "--output-dir", str(run), "--ensemble", "2"]) == 0
    assert len(ulmfit.TextClassifier.from_pretrained(run).members) == 2 and not (run / "model/3").exists()
    assert cli.main(["fit", "--output-dir", str(run), "--ensemble", "1"]) == 0
    assert equal(run, run / "clf") and len(list((run / "model").iterdir())) == 3
    assert (run / "clf-3/model").exists() and "members" not in content(run / "summary.json")


@pytest.mark.parametrize(
    ("options", "rows", "init", "number"),
    [
        ({}, 10_000, "english", 3),
        ({}, 10_001, "english", 1),
        ({}, 100, "none", 1),
        ({"recipe": "blog"}, 100, "english", 1),
        ({"seed": 2**63 - 2}, 100, "english", 2),  # the largest seed is that of the second
        ({"clf": {"seed": 2**63 - 1}}, 100, "english", 1),
    ],
)
def test_the_usual_number(options, rows, init, number, monkeypatch):
    monkeypatch.setattr(ensemble, "start_and_length", lambda *_: {"init": init != "none"})
    assert ensemble.usual_number(Path("job"), FitConfig(**options), rows) == number


@pytest.mark.slow
def test_few_texts_and_a_pretrained_model_get_three(folder, capsys):
    run, start = folder / "usual", {"init": str(folder / "three"), "preset": None}
    began = ulmfit.fit(config(folder, "usual", max_time=1e-3, **start))
    assert began.state == "preempted" and content(run / "config.json")["options"]["ensemble"] is None
    done = ulmfit.fit(output_dir=run)
    assert done.state == "done" and len(done.members) == 3 and content(run / "config.json")["options"]["ensemble"] == 3
    assert (
        "training 3 classifiers, whose probabilities are averaged; --ensemble 1 trains one" in capsys.readouterr().out
    )
    assert len(ulmfit.TextClassifier.from_pretrained(run).members) == 3
    assert ulmfit.fit(output_dir=run).summary == done.summary
    one = ulmfit.fit(output_dir=run, ensemble=1)
    assert equal(run, run / "clf") and "members" not in one.summary
    # A job that an earlier version has begun stays what it was.
    stored = content(run / "config.json")
    del stored["options"]["ensemble"]
    (run / "config.json").write_text(json.dumps(stored))
    assert "members" not in ulmfit.fit(output_dir=run).summary and equal(run, run / "clf")


@pytest.mark.slow
def test_a_stop_in_the_second_classifier_is_gone_on_from(folder, monkeypatch):
    run, three = folder / "run", folder / "three"
    step = Loop._step

    def stopping(loop, batch):
        loop._agreement._every = 1
        if Path(loop.config.output_dir).name == "clf-2" and loop.position.step == 2:
            (run / "stop").touch()
        return step(loop, batch)

    monkeypatch.setattr(Loop, "_step", stopping)
    stopped = ulmfit.fit(config(folder, "run", ensemble=3))
    monkeypatch.undo()
    status = content(run / "status.json")
    assert (stopped.state, status["state"], status["stage"]) == ("preempted", "preempted", "clf-2")
    assert [member.state for member in stopped.members] == ["done", "preempted"] and not (run / "model").exists()
    assert "stopped at step 3 of 6 of the classifier 2 of 3" in read_facts(str(run)).unfinished
    scored = ensemble.score_bundle

    def killed(*_, **options):
        raise RuntimeError("killed")

    monkeypatch.setattr(ensemble, "score_bundle", killed)  # all are trained and nothing is scored
    with pytest.raises(RuntimeError):
        ulmfit.fit(output_dir=run)
    assert content(run / "status.json")["state"] == "failed"
    monkeypatch.setattr(ensemble, "score_bundle", scored)
    monkeypatch.setattr(Loop, "_step", pytest.fail)
    assert ulmfit.fit(output_dir=run).state == "done"
    assert all(equal(run / name, three / name) for name in NAMES)
    assert all(runs.metrics(run / name) == runs.metrics(three / name) for name in NAMES)
    assert content(run / "ensemble.json") == content(three / "ensemble.json")
    assert content(run / "status.json")["step"] == content(three / "status.json")["step"] == 24


@pytest.mark.slow
def test_a_stop_while_they_are_scored_together_leaves_that_to_the_next_start(folder, monkeypatch):
    run, three = folder / "asked", folder / "three"
    score = ensemble.score_bundle

    def asked(*given, **options):
        (run / "stop").touch()
        return score(*given, **options)

    def pressed(*_, **options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ensemble, "score_bundle", asked)
    stopped = ulmfit.fit(config(folder, "asked", ensemble=3))
    assert stopped.state == "preempted" and [member.state for member in stopped.members] == ["done"] * 3
    status = content(run / "status.json")
    assert (status["state"], status["stage"], status["reason"]) == ("preempted", "summary", "stop file")
    assert not (run / "ensemble.json").exists() and not (run / "model").exists()
    monkeypatch.setattr(ensemble, "score_bundle", pressed)
    with pytest.raises(KeyboardInterrupt):
        ulmfit.fit(output_dir=run)
    status = content(run / "status.json")
    assert (status["state"], status["stage"], status["reason"]) == ("preempted", "summary", "KeyboardInterrupt")
    monkeypatch.setattr(ensemble, "score_bundle", score)
    monkeypatch.setattr(Loop, "_step", pytest.fail)
    assert ulmfit.fit(output_dir=run).state == "done"
    assert content(run / "ensemble.json") == content(three / "ensemble.json")
