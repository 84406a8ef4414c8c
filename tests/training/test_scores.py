"""Scores against scikit-learn, and of splits of any size."""

import numpy as np
import pytest
import torch

from tests.batches.conftest import FakeSplit, FakeTokenizer
from tests.training.runs import one_rank
from ulmfit.batches.cache import build_or_open
from ulmfit.config import LMConfig
from ulmfit.distributed.runtime import open_runtime
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training.scores import all_logits, macro_f1, score_classifier, score_language_model


def test_macro_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    left_out = 0
    for _ in range(300):
        classes = int(rng.integers(1, 9))
        number = int(rng.integers(1, 30))  # so few that a class may occur in the truth, the predictions, or neither
        truth, predicted = rng.integers(0, classes, (2, number))
        confusion = torch.zeros(classes, classes, dtype=torch.float64)
        np.add.at(confusion.numpy(), (truth, predicted), 1)
        left_out += len({*truth, *predicted}) < classes
        expected = metrics.f1_score(truth, predicted, average="macro", zero_division=0)
        assert macro_f1(confusion) == pytest.approx(expected, abs=1e-12)
    assert left_out > 30


def test_a_class_that_does_not_occur_costs_nothing():
    assert macro_f1(torch.tensor([[3.0, 0, 0], [0, 4, 0], [0, 0, 0]])) == 1.0


def test_scoring_keeps_nothing_for_gradients(tmp_path):
    """A language model's state goes from window to window, and would keep all that was computed before."""
    sizes = AWDLSTMConfig(60, 4, 4, 1)
    split = FakeSplit([[2, *range(10, 50)]] * 6, labels=[0, 1] * 3, batch_size=10)
    store = build_or_open(split, FakeTokenizer(60), tmp_path, with_labels=True)
    language_model, classifier = LanguageModelNet(sizes), ClassifierNet(sizes, 2)
    seen = []
    for net in (language_model, classifier):
        net.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    with open_runtime(LMConfig(threads=1)) as (runtime, _):
        assert score_language_model(language_model, store, runtime, num_rows=2, bptt=9)["loss"] > 0
        windows = len(seen)
        score_classifier(classifier, store, runtime, label_names=["a", "b"], pad_id=1)
        all_logits(classifier, store, runtime, pad_id=1)
    assert windows > 5 and len(seen) > windows + 1 and all(seen)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_split_of_any_size_is_scored_whole(threads, tmp_path):
    """Batches of one document too, which come at 1, 17, 33, 49 ... documents, and on any rank."""
    net = ClassifierNet(AWDLSTMConfig(60, 4, 4, 1), 3)
    ids = np.random.RandomState(0)
    documents = [ids.randint(10, 60, ids.randint(1, 6)).tolist() for _ in range(300)]
    split = FakeSplit(documents, labels=ids.randint(0, 3, 300).tolist(), batch_size=100)
    store = build_or_open(split, FakeTokenizer(60), tmp_path, with_labels=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in range(1, 301):
            found = np.zeros((3, 3), int)
            for rank in range(2):
                runtime = one_rank(rank, 2, lambda values: values.clamp(min=1e-9))
                part = store.subset(np.arange(number))
                metrics = score_classifier(net, part, runtime, label_names=["a", "b", "c"], pad_id=1)
                found += np.array(metrics["confusion"])
            assert found.sum(1).tolist() == np.bincount(store.labels[:number], minlength=3).tolist(), number
    finally:
        torch.set_num_threads(before)
