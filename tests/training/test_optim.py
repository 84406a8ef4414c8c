"""Schedules, rates and AdamW against fastai's values, and what freezing trains."""

import pytest
import torch
from torch import nn

from tests import golden
from ulmfit.distributed.optimizer_state import load_optimizer_state, optimizer_state
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training import optim
from ulmfit.training.stages import DISCRIMINATIVE, Stage


@pytest.mark.parametrize("num_steps", [10, 100])
def test_one_cycle_is_fastai_v1s(num_steps):
    expected = golden.table(1)[f"onecycle_v1_n{num_steps}"]
    ours = [optim.one_cycle(step, num_steps) for step in range(num_steps)]
    assert [1e-2 * factor for factor, _ in ours] == pytest.approx([lr for lr, _ in expected], rel=1e-9)
    assert [momentum for _, momentum in ours] == pytest.approx([m for _, m in expected], rel=1e-9)


def test_slanted_triangular_is_the_papers():
    expected = golden.table(1)["stlr_T100_eta.01"]
    assert [0.01 * optim.slanted_triangular(step, 100) for step in range(100)] == pytest.approx(expected, rel=1e-9)


def test_discriminative_rates_are_fastais():
    expected = golden.table(1)["lr_range"]
    for groups in (4, 5):
        rates = optim.discriminative_rates(1e-3, DISCRIMINATIVE, groups)
        assert rates == pytest.approx(expected[f"slice(1e-3/2.6**4,1e-3),{groups}"], rel=1e-9)
    assert optim.discriminative_rates(1e-3, 1.0, 5) == pytest.approx(expected["1e-3,5"])


def test_three_steps_of_adamw_are_fastai_v1s():
    expected = next(value for key, value in golden.table(1).items() if key.startswith("adamw_v1_3steps"))
    net = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))})
    optimizer = optim.build_optimizer(net, [["w"]], [0], [0.01], weight_decay=0.1, eps=1e-8, decay_bias_norm=True)
    for step in range(3):
        optim.set_hyperparameters(optimizer, 1.0, 0.8)
        net["w"].grad = torch.tensor([0.1, -0.2, 0.3]) * (step + 1)
        optimizer.step()
        assert net["w"].tolist() == pytest.approx(expected[step], rel=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("name", ["one-cycle", "stlr", "constant"])
def test_schedules_are_positive_and_peak_at_one(name, num_steps):
    stage = Stage("s", 0, 1, 1e-3, schedule=name)
    factors = [optim.schedule(stage, step, num_steps)[0] for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert num_steps < 4 or max(factors) == pytest.approx(1.0)


def two_groups() -> tuple[nn.Module, list[list[str]]]:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return net, [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["2.weight", "2.bias"]]


@pytest.mark.parametrize(("freeze_to", "trained"), [(-1, [2]), (-2, [1, 2]), (0, [0, 1, 2]), (-7, [0, 1, 2])])
def test_freeze_trains_the_groups_from_there_on(freeze_to, trained):
    net, groups = two_groups()
    assert optim.freeze(net, groups, freeze_to) == trained
    for index, names in enumerate(groups):
        for name in names:
            assert net.get_parameter(name).requires_grad == (index in trained)


def test_decay_spares_bias_and_norm_on_request():
    net, groups = two_groups()
    optimizer = optim.build_optimizer(
        net, groups, [0, 1, 2], [1.0, 2.0, 3.0], weight_decay=0.5, eps=1e-8, decay_bias_norm=False
    )
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert {name for name, value in decay.items() if value} == {"0.weight", "2.weight"}
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["0.bias"] == 1.0 and rates["2.weight"] == 3.0


def test_optimizer_state_goes_over_by_name_bit_for_bit():
    torch.manual_seed(0)

    def build(net, groups):
        return optim.build_optimizer(net, groups, [0, 2], [0.1] * 3, weight_decay=0.1, eps=1e-8, decay_bias_norm=False)

    def step(net, optimizer):
        net(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    inputs = torch.randn(5, 3)
    net, groups = two_groups()
    first = build(net, groups)
    step(net, first)
    other, _ = two_groups()
    other.load_state_dict(net.state_dict())
    second = build(other, groups)
    load_optimizer_state(second, optimizer_state(first))
    step(net, first)
    step(other, second)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_layer_groups_have_names():
    sizes = AWDLSTMConfig(20, embedding_size=4, hidden_size=4, num_layers=3)
    assert optim.group_names(LanguageModelNet(sizes).layer_groups()) == [
        "lstm 1", "lstm 2", "lstm 3", "embedding and output"]  # fmt: skip
    assert optim.group_names(ClassifierNet(sizes, 2).layer_groups()) == [
        "embedding", "lstm 1", "lstm 2", "lstm 3", "head"]  # fmt: skip
