"""The loss scale of fp16, on the CPU: the scaler and the fused optimizer are those of a GPU, and so is their talk."""

import pytest
import torch
from torch import nn

from ulmfit.config import LMConfig
from ulmfit.distributed.runtime import Runtime
from ulmfit.run import checkpoint
from ulmfit.training import optim
from ulmfit.training.engine import PlainEngine

FACTORS = [1.0, 1.0, 1.0, 1.0, 1.0, float("nan"), 1.0, 1.0, float("inf"), 1.0]  # on the loss of each step


@pytest.fixture
def runtime(monkeypatch):
    """A process that trains in fp16, which Runtime refuses without a GPU."""
    runtime = Runtime(LMConfig())
    monkeypatch.setattr(runtime.accelerator, "native_amp", True)
    monkeypatch.setattr(runtime.accelerator.state, "_mixed_precision", "fp16")
    return runtime


def start(runtime: Runtime) -> tuple[nn.Module, PlainEngine]:
    # So large that the first gradients overflow; doubled after every second step that does not.
    runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
    names = [name for name, _ in net.named_parameters()]
    optimizer = optim.build_optimizer(net, [names], [0], [0.1], weight_decay=0.1, eps=1e-8, decay_bias_norm=True)
    engine = PlainEngine(runtime)
    engine.begin_stage(net, optimizer)
    return net, engine


def take(engine: PlainEngine, factor: float) -> tuple[float, float]:
    """One step: its skip and the loss scale after it."""
    with engine.accumulate(last=True):
        engine.backward(engine.model(torch.ones(2, 5)).sum() * factor)
    norm, found_inf = engine.update(0.5)
    assert torch.isfinite(norm).item() == (not found_inf.item())
    return found_inf.item(), engine.state()["scaler"]["scale"]


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
def test_the_loss_scale_goes_on_where_it_was(stop, runtime, tmp_path):
    net, engine = start(runtime)
    taken = [take(engine, factor) for factor in FACTORS]
    assert {found_inf for found_inf, _ in taken} == {0.0, 1.0} and len({scale for _, scale in taken}) >= 3
    num_steps = {moments["step"].item() for moments in engine.state()["optimizer"].values()}
    assert num_steps == {len(FACTORS) - sum(found_inf for found_inf, _ in taken)}

    stopped, engine = start(runtime)
    assert [take(engine, factor) for factor in FACTORS[:stop]] == taken[:stop]
    state = {"model": dict(stopped.state_dict()), "engine": engine.state()}
    path = checkpoint.write(tmp_path, stop, checkpoint.snapshot(state), keep=1)
    resumed, engine = start(runtime)
    saved = checkpoint.load(path)
    resumed.load_state_dict(saved["model"])
    engine.load_state(saved["engine"])
    assert [take(engine, factor) for factor in FACTORS[stop:]] == taken[stop:]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))
