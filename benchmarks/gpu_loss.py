"""Which loss of the language model a measurement uses: the fused one of CUDA, or the plain one.

Training takes the fused one by itself and falls back to the plain one where it fails, in a line on stderr. A
measurement has to know which it was.
"""

from __future__ import annotations

import os

import side_by_side  # noqa: F401  (finds ulmfit where it is not installed)
import torch

from ulmfit.model import fused_loss
from ulmfit.model.fused_loss import SWITCH

KINDS = ("fused", "plain")
WHY = "no fused loss here"


def has(kind: str) -> bool:
    """Whether this process has it. A fused loss that has failed is not had any more."""
    if kind == "plain":
        return True
    if not torch.cuda.is_available():
        return False
    switch = os.environ.pop(SWITCH, None)
    try:
        return fused_loss.in_use(torch.device("cuda"))
    finally:
        if switch is not None:
            os.environ[SWITCH] = switch


def best() -> str:
    """The one that training takes by itself."""
    return "fused" if has("fused") else "plain"


def choose(kind: str) -> None:
    """Use this loss from now on in this process and in those that it starts."""
    assert has(kind), WHY
    if kind == "plain":
        os.environ[SWITCH] = "plain"
    else:
        os.environ.pop(SWITCH, None)


def failed(kind: str) -> str:
    """After a measurement with it: why it was another one that was measured; "" if it was not."""
    return "" if has(kind) else f"the fused loss failed: {fused_loss._failure}"
