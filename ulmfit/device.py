"""From the host's memory to the device's without the host waiting for it.

A copy to a GPU returns at once if it begins in page-locked (pinned) memory; from any other the host waits until the
device has come so far, and cannot hand it the rest of the step meanwhile. torch keeps a pinned buffer from being used
again until copies out of it are done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """`values`, on the CPU, copied to `device`; on the CPU itself nothing is copied."""
    if torch.device(device).type == "cuda":
        values = values.pin_memory()  # gives back what is pinned already
    return values.to(device, non_blocking=True)


def pinned(items: Iterator[Any], device: torch.device | str) -> Iterator[Any]:
    """For a GPU, items with copies of their tensors in pinned memory, made in the thread that asks for them.

    Args:
        items: a generator of tensors, or of tuples, lists and dataclasses of them; anything else stays as it is.
        device: where the items will go. On the CPU they are given back as they are.
    """
    if torch.device(device).type != "cuda":
        return items
    return _pin_all(items, torch.cuda.current_device())


def _pin_all(items: Iterator[Any], gpu: int) -> Iterator[Any]:
    torch.cuda.set_device(gpu)  # a new thread would begin to use the first one
    try:
        for item in items:
            yield _pin(item)
    finally:
        if isinstance(items, Generator):
            items.close()


def _pin(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.pin_memory()
    if isinstance(item, (tuple, list)):
        return type(item)(map(_pin, item))
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return dataclasses.replace(
            item, **{field.name: _pin(getattr(item, field.name)) for field in dataclasses.fields(item)}
        )
    return item
