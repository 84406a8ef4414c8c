"""Batches of documents read side by side by threads."""

from __future__ import annotations

import copy
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training.runs import one_rank
from ulmfit import parallel_inference
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.int8 import quantize_encoder
from ulmfit.parallel_inference import FEWEST_ROWS, TorchReader, read_side_by_side, reading_batches
from ulmfit.training import scores

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("number", "rows", "in_int8"), [(1, 1, 1), (20, FEWEST_ROWS, FEWEST_ROWS), (100, 25, 25), (1000, 32, 128)]
)
def test_batches_are_of_the_rows_that_a_core_reads_fastest_or_two_a_thread(number, rows, in_int8, two_threads):
    plain, lengths = ClassifierNet(AWDLSTMConfig(20, 4, 4, 1), 2), np.arange(1, number + 1)
    for expected, net in ((rows, plain), (in_int8, quantize_encoder(copy.deepcopy(plain)))):
        batches = reading_batches(lengths, net, CPU)
        assert len(batches[0]) == expected
        assert np.concatenate(batches).tolist() == list(range(number))[::-1]
        assert len(reading_batches(lengths, net, torch.device("cuda"))[0]) == min(number, 256)


def test_results_are_in_order_and_each_batch_has_one_thread(two_threads):
    together = threading.Barrier(2, timeout=60)

    def read(batch):
        together.wait()  # two at a time, or this would not end
        assert torch.is_inference_mode_enabled()
        return batch.sum(), torch.get_num_threads(), threading.current_thread()

    batches = [np.arange(n) for n in range(6)]
    results = list(read_side_by_side(read, batches, CPU))
    assert [total for total, _, _ in results] == [batch.sum() for batch in batches]
    assert {threads for _, threads, _ in results} == {1} and len({thread for *_, thread in results}) == 2
    assert torch.get_num_threads() == 2
    # A single batch, and all on a GPU, are read here, with all threads.
    for several, device in ((batches[:1], CPU), (batches, torch.device("cuda"))):
        seen = list(read_side_by_side(lambda _: (torch.get_num_threads(), threading.current_thread()), several, device))
        assert seen == [(2, threading.current_thread())] * len(several)


def test_a_few_texts_are_read_by_one_thread(two_threads, monkeypatch):
    """Threads that wait for each other at every time step are slower than one, by far beside other load."""
    seen = []

    class Net(torch.nn.Module):
        num_classes, rows_of_a_core = 2, 32

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, lengths, window_tokens):
            seen.append(torch.get_num_threads())
            return SimpleNamespace(logits=torch.zeros(len(tokens), 2))

        def probabilities(self, logits):
            return logits.softmax(1)

    reader = TorchReader(Net(), pad_id=1, backwards=False)
    for number, threads in ((1, 1), (7, 1), (8, 2)):
        reader.probabilities([np.ones(3, np.int32)] * number)
        assert seen.pop() == threads and not seen
    assert torch.get_num_threads() == 2


def test_an_error_ends_the_reading(two_threads):
    read = []

    def fail(batch):
        time.sleep(0.01)  # longer than it takes to call the others off
        read.append(batch)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(read_side_by_side(fail, [np.arange(1)] * 1000, CPU))
    assert len(read) < 1000 and torch.get_num_threads() == 2


def test_other_threads_never_find_another_number(two_threads, monkeypatch):
    """Not even for a moment: torch's number is one for the process, and is not touched."""
    changed, seen = [], []
    monkeypatch.setattr(torch, "set_num_threads", changed.append)

    def read(batch):
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        return torch.get_num_threads()

    assert list(read_side_by_side(read, [np.arange(n) for n in range(6)], CPU)) == [1] * 6
    assert seen == [2] * 6 and not changed


def test_without_a_number_of_each_thread_batches_are_read_one_after_another(two_threads, monkeypatch):
    monkeypatch.setattr(parallel_inference, "_limiter", lambda: None)
    seen = list(read_side_by_side(lambda _: threading.current_thread(), [np.arange(2)] * 3, CPU))
    assert seen == [threading.current_thread()] * 3


def test_ranks_with_other_numbers_of_threads_score_each_document_once(monkeypatch, two_threads):
    scored = []

    def collate(_store, indices, *_, **__):
        scored.extend(indices)
        ones = torch.ones(len(indices), dtype=torch.long)
        return SimpleNamespace(tokens=ones.unsqueeze(1), lengths=ones, indices=torch.from_numpy(indices))

    monkeypatch.setattr(scores, "collate", collate)
    net = ClassifierNet(AWDLSTMConfig(20, 4, 4, 1), 2)
    store = SimpleNamespace(lengths=np.arange(1, 401), labels=np.zeros(400, np.int32))
    for rank, threads in ((0, 1), (1, 7)):
        torch.set_num_threads(threads)
        runtime = one_rank(rank, 2)
        scores.score_classifier(net, store, runtime, label_names=["a", "b"], pad_id=1)
    assert sorted(scored) == list(range(400))
