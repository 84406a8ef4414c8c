"""An optimizer's state by parameter name: the checkpoint format that all engines have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def use_parameters(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> None:
    """Replace the parameters of an optimizer by others of the same names. It must not have stepped yet."""
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's moments and step counts, by parameter name."""
    named = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if optimizer.state.get(parameter):
                named[name] = dict(optimizer.state[parameter])
    return named


def load_optimizer_state(optimizer: torch.optim.Optimizer, named: dict[str, dict[str, torch.Tensor]]) -> None:
    """Restore the result of `optimizer_state`, on the device of each parameter."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in named:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device).clone() for key, value in named[name].items()
                }
