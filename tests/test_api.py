"""What `import ulmfit` offers: names, types, options from Python, and what a training gives back."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ulmfit
from tests.training import runs as short
from ulmfit.config_check import check
from ulmfit.option_types import normalized
from ulmfit.training.result import read_metrics


def test_editors_and_type_checkers_see_the_names_that_load_late():
    (block,) = [
        node
        for node in ast.parse(Path(ulmfit.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.name: statement.module for statement in block.body for alias in statement.names}
    assert seen == ulmfit._HOMES
    assert {*seen, "__version__"} == {*ulmfit.__all__, *ulmfit._WITH_EXTRA} == set(dir(ulmfit))
    assert not {*ulmfit.__all__} & {*ulmfit._WITH_EXTRA}  # `import *` works without the extra
    for name, home in seen.items():
        assert getattr(ulmfit, name).__module__ == home and getattr(ulmfit, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        ulmfit.Trainer  # noqa: B018


def test_import_is_light():
    code = (
        "import sys, ulmfit; ulmfit.LMConfig(data='x'), ulmfit.UserError, ulmfit.TrainingInterrupted; "
        "sys.exit(bool({'torch', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=short.ROOT, timeout=60)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preset": "bas"}, "--preset is 'bas'; give one of tiny, small, base, blog, wide (the nearest is base)"),
        ({"schedule": "cosine"}, "--schedule is 'cosine'; give one of one-cycle, stlr, constant"),
        ({"precision": "float16"}, "--precision is 'float16'; give one of fp32, fp16, bf16, fp64"),
        ({"recipe": None}, "--recipe is None; give one of quick, blog, ulmfit, none"),
        ({"batch_size": "64"}, "--batch-size is '64'; give a whole number"),
        ({"batch_size": 6.5}, "--batch-size is 6.5; give a whole number"),
        ({"keep": True}, "--keep is True; give a whole number"),
        ({"lr": "1e-3"}, "--lr is '1e-3'; give a number"),
        ({"micro_batches": "all"}, "--micro-batches is 'all'; give a whole number or auto"),
        ({"streaming": "yes"}, "--streaming is 'yes'; give True or False"),
        ({"text_column": 3}, "--text-column is 3; give a text"),
        ({"output_dir": None}, "--output-dir is None; give a text"),
    ],
)
def test_an_option_of_another_type_or_choice_is_refused(options, sentence):
    with pytest.raises(ulmfit.UserError) as caught:
        check(ulmfit.LMConfig(**options))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ulmfit.fit("a.csv", data="b.csv"), "fit has data twice"),
        (lambda: ulmfit.fit(ulmfit.LMConfig()), "fit takes a FitConfig and was given a LMConfig; write fit(data="),
        (lambda: ulmfit.fit("a.csv", output="b"), "fit has no option output; the nearest is output_dir"),
        (
            lambda: ulmfit.fit("a.csv", batch_size=4),
            'no option batch_size; lm={"batch_size": ...} or clf={"batch_size": ...} is that',
        ),
        (lambda: ulmfit.fit("a.csv", colour="red"), "fit has no option colour; "),
        (
            lambda: ulmfit.train_classifier((["a"], ["b"])),
            "was given a tuple; write train_classifier(ulmfit.ClassifierConfig(data=",
        ),
        (lambda: ulmfit.train_classifier(ulmfit.LMConfig()), "takes a ClassifierConfig and was given a LMConfig"),
        (lambda: ulmfit.train_language_model(ulmfit.FitConfig()), "takes a LMConfig and was given a FitConfig"),
    ],
)
def test_what_is_no_configuration_is_told_in_a_sentence(call, sentence):
    with pytest.raises(ulmfit.UserError) as error:
        call()
    assert sentence in str(error.value)


def test_fit_takes_the_data_first(tmp_path):
    with pytest.raises(ulmfit.UserError, match=r"no file or folder .*nowhere\.csv"):
        ulmfit.fit(str(tmp_path / "nowhere.csv"), output_dir=str(tmp_path / "job"))


def test_every_default_is_of_its_type():
    for kind in (ulmfit.LMConfig, ulmfit.ClassifierConfig):
        check(kind())
        assert normalized(kind()) == kind()


def test_options_become_those_of_a_command_line(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    given = ulmfit.LMConfig(
        data=Path("a/b.csv"), valid=0.25, output_dir=Path("~/runs"), init="~/lm", tokenizer=Path("~/t.json"),
        cache_dir="~/c", config=Path("c.json"), batch_size=np.int64(8), lr=np.float32(0.5), epochs=2,
        backwards=np.True_,
    )  # fmt: skip
    found = vars(normalized(given))
    expected = {
        "data": "a/b.csv", "valid": "0.25", "output_dir": "/somewhere/runs", "init": "/somewhere/lm",
        "tokenizer": "/somewhere/t.json", "cache_dir": "/somewhere/c", "config": "c.json", "batch_size": 8, "lr": 0.5,
        "epochs": 2, "backwards": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert all(type(found[name]) is type(value) for name, value in expected.items())
    assert normalized(ulmfit.LMConfig(valid=Path("~/v.csv"))).valid == "/somewhere/v.csv"
    assert normalized(ulmfit.ClassifierConfig(encoder=Path("~/lm"))).encoder == "/somewhere/lm"
    json.dumps(found)
    given.on_command_line = frozenset({"batch_size"})
    assert normalized(given).on_command_line == {"batch_size"}  # the command line notes it on the configuration


@pytest.mark.slow
def test_paths_work_wherever_text_does(tmp_path, reviews, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    common = {"preset": "tiny", "max_steps": 1, "cache_dir": Path("~/cache")}
    lm = ulmfit.train_language_model(
        dataclasses.replace(short.lm_config(tmp_path), output_dir=Path("~/lm"), data=reviews, **common)
    )
    assert lm.run_dir == tmp_path / "lm" and (tmp_path / "cache").is_dir()
    more = dataclasses.replace(
        short.lm_config(tmp_path), output_dir=Path("~/more"), data=reviews, init=lm.run_dir, max_steps=1
    )
    assert ulmfit.train_language_model(more).state == "done"
    clf = dataclasses.replace(
        short.clf_config(tmp_path), output_dir=tmp_path / "clf", data=reviews, encoder=Path("~/lm"), max_steps=1
    )
    assert ulmfit.train_classifier(clf).state == "done"
    assert ulmfit.LanguageModel.from_pretrained("~/lm").tokenizer.vocab == lm.model().tokenizer.vocab
    assert len(ulmfit.Tokenizer.from_file("~/lm/tokenizer.json")) == len(lm.model().tokenizer)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Path:
    """A folder of three splits."""
    return short.write_splits(tmp_path_factory.mktemp("splits"), train=60, valid=20, test=20)


@pytest.mark.slow
def test_a_result_tells_how_it_ended_also_when_the_run_was_finished_before(splits, tmp_path, runs):
    config = short.clf_config(tmp_path / "clf", data=splits, encoder=runs.lm, max_steps=4, eval_every=2, keep_best=True)
    preempted = ulmfit.train_classifier(config, short.StopAtCall(2))
    assert (preempted.state, preempted.step) == ("preempted", 2) and set(preempted.metrics) == {"valid"}
    with pytest.raises(ulmfit.UserError, match="call it again"):
        preempted.model()
    done = ulmfit.train_classifier(config)
    assert (done.task, done.state, done.step) == ("clf", "done", 4)
    assert (done.run_dir, done.model_dir) == (tmp_path / "clf", tmp_path / "clf" / "model")
    lines = [line for line in short.metrics(done.run_dir) if line["event"] == "eval"]
    best = done.best_step or 4
    for split, step in (("valid", best), ("test", 4)):
        (line,) = [line for line in lines if (line["split"], line["step"]) == (split, step)]
        assert done.metrics[split] == {name: value for name, value in line.items() if name not in ("event", "split")}
    assert 0 <= done.metrics["test"]["accuracy"] <= 1
    assert ulmfit.train_classifier(config) == done and not done.suggestions
    assert isinstance(done.model(device="cpu"), ulmfit.TextClassifier)
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.step = 5


@pytest.mark.slow
def test_the_best_step_is_known_also_when_the_run_was_finished_before(splits, tmp_path, runs, monkeypatch):
    """The first evaluation is made the best."""
    from ulmfit.training.clf_task import ClassifierTask

    qualities = iter([2.0, 1.0])
    monkeypatch.setattr(ClassifierTask, "quality", lambda task, metrics: [next(qualities)])
    config = short.clf_config(tmp_path / "clf", data=splits, encoder=runs.lm, max_steps=4, eval_every=2, keep_best=True)
    done = ulmfit.train_classifier(config)
    assert done.best_step == 2 and done.metrics["valid"]["step"] == 2
    assert ulmfit.train_classifier(config) == done


@pytest.mark.slow
def test_a_search_gives_suggestions_and_no_run(splits, tmp_path):
    config = short.lm_config(tmp_path / "lm", data=splits, preset="tiny", lr_find=True)
    found = ulmfit.train_language_model(config)
    assert found.state == "found" and min(found.suggestions.values()) > 0 and not found.metrics
    assert not (found.run_dir / "config.json").exists()
    with pytest.raises(ulmfit.UserError, match="without lr_find"):
        found.model()


@pytest.mark.slow
def test_a_wheel_says_that_the_package_is_typed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "ulmfit").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "ulmfit/__init__.py", "ulmfit/py.typed"):
        (tree / name).write_bytes((short.ROOT / name).read_bytes())
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert "ulmfit/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_a_result_draws_its_confusion_matrix(runs):
    _, step, metrics = read_metrics(runs.clf)
    result = ulmfit.TrainingResult("clf", "done", step, runs.clf, runs.clf / "model", metrics)
    axes = result.plot_confusion_matrix().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["neg", "pos"]
    assert [text.get_text() for text in axes.texts] == [str(n) for row in metrics["valid"]["confusion"] for n in row]
    with pytest.raises(ulmfit.UserError, match="confusion matrix of the split 'test'; there is one of valid$"):
        result.plot_confusion_matrix("test")
    with pytest.raises(ulmfit.UserError, match="; only classifiers with one label a row have them"):
        dataclasses.replace(result, metrics={"valid": {"perplexity": 3.0}}).plot_confusion_matrix()
