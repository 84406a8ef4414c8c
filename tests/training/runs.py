"""Short real runs on the embedded sample, and what is compared between them."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.training.stop import StopRequest

LM = {"max_steps": 12, "batch_size": 16, "bptt": 12, "log_every": 1, "save_every": 0, "samples": False, "threads": 1}
CLF = {"max_steps": 12, "batch_size": 8, "bptt": 24, "log_every": 1, "save_every": 0, "samples": False, "threads": 1}
TIMINGS = {"tokens_per_second", "data_wait", "memory", "time"}


def lm_config(output_dir: Path, **options) -> LMConfig:
    return LMConfig(output_dir=str(output_dir), **(LM | options))


def clf_config(output_dir: Path, **options) -> ClassifierConfig:
    return ClassifierConfig(output_dir=str(output_dir), **(CLF | options))


def weights(run: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what is measured in time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if line["event"] == "train"]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative difference of a tensor by its norm."""
    assert a.keys() == b.keys()
    return max(((a[name].double() - b[name].double()).norm() / a[name].double().norm().clamp(min=1e-30)).item()
               for name in a)


class StopAtCall(StopRequest):
    """Asks to stop when it is asked for the n-th time; the loop asks once a step or less."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._calls_left = call

    def requested(self) -> bool:
        self._calls_left -= 1
        return self._calls_left <= 0
