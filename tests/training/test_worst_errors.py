"""The worst errors: the same on any number of ranks, of one label or several, as text in TensorBoard unless private."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from tests.training import runs
from ulmfit import train_classifier
from ulmfit.training.worst_errors import WorstErrors, as_list


class Ranks:
    """Gathers what other ranks have found."""

    def __init__(self, *others):
        self._others = others

    def gather_objects(self, values):
        return values + [other._found for other in self._others]


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_wrong_documents_of_highest_loss(ranks):
    random = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(60, 4, generator=random)
    labels = torch.randint(0, 4, (60,), generator=random)
    parts = [WorstErrors(7) for _ in range(ranks)]
    for start in range(0, 60, 5):
        rows = torch.arange(start, start + 5)
        parts[start // 5 % ranks].add(rows, labels[rows], logits[rows])
    found = parts[0].merged(Ranks(*parts[1:]))
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    wrong = [i for i in losses.argsort(descending=True).tolist() if logits[i].argmax() != labels[i]][:7]
    assert [document.index for document in found] == wrong
    for document in found:
        assert document.loss == pytest.approx(losses[document.index].item())
        assert document.true == (labels[document.index].item(),) != document.predicted
        assert document.probability == pytest.approx(logits[document.index].double().softmax(0).max().item())


def test_without_an_error_there_is_none():
    errors = WorstErrors()
    errors.add(torch.arange(2), torch.tensor([0, 1]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert errors.merged(Ranks()) == []


def test_of_several_labels_those_with_a_wrong_set():
    probabilities = np.array([[0.9, 0.2], [0.9, 0.2], [0.4, 0.4]])
    truth = np.array([[1, 0], [0, 1], [0, 1]])
    errors = WorstErrors()
    errors.add_sets(probabilities, truth, [0.5, 0.5])
    first, second = errors.merged(Ranks())
    assert (first.index, first.true, first.predicted) == (1, (1,), (0,))
    assert first.probability == pytest.approx(0.9 * 0.8) and first.loss == pytest.approx(-math.log(0.1 * 0.2) / 2)
    assert (second.index, second.predicted) == (2, ())
    line = as_list([second], ["a*", "b"], lambda index: "word <b> " * 200)
    assert line.startswith(r"1. **b**, predicted **no label** with probability 0.360, loss 0.71: word &lt;b\> word")
    assert line.endswith("...") and len(line) < 700


@pytest.mark.slow
@pytest.mark.parametrize("samples", [True, False])
def test_they_are_shown_unless_the_texts_are_private(tmp_path, monkeypatch, samples):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 60))
    config = runs.clf_config(tmp_path / "run", data=data, preset="tiny", encoder="none", max_steps=4, eval_every=2,
                             samples=samples, valid=0.5)  # fmt: skip
    train_classifier(config)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    tags = board.Tags()["tensors"]
    assert ("errors/worst/text_summary" in tags) == samples
    assert {"settings/text_summary", "stages/text_summary"} <= set(tags)
    if samples:
        shown = board.Tensors("errors/worst/text_summary")[-1].tensor_proto.string_val[0].decode().splitlines()
        assert 1 <= len(shown) <= 10
        for number, line in enumerate(shown, 1):
            assert re.match(
                rf"{number}\. \*\*(neg|pos)\*\*, predicted \*\*(neg|pos)\*\* with probability 0\.\d+, loss", line
            )
    stages = board.Tensors("stages/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()
    assert stages[2] == "| 1 | all groups | 1 to 4 | embedding, lstm 1, lstm 2, head | 5.0e-03 | one-cycle |"
