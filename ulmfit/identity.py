"""What makes two starts one run: the options that change the weights, and fingerprints of what is read."""

from __future__ import annotations

from typing import Any

from ulmfit.config import TrainConfig, options
from ulmfit.excerpts import listed
from ulmfit.option_types import flag

# What may differ between two starts of one run: nothing here changes the weights. Paths are compared by
# what they hold (fingerprints), not by name.
OPERATION = frozenset(
    {
        "output_dir",
        "micro_batches",
        "save_every",
        "save_minutes",
        "keep",
        "log_every",
        "eval_every",
        "score_test",
        "resume",
        "max_time",
        "samples",
        "watchdog",
        "config",
        "cache_dir",
        "local_cache",
        "threads",
        "lr_find",
        "lr_find_stage",
        "report_to",
        "data",
        "init",
        "encoder",
        "tokenizer",
        "separator",
        "encoding",
        "header",
    }
)
# What a run reads; not compared by name, but a later start that does not name it reads the same.
INPUTS = frozenset({"data", "init", "encoder", "tokenizer", "separator", "encoding", "header"})
# The options that the stages of a run come from.
SCHEDULE = frozenset({"recipe", "lr", "epochs", "max_steps", "schedule"})


def identity(config: TrainConfig, became: dict[str, Any] | None = None, **fingerprints: str | None) -> dict[str, Any]:
    """Whatever changes the weights: the options outside OPERATION, and fingerprints of the inputs.

    Args:
        became: what options that were left to the recipe, the data or the device have become, by option; and "stages".
    """
    fields = {name: value for name, value in options(config).items() if name not in OPERATION}
    return fields | (became or {}) | {f"{name} (content)": value for name, value in fingerprints.items()}


def differences(old: dict[str, Any], new: dict[str, Any], kind: type[TrainConfig]) -> list[str]:
    """`name: old -> new` for each entry of two identities that differs.

    An option that `old` lacks came with a later version of this code: it stood at its default. Stages are compared in
    detail only where no option tells of the difference.
    """
    old = options(kind()) | old
    names = sorted((new.keys() | (old.keys() - OPERATION)) - {"stages"})
    changed = [name for name in names if old.get(name) != new.get(name)]
    lines = [f"{flag(name)}: {listed([old.get(name)])} -> {listed([new.get(name)])}" for name in changed]
    if not set(changed) & SCHEDULE:
        lines += _stage_differences(old.get("stages") or [], new.get("stages") or [])
    return lines


def _stage_differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if len(old) != len(new):
        return [f"stages: {len(old)} -> {len(new)}"]
    return [
        f"{name} of stage {number}: {listed([value])} -> {listed([after.get(name)])}"
        for number, (before, after) in enumerate(zip(old, new, strict=True), 1)
        for name, value in before.items()  # what it lacks came with a later version and stands at its default
        if value != after.get(name)
    ]
