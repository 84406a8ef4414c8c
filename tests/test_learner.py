"""Stages by hand end with the bits of the same stages in one call, after a kill and in another process too."""

from __future__ import annotations

import json
import math
import os

import pytest

import ulmfit
from tests.training import runs
from ulmfit.training.by_hand import ByHand
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.stages import DISCRIMINATIVE, Stage, recipe_for

SHORT = {"batch_size": 8, "bptt": 16, "save_every": 1, "log_every": 1, "samples": False, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a corpus, and the language model's learner after two fits."""
    folder = tmp_path_factory.mktemp("learner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULMFIT_CACHE", str(folder / "cache"))
        runs.write_reviews(folder / "reviews.csv", 36)
        learn = language_model(folder)
        learn.unfreeze()
        learn.fit_one_cycle(0.1, 1e-2)
        learn.fit_one_cycle(0.1, slice(1e-3, 1e-2), moms=(0.9, 0.8))
        learn.save_encoder("fine_tuned")
        yield folder, learn


def language_model(folder):
    return ulmfit.language_model_learner(
        str(folder / "reviews.csv"), init="none", preset="tiny", output_dir=folder / "lm", **SHORT
    )


def classifier(folder, name):
    learn = ulmfit.text_classifier_learner(str(folder / "reviews.csv"), output_dir=folder / name, **SHORT)
    return learn.load_encoder(folder / "lm" / "encoder")


def the_posts_stages(learn):
    """As the blog post: each stage is saved under a name, and loaded before the next."""
    learn.fit_one_cycle(1, 1.45e-3, moms=(0.8, 0.7))
    learn.save("first")
    for name, depth, rate in (("second", -2, 1.45e-3), ("third", -3, 1e-3)):
        learn.freeze_to(depth)
        learn.fit_one_cycle(1, slice(rate / 2.6**4, rate), moms=(0.8, 0.7))
        learn.save(name)
        learn.load(name)
    learn.unfreeze()
    return learn.fit_one_cycle(2, slice(1e-3 / 2.6**4, 1e-3), moms=(0.8, 0.7))


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(made):
    """The recipe of the post in one call."""
    folder, learn = made
    (folder / "lm" / "encoder").symlink_to(learn.run_dir)
    config = ulmfit.ClassifierConfig(data=str(folder / "reviews.csv"), recipe="blog", encoder=folder / "lm" / "encoder",
                                     output_dir=folder / "whole", **SHORT)  # fmt: skip
    assert [stage.lr_divisor for stage in recipe_for(config, pretrained=True).stages] == [1.0, *[DISCRIMINATIVE] * 3]
    return ulmfit.train_classifier(config).run_dir


@pytest.mark.slow
def test_a_classifiers_stages_are_those_of_one_call(made, whole):
    folder, _ = made
    learn = classifier(folder, "clf")
    result = the_posts_stages(learn)
    assert result.state == "done" and weights(learn.run_dir) == weights(whole)
    train = [line for line in runs.metrics(learn.run_dir) if line["event"] == "train"]
    assert train and train == [line for line in runs.metrics(whole) if line["event"] == "train"][-len(train) :]
    # Another learner, as after a restart, trains nothing again; and it goes back to a name.
    before = {path: path.stat().st_mtime_ns for path in (folder / "clf").rglob("model.safetensors")}
    again = classifier(folder, "clf")
    assert the_posts_stages(again).step == result.step and again.run_dir == learn.run_dir
    assert {path: path.stat().st_mtime_ns for path in (folder / "clf").rglob("model.safetensors")} == before
    third = again.load("third").run_dir
    assert third != learn.run_dir and weights(third) != weights(learn.run_dir)
    assert again.predict("What a film!").label in ("neg", "pos")


@pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="a minute: set ULMFIT_LONG, as tests/run_long.sh does")
def test_killed_in_a_later_stage_it_ends_with_the_same_bits(made, whole, monkeypatch):
    folder, _ = made
    done = ClassifierTask.step

    def killed(task, engine, batch, number):
        if number == 11:
            raise RuntimeError("killed")
        return done(task, engine, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTask, "step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            the_posts_stages(classifier(folder, "cut"))
    assert json.loads((max((folder / "cut").glob("0*")) / "status.json").read_text())["state"] == "failed"
    learn = classifier(folder, "cut")
    the_posts_stages(learn)
    assert weights(learn.run_dir) == weights(whole)


def test_a_language_model_goes_on_with_its_state(made):
    """Hidden state, position and random numbers too: two fits of a half are not two fits of the first half."""
    folder, learn = made
    first, second = (result.run_dir for result in learn.results)
    lines = [line for line in runs.metrics(second) if line["event"] == "train"]
    earlier = [line for line in runs.metrics(first) if line["event"] == "train"]
    assert lines[0]["step"] == earlier[-1]["step"] + 1 and lines[0]["tokens"] > earlier[-1]["tokens"]
    again = language_model(folder).load("fine_tuned")
    assert again.run_dir == second and again.predict("It is", 3).startswith("It is")
    config = json.loads((second / "config.json").read_text())
    assert [stage["name"] for stage in config["resolved"]["stages"]] == ["all groups", "all groups"]
    assert [stage["momentum"] for stage in config["resolved"]["stages"]] == [[0.8, 0.7], [0.9, 0.8]]
    assert config["resolved"]["stages"][1]["lr_divisor"] == pytest.approx(10)


@pytest.mark.slow
def test_the_finder_leaves_the_learner_as_it_stands(made):
    folder, learn = made
    found = learn.lr_find()
    assert found.state == "found" and found.suggestions and learn.run_dir == learn.results[-1].run_dir


@pytest.mark.slow
def test_the_finders_picture_names_what_is_trained(made):
    folder, _ = made
    assert language_model(folder).lr_find().picture.name == "head.png"


def test_mistakes_are_sentences(made):
    folder, _ = made
    fresh = language_model(folder / "none")
    for call, sentence in ((fresh.save, "nothing to save yet"), (fresh.load, "does not exist; save")):
        with pytest.raises(ulmfit.UserError, match=sentence):
            call("first")
    with pytest.raises(ulmfit.UserError, match="has not been trained yet"):
        _ = fresh.run_dir
    with pytest.raises(ulmfit.UserError, match="without slashes"):
        fresh.load("../first")
    with pytest.raises(ulmfit.UserError, match="slice of rates has two ends"):
        fresh.fit_one_cycle(1, slice(1e-3))
    with pytest.raises(ulmfit.UserError, match="above 0"):
        fresh.fit_one_cycle(0)
    for arguments, sentence in (
        ((math.inf,), "--epochs is inf"), ((math.nan,), "--epochs is nan"), (("x",), "epochs is 'x'; give a number"),
        ((1, math.inf), "--lr is inf"), ((1, slice(0, 1)), "--lr is 0"), ((1, "fast"), "rate is 'fast'; give a number"),
        ((1, 1e-2, (1.5, 2)), "below 1"), ((1, 1e-2, 0.9), "give two numbers"), ((1, 1e-2, (0.9,)), "give two numbers"),
    ):  # fmt: skip
        with pytest.raises(ulmfit.UserError, match=sentence):
            fresh.fit_one_cycle(*arguments)
    for group in ("all", 1.5):
        with pytest.raises(ulmfit.UserError, match="freeze_to is .*; give the whole number of a layer group"):
            fresh.freeze_to(group)
    with pytest.raises(
        ulmfit.UserError, match=r"freeze_to\(99\) leaves nothing to train, for there are 3 layer groups"
    ):
        ByHand((Stage("1", 99, 1.0, 1e-2),)).check(3)
    with pytest.raises(ulmfit.UserError, match="epochs is set by the calls"):
        ulmfit.text_classifier_learner(epochs=3)
    with pytest.raises(ulmfit.UserError, match="recipe 'none'"):
        ulmfit.text_classifier_learner(recipe="none")
    assert not (folder / "none").exists()


def test_saved_states_are_checked(made):
    folder, learn = made
    for name, sentence in (("a\0b", "null character"), ("n" * 300, "give a shorter one"), (5, "without slashes")):
        with pytest.raises(ulmfit.UserError, match=sentence):
            learn.save(name)
    good = json.loads(learn.save("state").read_text())
    stage = good["stages"][0]
    for wrong in ([], good | {"run": "../other"}, good | {"run": 5}, good | {"run": ".."}, good | {"freeze_to": "x"}, good | {"stages": []},
                  good | {"stages": [stage | {"epochs": "x"}]}, good | {"stages": [stage | {"freeze_to": None}]}):  # fmt: skip
        (learn.path / "saved" / "state.json").write_text(json.dumps(wrong))
        with pytest.raises(ulmfit.UserError, match="is damaged; run the cell again"):
            learn.load("state")
    there = learn.path
    try:
        learn.path = folder / "reviews.csv"
        with pytest.raises(ulmfit.UserError, match="cannot be written"):
            learn.save("state")
    finally:
        learn.path = there
