"""What a device can do, and copies between host and device that do not make the host wait.

A copy from page-locked (pinned) memory to a GPU returns at once. For a copy from other memory the host waits until the
device has reached it, and cannot submit the rest of the step meanwhile. torch does not reuse a pinned buffer before
copies from it are done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has matrix units for bfloat16 (AMX: Intel Xeon from Sapphire Rapids on), and torch uses them.

    They multiply 8 times as fast as float32. Without them bfloat16 is slower than float32 or, for an LSTM, missing.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and torch.backends.mkldnn.is_available()


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy `values` from the CPU to `device`. If `device` is the CPU, nothing is copied."""
    if torch.device(device).type == "cuda":
        values = values.pin_memory()  # no copy if it is pinned already
    return values.to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor to the CPU that may still be under way."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # from a GPU to pinned memory
        self._done: Any = None
        if values.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> Tensor:
        """The values; waits until the device has made the copy."""
        if self._done is not None:
            self._done.synchronize()
        return self._values


def pinned(items: Iterator[Any], device: torch.device | str) -> Iterator[Any]:
    """For a GPU, yield the items with their tensors copied to pinned memory. The consuming thread makes the copies.

    Args:
        items: a generator of tensors, or of tuples, lists and dataclasses of them. Other values are not changed.
        device: target device of the items. For the CPU they are returned unchanged.
    """
    if torch.device(device).type != "cuda":
        return items
    return _pin_all(items, torch.cuda.current_device())


def _pin_all(items: Iterator[Any], gpu: int) -> Iterator[Any]:
    torch.cuda.set_device(gpu)  # a new thread uses the first GPU by default
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
