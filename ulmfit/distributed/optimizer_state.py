"""An optimizer's state by parameter name, which every engine writes into a checkpoint and reads from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def use_parameters(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> None:
    """Let an optimizer that has not stepped yet act on other parameters of the same names."""
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Moments and step counts by parameter name."""
    named = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if optimizer.state.get(parameter):
                named[name] = dict(optimizer.state[parameter])
    return named


def load_optimizer_state(optimizer: torch.optim.Optimizer, named: dict[str, dict[str, torch.Tensor]]) -> None:
    """Put back what `optimizer_state` gave, on each parameter's device."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in named:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device).clone() for key, value in named[name].items()
                }
