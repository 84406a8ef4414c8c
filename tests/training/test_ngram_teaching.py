"""N-grams that learn what a job's networks say of texts without a label."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ulmfit
from tests.distributed import fit_and_apart as job
from tests.training import runs
from tests.training.runs import content
from tests.training.test_ngram_training import VOCAB, documents
from ulmfit.data import sample
from ulmfit.errors import TrainingInterrupted
from ulmfit.fit_config import FitConfig
from ulmfit.report import sections
from ulmfit.report.facts import read_facts
from ulmfit.training import ngram_member, ngram_teaching, ngram_training
from ulmfit.training.ngram_teaching import drawn
from ulmfit.training.ngram_training import count, one_hot, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ with 30 labelled texts and 94 without, of which five are held out too and two stand there twice. Not to be changed."""
    place = tmp_path_factory.mktemp("taught")
    (place / "data").mkdir()
    for name, first, number in (("train", 0, 30), ("valid", 30, 20), ("test", 50, 10)):
        runs.write_reviews(place / f"data/{name}.csv", number, first=first)
    texts = [row["text"] for row, _ in zip(sample.generate("unsup"), range(87), strict=False)]
    texts += [row["text"] for name in ("valid", "test") for row in runs.rows_of(place / f"data/{name}.csv")[:3]][:5]
    texts += texts[:2]
    with open(place / "data/unsup.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return place


def config(folder: Path, name: str, **options) -> FitConfig:
    return job.config(folder, name, **{"data": str(folder / "data"), "ngrams": True} | options)


@pytest.mark.slow
def test_they_learn_what_the_network_says_of_texts_without_a_label(folder, monkeypatch, capsys):
    seen, candidates = [], ngram_member.candidates

    def lesson_of(lesson, *rest):
        seen.append(lesson)
        return candidates(lesson, *rest)

    monkeypatch.setattr(ngram_member, "candidates", lesson_of)
    assert ulmfit.fit(config(folder, "run")).state == "done"
    # The language model has read 30 texts of train and 94 others, of which five stand in valid.csv or test.csv too.
    told = content(folder / "run/ensemble.json")["ngrams"]
    assert told["taught"] == 87 and told == content(folder / "run/summary.json")["ngrams"]
    assert "learned of the networks on 87 texts without a label too" in capsys.readouterr().out
    assert (
        f"{told['share']:.0%}, a linear classifier of words and pairs of words, which has learned what they say of 87 texts"
        in (sections.purpose(read_facts(str(folder / "run"))))
    )
    [lesson] = seen
    assert lesson.labelled == 30 and len(lesson.lengths) == 117
    assert set(lesson.probabilities[:30].ravel()) == {0.0, 1.0}
    network = ulmfit.TextClassifier.from_pretrained(folder / "run/clf", backend="torch")
    texts = [row["text"] for row in runs.rows_of(folder / "data/unsup.csv")][:87]
    expected = network.probabilities(texts)[:, 0]
    np.testing.assert_allclose(np.sort(lesson.probabilities[30:, 0]), np.sort(expected), atol=1e-5)
    ids = np.split(lesson.ids, np.cumsum(lesson.lengths)[:-1])[30]  # each text has its own
    place = [tuple(one) for one in network.tokenizer.encode(texts)].index(tuple(ids))
    assert lesson.probabilities[30, 0] == pytest.approx(expected[place], abs=1e-5)


def test_labels_and_what_the_networks_say_are_two_teachers_of_one_classifier():
    some, labels = documents(40)
    wanted = np.concatenate([one_hot(labels[:10], 3), np.random.default_rng(1).dirichlet(np.ones(3), 30)])
    lengths = np.array([len(one) for one in some])
    lesson = ngram_teaching.Lesson(np.concatenate(some), lengths, wanted, 10)
    whole = count(lesson.ids, lengths, VOCAB, 3)
    few = whole.first(10)
    assert few.documents == 10 and few.row.max() == 9 and len(few.keys) == len(whole.keys)
    both, alone = trained(whole, wanted, VOCAB), trained(few, wanted[:10], VOCAB)
    found = list(ngram_teaching.candidates(lesson, VOCAB, lambda: None))
    assert [strength for strength, _ in found] == list(ngram_training.STRENGTHS)
    for (_, net), (_, one), (_, other) in zip(found, alone, both, strict=True):
        torch.testing.assert_close(net.weight, (one.weight + other.weight) / 2)
        torch.testing.assert_close(net.bias, (one.bias + other.bias) / 2)
        assert torch.equal(net.keys, one.keys) and torch.equal(net.idf, other.idf)
    labelled = ngram_teaching.Lesson(np.concatenate(some[:10]), lengths[:10], wanted[:10], 10)
    [net, *_] = [net for _, net in ngram_teaching.candidates(labelled, VOCAB, lambda: None)]
    [expected, *_] = [net for _, net in trained(count(labelled.ids, labelled.lengths, VOCAB, 3), wanted[:10], VOCAB)]
    assert torch.equal(net.weight, expected.weight)


@pytest.fixture
def nets(monkeypatch) -> dict[float, SimpleNamespace]:
    """By strength a net of which nothing is trained: it gives the rows `says` in turn, as often as there are texts."""
    found = {strength: SimpleNamespace(says=None) for strength in ngram_training.STRENGTHS}
    monkeypatch.setattr(
        ngram_member,
        "TorchReader",
        lambda net, **_: SimpleNamespace(probabilities=lambda texts: np.resize(net.says, (len(texts), 2))),
    )
    monkeypatch.setattr(
        ngram_member,
        "candidates",
        lambda lesson, size, go_on, strengths=ngram_training.STRENGTHS: ((one, found[one]) for one in strengths),
    )
    return found


def lesson_of(said: list[list[float]]) -> ngram_teaching.Lesson:
    """Eight texts with labels, and behind them those of which networks say this."""
    lengths = np.ones(8 + len(said), dtype=int)
    return ngram_teaching.Lesson(np.zeros(len(lengths)), lengths, np.array([[0.5, 0.5]] * 8 + said), 8)


@pytest.mark.parametrize(
    ("rows", "texts", "always", "share"),
    [
        (5, 5, False, 0.75),  # the networks are right on a row more of five, which may be luck
        (50, 5, False, None),  # and on ten more of fifty
        (50, 5, True, 0.75),
        (5, 0, False, None),  # n-grams of the labels alone
        (5, 0, True, 0.25),
    ],
)
def test_few_rows_do_not_choose_by_luck(rows, texts, always, share, nets):
    for net in nets.values():
        net.says = [[0.6, 0.4]] * 4 + [[0.3, 0.7]]
    network = np.tile([[0.99, 0.01]], (rows, 1))
    lesson = lesson_of([[0.99, 0.01]] * texts)
    found = ngram_member.best(lesson, [np.zeros(1)] * rows, np.zeros(rows, int), network, VOCAB, always=always)
    assert (found and found.share) == share
    if found:
        strength = 30.0 if texts else 3.0
        assert found.strength == strength and found.net is nets[strength] and found.gain < 0 and found.taught == texts
        assert found.more_right == (0 if share == 0.25 else -rows // 5)


@pytest.mark.parametrize(
    ("rare", "said", "share"),
    [
        (0.05, 10, 0.5),  # with three quarters 0.05 / 4 + 0.86 * 3 / 4 is above a half
        (0.3, 10, 0.25),
        (0.45, 10, None),
        (0.45, 4, 0.75),  # too few texts to tell
    ],
)
def test_a_rare_class_is_not_lost(rare, said, share, nets):
    """N-grams that say the frequent class of every text, with the probability that it has in the labels."""
    nets[30.0].says = [[0.86, 0.14]]
    lesson = lesson_of([[0.9, 0.1]] * 90 + [[rare, 1 - rare]] * said)
    mean, truth = np.tile([[0.9, 0.1]], (20, 1)), np.zeros(20, int)
    for always in (False, True):
        found = ngram_member.best(lesson, [np.zeros(1)] * 20, truth, mean, VOCAB, always=always)
        assert (found and found.share) == (0.25 if always and share is None else share)


@pytest.mark.parametrize(("lost", "kept"), [(1, True), (2, False)])
def test_of_many_classes_one_may_be_lost_by_chance(lost, kept):
    """100 classes, each said of ten of 1,000 texts by the networks; with n-grams some are said of none."""
    classes = np.repeat(np.arange(100), 10)
    assert ngram_member.keeps_classes(one_hot(classes, 100), one_hot(np.maximum(classes, lost), 100)) == kept


def test_nor_is_one_of_the_validation_rows(nets):
    """N-grams of the labels alone, which lower the loss of networks that say the rare class of half the rows."""
    for net in nets.values():
        net.says = [[0.86, 0.14]]
    truth, lesson = np.repeat([0, 1], [18, 2]), lesson_of([])
    documents = [np.zeros(1)] * 20
    for rare, share in ((0.3, 0.25), (0.1, None)):
        mean = np.repeat([[0.9, 0.1], [0.5 - rare, 0.5 + rare]], [10, 10], axis=0)
        found = ngram_member.best(lesson, documents, truth, mean, VOCAB)
        assert (found and found.share) == share
        always = ngram_member.best(lesson, documents, truth, mean, VOCAB, always=True)
        assert always and always.gain > 0 and always.share == 0.5


@pytest.mark.parametrize(
    ("won", "lost", "clearly"),
    [(1, 0, False), (4, 0, False), (5, 0, True), (10, 4, False), (11, 2, True), (0, 9, False)],
)
def test_the_networks_are_clearly_better_from_five_rows_on(won, lost, clearly):
    right, wrong, rows = [0.9, 0.1], [0.2, 0.8], won + lost + 1
    networks = np.array([right] * (won + 1) + [wrong] * lost)
    joined = np.array([wrong] * won + [right] * (lost + 1))
    assert ngram_member.clearly_better(networks, joined, np.zeros(rows, int)) == clearly


def test_how_many_texts_teach():
    teaches = ngram_teaching.teaches
    assert teaches(1_000, 1_000) and not teaches(1_001, 5_000) and not teaches(1_000, 999) and not teaches(0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lm_on_test": True}, "the language model has read the test texts"),
        ({"labels": 100}, "fewer without a label than with one"),
        ({"data": "labelled"}, "none without a label"),
        ({}, "more with a label than was measured"),
    ],
)
def test_where_they_learn_the_labelled_texts_alone(folder, tmp_path, options, why, monkeypatch, capsys):
    if not options:
        monkeypatch.setattr(ngram_teaching, "MOST_LABELLED", 29)
    if "labels" in options:
        options = options | {"data": str(runs.write_splits(tmp_path / "data", train=150, valid=20))}
    if options.get("data") == "labelled":
        options = {"data": str(runs.write_splits(tmp_path / "data", train=30, valid=20))}
    run = ulmfit.fit(config(folder, str(tmp_path / "run"), **options)).run_dir
    assert content(run / "ensemble.json")["ngrams"]["taught"] == 0, why
    assert ("n-grams learn of the labels alone, for" in capsys.readouterr().out) == ("without a label" in why)


@pytest.mark.slow
def test_a_stop_while_the_networks_read_is_gone_on_from(folder, monkeypatch):
    read = ngram_teaching.member_probabilities

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ngram_teaching, "member_probabilities", interrupted)
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        ulmfit.fit(config(folder, "stopped"))
    assert content(folder / "stopped/status.json")["state"] == "preempted"
    monkeypatch.setattr(ngram_teaching, "member_probabilities", read)
    assert ulmfit.fit(config(folder, "stopped")).state == "done"
    assert "taught" in content(folder / "stopped/ensemble.json")["ngrams"]


@pytest.mark.parametrize(("most", "number"), [(10**9, 50), (100, 12), (1, 1)])
def test_some_of_very_many_texts_are_drawn(most, number):
    lengths = np.full(50, 8)
    found = drawn(lengths, most, 3, 4)
    assert len(found) == number == len(set(found)) and set(found) <= set(range(50))
    np.testing.assert_array_equal(found, drawn(lengths, most, 3, 4))
    lengths = np.append(lengths, 10**9 + 1)  # is passed over, and does not end the draw
    assert len(drawn(lengths, most, 3, 4)) == number
    lengths = lengths[:-1]
    for other in (drawn(lengths, most, 4, 4), drawn(lengths, most, 3, 5)):
        assert number == 1 or not np.array_equal(found, other)
