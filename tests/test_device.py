"""Pinned batches, with a pinned memory that is not there."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ulmfit.batches.documents import DocumentBatch
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.device import pinned, to_device
from ulmfit.training.clf_task import ClassifierBatch


@pytest.fixture
def gpu(monkeypatch):
    """Pins are copies that are recorded; so are the devices that threads choose."""
    seen = {"pins": [], "threads": {}}

    def pin(tensor):
        copy = tensor.clone()
        seen["pins"].append(copy)
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: seen["threads"].setdefault(threading.current_thread().name, device)
    )
    return seen


def batch(number):
    part = DocumentBatch(torch.full((2, 3), number), torch.tensor([3, 2]), torch.tensor([1, 0]), torch.tensor([5, 6]))
    return ClassifierBatch(np.array([5, 6]), torch.tensor([0, 1]), [part], epoch=0, step_in_epoch=number)


def test_the_prefetching_thread_pins_every_tensor_of_a_batch_on_the_processs_device(gpu):
    ended = []

    def items():
        try:
            for number in range(9):
                yield batch(number), {"step": number}
        finally:
            ended.append(threading.current_thread().name)

    assert pinned(untouched := items(), "cpu") is untouched
    with Prefetcher(pinned(items(), "cuda")) as batches:
        got, state = next(batches)
    assert gpu["threads"] == {"prefetch": 3} and ended == ["prefetch"]
    given, pins = batch(0), {id(tensor) for tensor in gpu["pins"]}
    assert state == {"step": 0} and (got.epoch, got.step_in_epoch) == (0, 0)
    assert np.array_equal(got.indices, given.indices) and isinstance(got.indices, np.ndarray)
    assert torch.equal(got.labels, given.labels) and id(got.labels) in pins
    for name, value in vars(given.parts[0]).items():
        mine = getattr(got.parts[0], name)
        assert torch.equal(mine, value) and id(mine) in pins


def test_a_copy_to_a_gpu_begins_in_pinned_memory_and_one_to_the_cpu_is_none(gpu, monkeypatch):
    values, calls = torch.arange(3), []
    assert to_device(values, "cpu") is values and not gpu["pins"]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **how: calls.append((tensor, device, how)))
    to_device(values, "cuda:1")
    [(tensor, device, how)] = calls
    assert tensor is gpu["pins"][0] and device == "cuda:1" and how == {"non_blocking": True}
