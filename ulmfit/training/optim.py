"""Layer groups, discriminative learning rates, and schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ulmfit.training.stages import Stage

ONE_CYCLE_DIV = 25.0  # fastai v1: the cycle starts at lr / 25 ...
ONE_CYCLE_FINAL = 25.0 * 1e4  # ... and ends at lr / 250,000
ONE_CYCLE_WARM = 0.3
STLR_CUT, STLR_RATIO = 0.1, 32.0  # Howard & Ruder 2018, section 3.2


def discriminative_rates(lr: float, divisor: float, num_groups: int) -> list[float]:
    """Geometric rates from lr / divisor (first group) to lr (last), as fastai's slice(lr / divisor, lr)."""
    if num_groups == 1:
        return [lr]
    return [lr / divisor ** (1 - group / (num_groups - 1)) for group in range(num_groups)]


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def one_cycle(step: int, num_steps: int, momentum: tuple[float, float] = (0.8, 0.7)) -> tuple[float, float]:
    """Learning-rate factor and momentum at `step` of `num_steps`, as fastai v1's fit_one_cycle.

    The factor rises by a cosine from 1/25 to 1 in the first 30 % of the steps, then falls by a cosine to 1/250,000.
    Momentum falls and rises in the opposite direction. Smith 2018, "A disciplined approach to neural network
    hyper-parameters".
    """
    up = int(num_steps * ONE_CYCLE_WARM)
    high, low = momentum
    if step < up:
        part = step / up
        return _cosine(1 / ONE_CYCLE_DIV, 1.0, part), _cosine(high, low, part)
    part = (step - up) / (num_steps - up)
    return _cosine(1.0, 1 / ONE_CYCLE_FINAL, part), _cosine(low, high, part)


def slanted_triangular(step: int, num_steps: int) -> float:
    """Learning-rate factor: a short linear rise, then a long linear fall (Howard & Ruder 2018, equation 3)."""
    cut = max(1, math.floor(num_steps * STLR_CUT))
    part = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / STLR_CUT - 1))
    return (1 + max(0.0, part) * (STLR_RATIO - 1)) / STLR_RATIO


def schedule(stage: Stage, step: int, num_steps: int) -> tuple[float, float]:
    """Learning-rate factor and momentum (Adam's beta1) at `step` of the stage's `num_steps`."""
    if stage.schedule == "one-cycle":
        return one_cycle(step, num_steps, stage.momentum)
    if stage.schedule == "stlr":
        return slanted_triangular(step, num_steps), stage.momentum[0]
    return 1.0, stage.momentum[0]


def first_group(freeze_to: int, groups: Sequence[Sequence[str]]) -> int:
    """The index of the first trained group.

    A negative `freeze_to` counts from the end. If the model has fewer groups than that (a tiny model), all are trained.
    """
    return freeze_to if freeze_to >= 0 else max(0, len(groups) + freeze_to)


def group_names(groups: Sequence[Sequence[str]]) -> list[str]:
    """Names of the layer groups for the user: "embedding", "lstm 1", ..., "head"; in a language model "embedding and
    output", which share their weights."""

    def name(group: Sequence[str]) -> str:
        if group[0].startswith("encoder.layers."):
            return f"lstm {int(group[0].split('.')[2]) + 1}"
        if group[0].startswith("head."):
            return "head"
        return "embedding and output" if len(group) > 1 else "embedding"

    return [name(group) for group in groups]


def freeze(net: nn.Module, groups: Sequence[Sequence[str]], freeze_to: int) -> list[int]:
    """Set requires_grad for the groups from `freeze_to` on, clear it for the others. Returns the trained indices."""
    first = first_group(freeze_to, groups)
    parameters = dict(net.named_parameters())
    for index, group in enumerate(groups):
        for name in group:
            parameters[name].requires_grad_(index >= first)
    return list(range(first, len(groups)))


def build_optimizer(
    net: nn.Module,
    groups: Sequence[Sequence[str]],
    trained: Iterable[int],
    rates: Sequence[float],
    *,
    weight_decay: float,
    eps: float,
    decay_bias_norm: bool,
) -> torch.optim.AdamW:
    """AdamW over the trained layer groups. Each torch group has the extra keys `names`, `layer_group` and `peak_lr`.

    Weight decay is decoupled (Loshchilov & Hutter 2019). It acts on all parameters, as in fastai v1, or with
    `decay_bias_norm=False` not on biases and batch norm, as in fastai v2.
    """
    parameters = dict(net.named_parameters())
    torch_groups = []
    for index in trained:
        kept: dict[bool, list[str]] = {True: [], False: []}
        for name in groups[index]:
            is_matrix = parameters[name].ndim > 1
            kept[decay_bias_norm or is_matrix].append(name)
        for decayed, names in kept.items():
            if names:
                torch_groups.append(
                    {
                        "params": [parameters[name] for name in names],
                        "names": names,
                        "layer_group": index,
                        "peak_lr": rates[index],
                        "lr": rates[index],
                        "weight_decay": weight_decay if decayed else 0.0,
                    }
                )
    return torch.optim.AdamW(torch_groups, betas=(0.9, 0.99), eps=eps, fused=True)


def set_hyperparameters(optimizer: torch.optim.Optimizer, factor: float, momentum: float) -> None:
    """Set a step's learning rates (peak x factor) and momentum in the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        group["betas"] = (momentum, group["betas"][1])


def begin_stage(
    net: nn.Module,
    groups: Sequence[Sequence[str]],
    stage: Stage,
    *,
    lr: float | None = None,
    weight_decay: float,
    eps: float,
    decay_bias_norm: bool,
) -> tuple[list[int], list[float], torch.optim.AdamW]:
    """Freeze the groups that a stage does not train, and build the optimizer of the others.

    Args:
        lr: peak rate of the last group, in place of the stage's.

    Returns:
        The indices of the trained groups, the peak rates of all groups, and the optimizer of `build_optimizer`.
    """
    trained = freeze(net, groups, stage.freeze_to)
    rates = discriminative_rates(stage.lr if lr is None else lr, stage.lr_divisor, len(groups))
    optimizer = build_optimizer(
        net, groups, trained, rates, weight_decay=weight_decay, eps=eps, decay_bias_norm=decay_bias_norm
    )
    return trained, rates, optimizer
