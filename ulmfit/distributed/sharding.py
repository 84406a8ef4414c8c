"""Which engine the launcher asked for, and what each cannot do.

`accelerate launch` says by environment variables that it wants DeepSpeed or FSDP. accelerate itself shall only
make the process group: it ignores both on the CPU (and under FSDP then leaves gradients unreduced), asks for
transformers under DeepSpeed, and steps inside its backward. So the variables are hidden from it and the engines
of this package (zero.py, fsdp.py) do the wrapping.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulmfit.config import TrainConfig
from ulmfit.errors import UserError

USE_DEEPSPEED, USE_FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"


def wanted_engine(config: TrainConfig) -> str:
    """The engine of this launch: plain, fsdp2, zero1, zero2 or zero3.

    Raises:
        UserError: the launcher's settings name something that this program cannot do.
    """
    if _is_true(USE_DEEPSPEED):
        engine = f"zero{zero_settings()['stage']}"
    elif _is_true(USE_FSDP):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "the launcher asks for the first version of FSDP; set fsdp_version: 2, as in launch/fsdp2.yaml"
            )
        engine = "fsdp2"
    else:
        return "plain"
    if config.compress_gradients:
        raise UserError(
            f"--compress-gradients is for plain data-parallel processes and not for the engine {engine}; "
            "leave it out, or use launch/multi_gpu.yaml"
        )
    if config.precision == "fp16":
        raise UserError(
            f"--precision fp16 needs a loss scale, which the engine {engine} does without; use bf16, or "
            "launch/multi_gpu.yaml"
        )
    if config.precision == "fp64" and engine != "fsdp2":
        raise UserError(
            "--precision fp64 cannot be had with DeepSpeed, whose weights are fp32; use fp32, or launch/multi_gpu.yaml"
        )
    if engine == "zero3" and config.task == "clf":
        # Measured: two ranks wait for each other forever at the first step of different numbers of windows.
        raise UserError(
            "ZeRO stage 3 gathers weights for every window of text, of which the classifier's documents "
            "have different numbers on each process; use launch/zero2.yaml or launch/fsdp2.yaml"
        )
    return engine


def zero_settings() -> dict[str, Any]:
    """DeepSpeed's "zero_optimization" section: that of the launcher's file, else the launcher's own stage.

    Raises:
        UserError: deepspeed is not installed, the file cannot be read, or it asks for another stage than 1, 2
            or 3, or for offloading.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "the launcher asks for DeepSpeed, which is not installed; pip install -c constraints.txt -e "
            "'.[deepspeed]' brings it"
        )
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        settings: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))}
        offload = {
            os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none") for part in ("OPTIMIZER", "PARAM")
        }
    else:
        try:
            settings = dict(json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"])
            offload = {settings.pop(part, {}).get("device", "none") for part in ("offload_optimizer", "offload_param")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"deepspeed_config_file {file} cannot be read; give DeepSpeed's JSON with a zero_optimization section"
            ) from None
    if settings.get("stage") not in (1, 2, 3):
        raise UserError(
            f"the launcher asks for ZeRO stage {settings.get('stage')}; set zero_stage to 1, 2 or 3, or "
            "use launch/multi_gpu.yaml"
        )
    if offload != {"none"}:
        raise UserError(
            "the launcher asks DeepSpeed to offload to the CPU, which a model of this size has no use "
            "for; set offload_optimizer_device and offload_param_device to none"
        )
    return settings


@contextmanager
def processes_only() -> Iterator[None]:
    """Within it accelerate sees a launch of plain processes."""
    hidden = {name: os.environ.pop(name) for name in (USE_DEEPSPEED, USE_FSDP) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
