"""Determines the engine that the launcher requested, and checks that it can be used.

`accelerate launch` requests DeepSpeed or FSDP by environment variables. The variables are hidden from accelerate, which
only makes the process group; the engines of this package (zero.py, fsdp.py) wrap the model. The reasons: on the CPU
accelerate ignores both (and with FSDP does not reduce gradients), with DeepSpeed it needs transformers, and it does
the optimizer step inside backward.
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
from ulmfit.distributed.launcher_options import ACCUMULATION, DEEPSPEED_FILE
from ulmfit.errors import UserError

USE_DEEPSPEED, USE_FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"


def wanted_engine(config: TrainConfig) -> str:
    """The engine of this launch: plain, fsdp2, zero1, zero2 or zero3.

    Raises:
        UserError: the launcher's settings request something that is not supported.
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
        # Tested: at the first step with different numbers of windows, two ranks wait for each other forever.
        raise UserError(
            "ZeRO stage 3 gathers weights for every window of text, of which the classifier's documents "
            "have different numbers on each process; use launch/zero2.yaml or launch/fsdp2.yaml"
        )
    return engine


def zero_settings() -> dict[str, Any]:
    """DeepSpeed's "zero_optimization" section: from the launcher's file if given, else with the launcher's stage.

    Raises:
        UserError: deepspeed is not installed, the file cannot be read, the stage is not 1, 2 or 3, or offloading is
            requested.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "the launcher asks for DeepSpeed, which is not installed; pip install -c constraints.txt -e "
            "'.[deepspeed]' brings it"
        )
    file = os.environ.get(DEEPSPEED_FILE, "none")
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
    """Context in which the requests for DeepSpeed and FSDP are hidden from accelerate, and that to accumulate gradients: it
    would divide them."""
    hidden = {name: os.environ.pop(name) for name in (USE_DEEPSPEED, USE_FSDP, ACCUMULATION) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
