"""Refuses weights that no training can have saved: of another dtype, NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ulmfit.errors import UserError

_WHOLE = ("num_batches_tracked", "keys")  # whole numbers: counters of BatchNorm, and n-grams


def check_weights(tensors: Mapping[str, Tensor], what: str, cure: str) -> None:
    """Check dtypes and values. One NaN would make every output NaN, without a word.

    Args:
        what: the file, for the message.
        cure: what the user can do, for the message.

    Raises:
        UserError: a weight is not float32 (or all are not float64), or has a value that is not finite.
    """
    kinds = {tensor.dtype for name, tensor in tensors.items() if not name.endswith(_WHOLE)}
    kind = torch.float64 if kinds == {torch.float64} else torch.float32
    for name, tensor in tensors.items():
        wanted = torch.int64 if name.endswith(_WHOLE) else kind
        if tensor.dtype != wanted or tensor.layout != torch.strided:
            found = str(tensor.dtype if tensor.dtype != wanted else tensor.layout).removeprefix("torch.")
            raise UserError(f"{name} in {what} is {found} and not {str(wanted).removeprefix('torch.')}; {cure}")
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} in {what} has values that are NaN or infinite, so the file is damaged or its training "
                f"diverged; {cure}, with a lower --lr if it diverged"
            )
