"""Options of `accelerate launch` that are also options of a training, and how they become these."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ulmfit.config import TrainConfig, changed, given
from ulmfit.distributed.stop import LAUNCHER_MARKS
from ulmfit.errors import UserError

Config = TypeVar("Config", bound=TrainConfig)

MIXED_PRECISION, ACCUMULATION = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_ACCUMULATION_OPTION = re.compile(r"--gradient[-_]accumulation[-_]steps(?:=(.*))?")


def launcher_words() -> list[str]:
    """The command line of the launcher that started this process; empty where none did, or it cannot be read."""
    if any(mark in os.environ for mark in LAUNCHER_MARKS):
        with suppress(psutil.Error, OSError):
            return psutil.Process(os.getppid()).cmdline()
    return []


def with_launcher_options(
    config: Config, environment: Mapping[str, str] = os.environ, words: Callable[[], list[str]] = launcher_words
) -> tuple[Config, list[str]]:
    """A copy that has taken `--mixed_precision` and `--gradient_accumulation_steps` of the launcher.

    They stand for --precision and --micro-batches where these are not given. accelerate hands the second one on for
    DeepSpeed only, so it is also looked for on the launcher's command line: what was asked for is not left out in silence.

    Returns:
        The copy, and sentences for the user about what was taken.

    Raises:
        UserError: an option of the launcher and that of the training differ, or the launcher's cannot be had.
    """
    told = given(config)
    taken, sentences = changed(config), []
    for option, name, value in (
        ("--mixed_precision", "precision", _precision(environment)),
        ("--gradient_accumulation_steps", "micro_batches", _accumulation(environment, words)),
    ):
        if value is None or value == getattr(config, name):
            continue
        flag = "--" + name.replace("_", "-")
        if name in told:
            raise UserError(
                f"the launcher's {option} {value} and {flag} {getattr(config, name)} differ; leave out one of them"
            )
        setattr(taken, name, value)
        whole = "; --batch-size stays the whole batch of a step" if name == "micro_batches" else ""
        sentences.append(f"the launcher's {option} {value} is taken as {flag} {value}{whole}")
    return taken, sentences


def _precision(environment: Mapping[str, str]) -> str | None:
    """fp16 or bf16, as accelerate's option or a section of DeepSpeed's file has it; None where it has neither.

    Raises:
        UserError: another one.
    """
    value = environment.get(MIXED_PRECISION, "no").lower()
    if value == "no":
        file = _deepspeed_file(environment)
        value = next((name for name in ("fp16", "bf16") if _section(file, name).get("enabled") is True), "no")
    if value not in ("no", "fp16", "bf16"):
        raise UserError(f"the launcher's --mixed_precision {value[:40]} cannot be had; give no, fp16 or bf16")
    return None if value == "no" else value


def _accumulation(environment: Mapping[str, str], words: Callable[[], list[str]]) -> int | None:
    """The number, above 1; None where none is given.

    Raises:
        UserError: it is no whole number from 1 on.
    """
    value = str(_deepspeed_file(environment).get("gradient_accumulation_steps", "1"))
    value = environment.get(ACCUMULATION, value)
    launcher = words()
    for word, following in zip(launcher, [*launcher[1:], ""], strict=False):
        if match := _ACCUMULATION_OPTION.fullmatch(word):
            value = match[1] or following
    if value in ("auto", "None"):
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UserError(
            f"the launcher's --gradient_accumulation_steps {value[:40]} is no whole number from 1 on; leave it out, and "
            "give --micro-batches"
        )
    return int(value) if int(value) > 1 else None


def _deepspeed_file(environment: Mapping[str, str]) -> dict[str, Any]:
    """The content of DeepSpeed's configuration; empty without. `sharding.zero_settings` tells of one that is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(Path(environment.get(DEEPSPEED_FILE, "none")).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _section(file: dict[str, Any], name: str) -> dict[str, Any]:
    section = file.get(name)
    return section if isinstance(section, dict) else {}
