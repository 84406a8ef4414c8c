"""The estimate before step 1: arithmetic against torch's own count, and its sentences."""

import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.training import runs
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training import estimate
from ulmfit.training.lm_task import train_language_model


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
