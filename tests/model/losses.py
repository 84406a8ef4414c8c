"""Random inputs of a loss over words."""

from __future__ import annotations

import torch


def loss_inputs(n, e, v, *, dtype=torch.float64, masked=(0, 4, 5, 22)):
    """hidden [n, e], weight [v, e], bias [v], all with gradient, and targets [n], those of `masked` -100."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, e, dtype=torch.float64, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(v, e, dtype=torch.float64, generator=g).to(dtype).requires_grad_()
    bias = torch.randn(v, dtype=torch.float64, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=g)
    targets[list(masked)] = -100
    return hidden, weight, bias, targets
