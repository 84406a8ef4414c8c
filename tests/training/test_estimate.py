"""The estimate before step 1: arithmetic against torch's own count, and its sentences."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training import estimate
from ulmfit.training.masks import Masks


def test_operations_are_those_of_the_matrix_products():
    sizes = AWDLSTMConfig(500, embedding_size=32, hidden_size=64, num_layers=3)
    net, tokens = LanguageModelNet(sizes), torch.randint(0, 500, (4, 10))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(tokens, tokens, net.init_state(4))
    head = 2 * 32 * 500
    # The counter knows products but not the LSTM operator: the output layer is what it sees here.
    assert counter.get_total_flops() == 40 * head
    layers = sum(layer.weight_ih.numel() + layer.weight_hh.numel() for layer in net.encoder.layers)
    assert estimate.flops_per_token(sizes, output_words=500, first_trained=0) == 3 * head + 3 * 2 * layers
    assert estimate.flops_per_token(sizes, output_words=0, first_trained=4) == 2 * layers  # a frozen encoder


def saved_for_backward(forward, net):
    """Bytes that a forward pass keeps for the backward pass beside the weights: each storage once."""
    held, kept = {}, []
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # or its memory would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result is not None
    return sum(held.values())


SIZES = {
    "square": AWDLSTMConfig(300, embedding_size=96, hidden_size=96, num_layers=2),
    "wide": AWDLSTMConfig(300, embedding_size=64, hidden_size=160, num_layers=3),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "tokens"), [(32, 70), (2, 10)])
def test_a_language_models_saved_bytes_are_those_of_autograd(sizes, dtype, rows, tokens):
    sizes = SIZES[sizes].with_dropouts("lm", 1.0)
    net = LanguageModelNet(sizes).to(dtype)
    ids, masks = torch.randint(0, 300, (rows, tokens)), Masks(0, 0, num_rows=rows, rows=range(rows))
    found = saved_for_backward(lambda: net(ids, ids, net.init_state(rows), masks), net)
    found -= dtype.itemsize * 300 * (sizes.embedding_size + 1)  # the gradient of the output layer
    assert estimate.saved_bytes(sizes, [(rows, tokens)], dtype.itemsize) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([700], {}),  # masks and dropped weights of 20 windows
        ([70] * 40, {}),
        ([2000, 1500, 90, 80, 80], {"max_len": 140}),  # each trained somewhere else
        ([400, 300, 300, 20], {"max_len": 350, "gradient_window": 60}),
    ],
)
def test_a_classifiers_saved_bytes_are_those_of_autograd(sizes, lengths, options):
    sizes = SIZES[sizes].with_dropouts("clf", 0.5)
    net = ClassifierNet(sizes, 2, bptt=35, **options)
    ids = torch.randint(0, 300, (len(lengths), max(lengths)))
    masks = Masks(0, 0, num_rows=len(lengths), rows=range(len(lengths)))
    found = saved_for_backward(lambda: net(ids, lengths, masks), net)
    windows = net.trained_windows(lengths)
    assert estimate.saved_bytes(sizes, windows, 4) == pytest.approx(found, rel=0.1)


def test_trained_windows_are_those_that_are_read_with_gradient(monkeypatch):
    read = []
    rng = np.random.default_rng(0)
    for _ in range(40):
        bptt, max_len = (int(number) for number in rng.integers(1, 20, 2))
        window = int(rng.integers(1, 20)) if rng.random() < 0.5 else None
        lengths = rng.integers(1, 60, int(rng.integers(1, 6))).tolist()
        sizes = AWDLSTMConfig(9, embedding_size=2, hidden_size=2, num_layers=1)
        net = ClassifierNet(sizes, 2, bptt=bptt, max_len=max_len, gradient_window=window)
        net.encoder.register_forward_hook(
            lambda module, given, result: read.append(tuple(given[0].shape)) if torch.is_grad_enabled() else None
        )
        read.clear()
        net(torch.zeros(len(lengths), max(lengths), dtype=torch.long), lengths)
        assert net.trained_windows(lengths) == read


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_classifiers_windows_are_in_the_estimate(micro_batches, tmp_path, monkeypatch):
    """At base and 1,400 tokens the masks and dropped weights of 20 windows take 1.8 GB, the tokens of one text less."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    told = []
    real = estimate.saved_bytes
    monkeypatch.setattr(
        estimate, "saved_bytes", lambda *arguments: told.append((arguments[1], real(*arguments))) or told[-1][1]
    )
    config = runs.clf_config(tmp_path / "run", max_steps=2, micro_batches=micro_batches, preset="tiny")
    train_classifier(config)
    assert len(told) == micro_batches
    rows = sum(windows[0][0] for windows, _ in told)
    assert rows == config.batch_size and all(len(windows) > 1 for windows, _ in told)


def test_a_base_classifiers_long_document():
    sizes = AWDLSTMConfig(60_000).with_dropouts("clf", 0.5)
    net = ClassifierNet(AWDLSTMConfig(9, 2, 2, 1), 2, bptt=70, max_len=1400)
    with_masks = estimate.saved_bytes(sizes, net.trained_windows([1400]), 4)
    without = estimate.saved_bytes(replace(sizes, weight_p=0.0), net.trained_windows([1400]), 4)
    assert 1.7e9 < with_masks - without < 1.9e9


@pytest.mark.slow
def test_a_sampled_softmax_is_counted_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    counted = []
    real = estimate.flops_per_token
    monkeypatch.setattr(
        estimate,
        "flops_per_token",
        lambda sizes, **options: counted.append(options["output_words"]) or real(sizes, **options),
    )
    train_language_model(runs.lm_config(tmp_path / "run", max_steps=3, sampled_softmax=100))
    assert counted and set(counted) == {100}
    printed = capsys.readouterr().out
    assert "--sampled-softmax 100: each step learns from about 100 of" in printed
    assert "besides evaluations, which go by the full softmax; training steps sample 100 words" in printed


def test_what_does_not_fit_is_warned_of():
    needs = estimate.Estimate(
        memory=3 * 2**30, memory_free=2 * 2**30, disk=5 * 2**30, disk_free=2**30, step=1.5, whole=7200
    )
    first, memory, disk = estimate.sentences(needs, world_size=1)
    assert first == "needs about 3.0 GiB of memory, 5.0 GiB of disk and 2 hours (1.5 s a step) besides evaluations"
    assert "2.0 GiB of memory are free" in memory and "1.0 GiB of disk" in disk
    assert len(estimate.sentences(needs._replace(memory_free=1e12, disk_free=1e12), world_size=2)) == 1


@pytest.mark.slow
def test_a_run_says_what_it_needs_and_needs_about_that(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    told = []
    real = estimate.sentences
    monkeypatch.setattr(
        "ulmfit.training.run_task.sentences", lambda needs, **options: told.append(needs) or real(needs, **options)
    )
    train_language_model(runs.lm_config(tmp_path / "run", save_every=4))
    assert "needs about" in capsys.readouterr().out
    (needs,) = told
    saved = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file())
    model = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    # keep 2: two checkpoints lie there at the end, a third while one is written.
    assert 0.9 * needs.disk < 1.5 * saved + model < 1.2 * needs.disk
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["time"]["step"] for line in lines if line["event"] == "train"]
    assert needs.step < 20 * sorted(seconds)[len(seconds) // 2]  # the right order of magnitude, on a busy machine too
