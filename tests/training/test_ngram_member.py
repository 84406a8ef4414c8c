"""N-grams in the mean of a job's classifiers: when they join it, and what every command makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.training import runs
from tests.training.runs import content
from ulmfit import cli
from ulmfit.bundle import make_up
from ulmfit.errors import StoppedEarly, UserError
from ulmfit.fit_config import FitConfig
from ulmfit.report.facts import read_facts
from ulmfit.training import ngram_member
from ulmfit.training.ngram_member import ngrams_wanted

TEXTS = ["a good film", "the plot was dull and the film too long", "qqq"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ and a finished job of one classifier and n-grams, `with`. Not to be changed."""
    place = tmp_path_factory.mktemp("ngrams")
    runs.write_splits(place / "data", train=120, test=30)
    assert ulmfit.fit(config(place, "with", ngrams=None)).state == "done"
    return place


def config(folder: Path, name: str, **options) -> FitConfig:
    return job.config(folder, name, **{"data": str(folder / "data"), "valid": 0.2, "ngrams": True} | options)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "where they pay"),
        ({"ngrams": True}, "always"),
        ({"ngrams": False}, "never"),
        ({"recipe": "ulmfit"}, "never"),  # that of a paper
        ({"recipe": "ulmfit", "ngrams": True}, "always"),
        ({"labels": 100}, "never"),
        ({"clf": {"class_weights": "balanced"}}, "never"),
        ({"clf": {"class_weights": "none"}}, "where they pay"),
        ({"clf": {"class_weights": "balanced"}, "ngrams": True}, "always"),
    ],
)
def test_when_they_may_join(options, wanted):
    assert ngrams_wanted(FitConfig(**options)) == wanted


@pytest.mark.slow
def test_they_join_where_the_validation_loss_is_lower(folder):
    """On the sample six steps of a network are worse than words."""
    job_dir = folder / "with"
    told, summary = content(job_dir / "ensemble.json"), content(job_dir / "summary.json")
    assert told["ngrams"] == summary["ngrams"] and summary["ngrams"]["gain"] > 0
    share = summary["ngrams"]["share"]
    assert share in ngram_member.SHARES and make_up(job_dir) == (1, share)
    alone = summary["members"][0]["valid"]["loss"] - summary["systems"]["ulmfit"]["valid"]["loss"]
    assert alone == pytest.approx(summary["ngrams"]["gain"], rel=1e-4)
    assert (
        summary["systems"]["ulmfit"]["minutes"] == sum(summary["minutes"].values()) and summary["minutes"]["mean"] > 0
    )
    page = (job_dir / "summary.md").read_text()
    assert "ulmfit, mean of a classifier and n-grams" in page and "one of them alone" not in page
    network, words = (
        ulmfit.TextClassifier.from_pretrained(job_dir / name, backend="torch") for name in ("clf", "ngrams")
    )
    expected = (1 - share) * network.probabilities(TEXTS) + share * words.probabilities(TEXTS)
    model = ulmfit.TextClassifier.from_pretrained(job_dir)
    np.testing.assert_allclose(model.probabilities(TEXTS), expected, atol=1e-6)


@pytest.mark.slow
def test_they_stay_out_where_it_is_not(folder, monkeypatch, capsys):
    monkeypatch.setattr(ngram_member, "SHARES", (1e-9,))
    monkeypatch.setattr(
        ngram_member, "loss", lambda rows, truth: -float(np.ptp(rows))
    )  # the network's rows are the best
    result = ulmfit.fit(config(folder, "without", ngrams=None))
    assert content(folder / "without/ensemble.json")["ngrams"] is None
    assert "n-grams stay out: with them the validation texts fare worse" in capsys.readouterr().out
    assert make_up(result.model_dir) == (1, 0.0) and "members" not in result.summary
    before = (folder / "without/ensemble.json").stat().st_mtime_ns
    assert ulmfit.fit(config(folder, "without", ngrams=None)).state == "done"  # and is not looked at again
    assert (folder / "without/ensemble.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_every_command_takes_the_directory(folder, tmp_path, capsys):
    run = str(folder / "with")
    assert cli.main(["evaluate", "--model", run, "--split", "test"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = content(folder / "with/summary.json")["systems"]["ulmfit"]["test"]
    assert (found["models"], found["accuracy"]) == (2, told["accuracy"])
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-6)
    assert cli.main(["explain", run, TEXTS[1], "--samples"]) == 0
    assert cli.main(["top-losses", run, "--number", "1"]) == 0
    assert cli.main(["evaluate", "--model", f"{run}/ngrams", "--data", str(folder / "data/test.csv")]) == 0
    facts = read_facts(run)
    assert (facts.averaged, facts.ngrams) == (1, content(folder / "with/summary.json")["ngrams"]["share"])
    assert (
        set(facts.minutes) == {"lm", "clf", "mean"}
        and facts.minutes == content(folder / "with/summary.json")["minutes"]
    )
    assert cli.main(["report", run, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "the mean of a classifier and, with a share of" in page and "a linear classifier of words" in page
    assert cli.main(["export", "--model", run, "--output", str(tmp_path / "small"), "--bits", "8"]) == 0
    whole = ulmfit.TextClassifier.from_pretrained(run, backend="torch").probabilities(TEXTS)
    small = ulmfit.TextClassifier.from_pretrained(tmp_path / "small")
    assert make_up(tmp_path / "small") == make_up(run) and np.abs(small.probabilities(TEXTS) - whole).max() < 0.05
    assert cli.main(["export", "--model", run, "--output", str(tmp_path / "no"), "--to", "fastai"]) == 2
    assert cli.main(["export", "--model", f"{run}/ngrams", "--output", str(tmp_path / "no"), "--to", "fastai"]) == 2
    assert "is for networks and" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert cli.main(["train-clf", "--encoder", f"{run}/ngrams", "--output-dir", str(tmp_path / "no")]) == 2
    eight = ulmfit.TextClassifier.from_pretrained(run, int8=True)
    assert np.abs(eight.probabilities(TEXTS) - whole).max() < 0.05
    model = ulmfit.TextClassifier.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    again = ulmfit.TextClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.probabilities(TEXTS), whole, atol=1e-6)
    card = (tmp_path / "saved/README.md").read_text()
    share = content(folder / "with/ensemble.json")["ngrams"]["share"]
    assert "The mean of a text classifier (ULMFiT" in card
    assert f" and, with a share of {share:g}, a linear classifier of words and pairs of words that gives" in card
    card = str(ulmfit.TextClassifier.from_pretrained(f"{run}/model/ngrams").generate_model_card())
    assert "A linear classifier of" in card


@pytest.mark.slow
def test_the_explanation_is_the_mean(folder):
    run = folder / "with"
    share = make_up(run)[1]
    whole, network, words = (ulmfit.TextClassifier.from_pretrained(path, backend="torch").explain(TEXTS[1], "neg", tried=0)
                             for path in (run, run / "clf", run / "ngrams"))  # fmt: skip
    for both, first, second in zip(whole.words, network.words, words.words, strict=True):
        mean = (1 - share) * first.contribution + share * second.contribution
        assert both.contribution == pytest.approx(mean, abs=1e-6)
    model = ulmfit.TextClassifier.from_pretrained(run, backend="torch")
    model.config["temperature"] = 2.0  # of the mean
    for cooled, both in zip(model.explain(TEXTS[1], "neg", tried=0).words, whole.words, strict=True):
        assert cooled.contribution == pytest.approx(both.contribution / 2, abs=1e-6)
    assert max(abs(word.contribution) for word in words.words) > 0


@pytest.mark.slow
@pytest.mark.parametrize("member", [False, True], ids=["mean", "alone"])
def test_the_onnx_graph_gives_the_same(folder, member, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run = folder / "with" / ("ngrams" if member else ".")
    texts = [*TEXTS, "good " * 300, "a\n\nb", "THE END " * 30, "bad, bad"]
    expected = ulmfit.TextClassifier.from_pretrained(run, backend="torch").probabilities(texts)
    assert cli.main(["export", "--model", str(run), "--to", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    model = ulmfit.TextClassifier.from_pretrained(tmp_path / "onnx")
    np.testing.assert_allclose(model.probabilities(texts), expected, atol=1e-5)
    for text, row in zip(texts, expected, strict=True):
        np.testing.assert_allclose(model.predict(text).probabilities, row, atol=1e-5)
    direct = ulmfit.TextClassifier.from_pretrained(run, backend="onnx")
    np.testing.assert_allclose(direct.probabilities(texts), expected, atol=1e-5)
    # N-grams before a network, whose products alone are in 8 bits.
    both = ["--model", str(folder / "with/ngrams"), "--model", str(folder / "with/clf")]
    assert cli.main(["export", *both, "--to", "onnx", "--int8", "--output", str(tmp_path / "both")]) == 0
    expected = ulmfit.TextClassifier.from_pretrained(both[1::2], backend="torch").probabilities(texts)
    found = ulmfit.TextClassifier.from_pretrained(tmp_path / "both").probabilities(texts)
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.slow
def test_a_job_goes_on_and_changes_its_mind(folder, monkeypatch, capsys):
    """Stopped while they are trained, finished, damaged, left out, and taken in again."""
    run = folder / "changing"
    train = ngram_member.candidates

    def stopped(*_: object) -> None:
        raise StoppedEarly("SIGTERM")

    monkeypatch.setattr(ngram_member, "candidates", stopped)
    assert ulmfit.fit(config(folder, "changing")).state == "preempted" and not (run / "ngrams").exists()
    monkeypatch.setattr(ngram_member, "candidates", train)
    assert ulmfit.fit(config(folder, "changing")).state == "done"
    assert make_up(run) == (1, content(run / "summary.json")["ngrams"]["share"])
    good = (run / "ngrams/model.safetensors").read_bytes()
    (run / "ngrams/model.safetensors").write_bytes(good[:-8])
    assert ulmfit.fit(config(folder, "changing")).state == "done"
    assert (
        (run / "ngrams/model.safetensors").read_bytes() == good == (run / "model/ngrams/model.safetensors").read_bytes()
    )
    capsys.readouterr()
    without = ulmfit.fit(config(folder, "changing", ngrams=False))
    assert make_up(run) == (1, 0.0) and "ngrams" not in without.summary
    assert runs.weights(run).keys() == runs.weights(run / "clf").keys()
    assert read_facts(str(run)).ngrams == 0.0 and "n-grams" not in (run / "summary.md").read_text()
    more = ulmfit.fit(config(folder, "changing", ensemble=2))
    assert more.state == "done" and make_up(run)[0] == 2
    assert "ulmfit, mean of 2 classifiers and n-grams" in (run / "summary.md").read_text()


@pytest.mark.slow
def test_a_choice_on_a_finished_job_is_kept_and_checked_as_that_of_a_new_one(folder, tmp_path):
    run = folder / "chosen"
    assert ulmfit.fit(config(folder, "chosen", ngrams=False)).state == "done" and make_up(run) == (1, 0.0)
    stored = content(run / "config.json")
    del stored["options"]["ngrams"]  # as an earlier version has left it
    (run / "config.json").write_text(json.dumps(stored))
    ulmfit.fit(output_dir=run)
    assert make_up(run) == (1, 0.0)
    ulmfit.fit(output_dir=run, ngrams=True)
    assert make_up(run)[1] > 0
    ulmfit.fit(output_dir=run)
    assert make_up(run)[1] > 0
    ulmfit.fit(output_dir=run, ngrams=False)
    ulmfit.fit(output_dir=run)
    assert make_up(run) == (1, 0.0)
    test = folder / "begun-on-test"
    assert ulmfit.fit(config(folder, "begun-on-test", valid="test", ngrams=False)).state == "done"
    before = (test / "config.json").read_bytes()
    with pytest.raises(UserError, match="--ngrams cannot be had"):
        ulmfit.fit(output_dir=test, ngrams=True)
    assert content(test / "status.json")["state"] == "done" and (test / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_bundle_shows_its_first_network(folder):
    run = folder / "with"
    model = ulmfit.TextClassifier.from_pretrained([run / "ngrams", run / "clf"], backend="torch")
    assert not ngram_member.NGRAMS == model.config.get("kind") and model.config["max_len"] > 0
    other = ulmfit.TextClassifier.from_pretrained([run / "clf", run / "ngrams"], backend="torch")
    np.testing.assert_allclose(model.probabilities(TEXTS), other.probabilities(TEXTS), atol=1e-7)


@pytest.mark.slow
def test_they_are_calibrated_with_the_networks(folder):
    result = ulmfit.fit(config(folder, "calibrated", calibrate=True))
    assert content(result.model_dir / "bundle.json")["temperature"] > 0
    assert content(folder / "calibrated/ensemble.json")["metrics"]["valid"]["temperature"] > 0


@pytest.mark.slow
def test_where_they_cannot_be_had(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="--ngrams cannot be had: a text may have several labels"):
        rows = ["text,label", *(f"a {word} film {number},{label}" for number in range(20)
                                for word, label in (("good", "x|y"), ("bad", "y")))]  # fmt: skip
        (tmp_path / "several.csv").write_text("\n".join(rows) + "\n")
        ulmfit.fit(
            job.config(tmp_path, "several", data=str(tmp_path / "several.csv"), label_separator="|", ngrams=True)
        )
    assert not (tmp_path / "several").exists()
    with pytest.raises(UserError, match="--ngrams cannot be had: they would be chosen on the test texts"):
        ulmfit.fit(config(folder, "on-test", valid="test"))
    assert not (folder / "on-test").exists()
    assert ulmfit.fit(config(folder, "on-test", valid="test", ngrams=None)).state == "done"
    assert make_up(folder / "on-test") == (1, 0.0)


def test_bundles_of_bundles_count_by_members(tmp_path):
    from ulmfit.bundle import _shares_of, write_index

    for name, shares in (("words", [0.5, 0.5]), ("three", [0.2, 0.2, 0.6])):
        for number in range(len(shares)):
            (tmp_path / name / str(number + 1)).mkdir(parents=True)
        write_index(tmp_path / name, ["a", "b"], ["1", "2", "3"][: len(shares)], None, shares)
    (tmp_path / "one").mkdir()
    found = _shares_of([tmp_path / "words", tmp_path / "one", tmp_path / "three"])
    assert found == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0.1, 0.1, 0.3])
    for damage in ([0.5], [0.5, 0.5, 0.5], [1.2, -0.1, -0.1], "abc"):
        index = content(tmp_path / "three/bundle.json") | {"shares": damage}
        (tmp_path / "three/bundle.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="does not tell the members"):
            make_up(tmp_path / "three")
