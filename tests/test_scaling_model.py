"""The model of a step on N GPUs (benchmarks/scaling_model.py): limits that it must keep, and its transfers."""

from __future__ import annotations

import argparse
import sys

import pytest

from tests.training.runs import ROOT


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling_model

    yield scaling_model
    for name in ("scaling_model", "lm_step", "side_by_side"):
        sys.modules.pop(name, None)


def options_of(model, *words):
    parser = argparse.ArgumentParser()
    model.add_options(parser)
    return argparse.Namespace(preset="base", vocab_size=60_000, bptt=72, **vars(parser.parse_args(words)))


def test_what_ends_after_the_backward_pass_is_exposed(model):
    assert model.exposed([(0.0, 1.0), (1.0, 1.0)], 2.0) == 0
    assert model.exposed([(0.0, 3.0), (1.0, 1.0)], 2.0) == pytest.approx(2.0)  # the second waits for the first
    late = model.transfers_of(3.0, 4.0, 6.0, 3, words=None)
    assert late == [(2.0, 1.0), (4.0, 1.0), (6.0, 1.0), (6.0, 4.0)] and model.exposed(late, 6.0) == pytest.approx(5.0)
    early = model.transfers_of(3.0, 4.0, 6.0, 3, words=0.25)
    assert model.exposed(early, 6.0) == pytest.approx(2.0)


def test_a_step_is_what_it_is_made_of(model):
    for words in ([], ["--loss", "plain"], ["--gpu", "h200"], ["--network", "one-port", "--tied", "late"]):
        options = options_of(model, *words)
        for rows in (64, 256, 1024):
            alone, *others = [model.step_of(options, rows, gpus) for gpus in (1, 8, 64, 512)]
            assert alone["exposed"] == 0 and alone["step"] == max(alone["device"], alone["host"])
            assert all(alone["step"] <= cost["step"] <= alone["step"] + cost["reduce"] for cost in others)
    plain, fused = (model.step_of(options_of(model, "--loss", loss), 256, 1)["step"] for loss in ("plain", "fused"))
    assert 1.5 < plain / fused < 2


def test_words_of_a_step_fill_the_vocabulary(model):
    shares = [model.distinct_words(tokens, 1000, 1.0) for tokens in (1, 100, 10_000, 10**7)]
    assert shares[0] == pytest.approx(1e-3) and shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
