"""What TensorBoard tells about a run besides its curves: the hyperparameters that runs are compared by, and its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ulmfit.config import TrainConfig
from ulmfit.excerpts import cut
from ulmfit.paths import without_folders
from ulmfit.run.board import TASKS
from ulmfit.training import optim
from ulmfit.training.task import PlannedStage, Task


def hyperparameters(config: TrainConfig, resolved: dict[str, Any]) -> dict[str, str | float]:
    """What distinguishes a run from others, the same names and types for every run.

    They are few, because TensorBoard shows the first five in the order of their names. All options are in a table there.

    Args:
        resolved: the values of options that were left out, as in config.json.
    """
    sizes, stages = resolved["architecture"], resolved["stages"]
    names = ("embedding_size", "hidden_size", "num_layers")
    return {
        "batch_size": float(resolved["batch_size"]),
        "data": cut(without_folders(str(config.data or "the embedded sample"))),
        "drop_mult": float(resolved["drop_mult"]),
        "lr": float(stages[-1]["lr"]),
        "recipe": config.recipe,
        "seed": float(config.seed),
        "size": "/".join(str(sizes[name]) for name in names),
        "start": cut(without_folders(str(resolved.get("init") or resolved.get("encoder") or "none"))),
        "steps": float(sum(stage["steps"] for stage in stages)),
        "task": TASKS[config.task],
        "weight_decay": float(resolved["weight_decay"]),
    }


def stage_table(task: Task, plan: Sequence[PlannedStage]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the stages: which steps, what is trained, and at which learning rates."""
    names = optim.group_names(task.groups)
    rows, first = [], 1
    for number, planned in enumerate(plan, 1):
        stage = planned.stage
        begin = optim.first_group(stage.freeze_to, task.groups)
        rates = optim.discriminative_rates(stage.lr, stage.lr_divisor, len(task.groups))[begin:]
        shown = f"{rates[0]:.1e}" if rates[0] == rates[-1] else f"{rates[0]:.1e} to {rates[-1]:.1e}"
        last = first + planned.num_steps - 1
        rows.append(
            [str(number), stage.name, f"{first:,} to {last:,}", ", ".join(names[begin:]), shown, stage.schedule]
        )
        first = last + 1
    return ["stage", "name", "steps", "trained", "peak learning rate", "schedule"], rows
