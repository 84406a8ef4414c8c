"""Several classifiers as one: the mean of their probabilities, on disk, in memory and on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ulmfit
from ulmfit import cli
from ulmfit.errors import UserError
from ulmfit.model.pretrained import load_model, save_model

TEXTS = ["I saw it last night and liked the acting", "a dull plot", "the music, again and again and again"]


@pytest.fixture(scope="module")
def models(runs, tmp_path_factory) -> list[Path]:
    """A classifier, one with other weights that reads backwards, and one that knows the classes in another order."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "backward", "reversed"):
        net, tokenizer, config = load_model(runs.clf)
        torch.manual_seed(len(name))
        with torch.no_grad():
            for tensor in net.parameters():
                tensor += 0.3 * torch.randn_like(tensor) * (name != "first")
        config |= {"backwards": name == "backward"}
        if name == "reversed":
            config["label_names"] = config["label_names"][::-1]
        save_model(folder / name, net, tokenizer, config)
    return [folder / name for name in ("first", "backward", "reversed")]


def probabilities(path: Path) -> np.ndarray:
    return ulmfit.TextClassifier.from_pretrained(path).probabilities(TEXTS)


def test_probabilities_are_the_mean(models):
    first, backward, turned = map(probabilities, models)
    assert np.abs(first - backward).max() > 0.01 and np.abs(first - turned).max() > 0.01
    both = ulmfit.TextClassifier.from_pretrained(models[:2])
    assert np.allclose(both.probabilities(TEXTS), (first + backward) / 2, atol=1e-7)
    assert both.predict(TEXTS)[1].probabilities.tolist() == both.probabilities(TEXTS)[1].tolist()
    assert both.predict(TEXTS[0]).label == both.label_names[both.probabilities(TEXTS[:1])[0].argmax()]
    three = ulmfit.TextClassifier.from_pretrained(models)
    assert three.label_names == ["neg", "pos"]
    assert np.allclose(three.probabilities(TEXTS), (first + backward + turned[:, ::-1]) / 3, atol=1e-7)
    one = ulmfit.TextClassifier.from_pretrained(models[:1])
    assert type(one) is ulmfit.TextClassifier and np.array_equal(one.probabilities(TEXTS), first)


def test_a_bundle_is_written_and_read(models, tmp_path, capsys):
    given = [word for model in models for word in ("--model", str(model))]
    assert cli.main(["export", *given, "--output", str(tmp_path / "bundle")]) == 0
    assert "a bundle in" in capsys.readouterr().out
    expected = ulmfit.TextClassifier.from_pretrained(models).probabilities(TEXTS)
    bundle = ulmfit.TextClassifier.from_pretrained(tmp_path / "bundle")
    assert np.array_equal(bundle.probabilities(TEXTS), expected)
    # A bundle may be a member: its models count one by one.
    assert cli.main(["export", "--model", str(tmp_path / "bundle"), "--output", str(tmp_path / "small"),
                     "--bits", "8"]) == 0  # fmt: skip
    small = ulmfit.TextClassifier.from_pretrained(tmp_path / "small")
    assert len(small.members) == 3 and np.abs(small.probabilities(TEXTS) - expected).max() < 0.05
    assert (tmp_path / "small/1/model.safetensors").stat().st_size < 0.4 * (
        tmp_path / "bundle/1/model.safetensors").stat().st_size  # fmt: skip
    with pytest.raises(UserError, match="is a bundle of classifiers"):
        ulmfit.LanguageModel.from_pretrained(tmp_path / "bundle")
    (tmp_path / "bundle/bundle.json").write_text('{"format_version": 1, "members": ["../../secret"]}')
    with pytest.raises(UserError, match="does not tell the members"):
        ulmfit.TextClassifier.from_pretrained(tmp_path / "bundle")


def test_commands_take_several_models(models, reviews, tmp_path, capsys):
    given = [word for model in models[:2] for word in ("--model", str(model))]
    assert cli.main(["predict", *given, "--data", str(reviews), "--output", str(tmp_path / "p.csv")]) == 0
    with open(reviews, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    both = ulmfit.TextClassifier.from_pretrained(models[:2])
    expected = both.probabilities([row["text"] for row in rows])
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        written = np.array([[float(row["neg"]), float(row["pos"])] for row in csv.DictReader(file)])
    assert np.allclose(written, expected, atol=1e-6)
    capsys.readouterr()
    assert cli.main(["evaluate", *given, "--data", str(reviews), "--split", "all"]) == 0
    scores = json.loads(capsys.readouterr().out)
    truth = np.array([["neg", "pos"].index(row["label"]) for row in rows])
    assert scores["accuracy"] == np.mean(expected.argmax(1) == truth) and scores["models"] == 2
    assert scores["loss"] == pytest.approx(-np.log(expected[np.arange(len(truth)), truth]).mean(), rel=1e-4)
    assert np.sum(scores["confusion"]) == len(rows)


def test_what_does_not_fit_together_is_refused(models, runs, tmp_path, capsys):
    net, tokenizer, config = load_model(models[0])
    save_model(tmp_path / "classes", net, tokenizer, config | {"label_names": ["neg", "other"]})
    with pytest.raises(UserError, match="average models of the same classes"):
        ulmfit.TextClassifier.from_pretrained([models[0], tmp_path / "classes"])
    save_model(tmp_path / "columns", net, tokenizer, config | {"text_columns": ["title", "text"]})
    with pytest.raises(UserError, match="average models of the same columns"):
        ulmfit.TextClassifier.from_pretrained([models[0], tmp_path / "columns"])
    assert cli.main(["predict", "--model", str(models[0]), "--model", str(runs.lm), "a text"]) == 2
    assert "is not one for TextClassifier" in capsys.readouterr().err
    with pytest.raises(UserError, match="no model was given"):
        ulmfit.TextClassifier.from_pretrained([])


@pytest.mark.parametrize("members", [[".."], ["1/.."], ["1"], [], "1", [1], {"1": 1}, [["1"]], ["2", "2"]])
def test_an_index_that_leads_out_of_the_bundle_or_into_itself_is_refused(members, tmp_path):
    """A bundle of the hub is a stranger's: "1" is here a bundle again, whose member is the whole."""
    (tmp_path / "1").mkdir()
    for folder, names in ((tmp_path, members), (tmp_path / "1", [".."])):
        (folder / "bundle.json").write_text(json.dumps({"format_version": 1, "members": names}))
    with pytest.raises(UserError, match="does not tell the members of a bundle"):
        ulmfit.TextClassifier.from_pretrained(tmp_path)
    for told in ({"temperature": 10**400}, {"temperature": 1e-320}, {"shares": [10**400]}):
        (tmp_path / "bundle.json").write_text(json.dumps({"format_version": 3, "members": ["2"]} | told))
        with pytest.raises(UserError, match="does not tell the members of a bundle"):
            ulmfit.TextClassifier.from_pretrained(tmp_path)
    (tmp_path / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="does not tell the members of a bundle"):
        ulmfit.TextClassifier.from_pretrained(tmp_path)
