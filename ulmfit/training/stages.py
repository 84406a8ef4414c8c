"""Recipes: a recipe is a list of stages, a stage is what `freeze_to` + `fit_one_cycle` is in fastai.

Sources: blog = the 2019 post this project reimplements; ulmfit = fastai v1's ULMFit.ipynb, its best
published run (94.96 % forward on IMDb). The paper is Howard & Ruder 2018 (ULMFiT), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ulmfit.config import TrainConfig
from ulmfit.errors import UserError

Schedule = Literal["one-cycle", "stlr", "constant"]
DISCRIMINATIVE = 2.6**4  # paper, section 3.2: each layer at 1/2.6 of the rate of the one above it


@dataclass(frozen=True)
class Stage:
    """A part of training with one set of trainable layer groups and one cycle of the schedule.

    Attributes:
        freeze_to: groups before this index are frozen, as in fastai (0: none, -1: all but the last).
        epochs: passes over the training data.
        lr: peak learning rate of the last group.
        lr_divisor: the first group's rate is lr / lr_divisor, geometric between; 1 for one rate.
    """

    name: str
    freeze_to: int
    epochs: float
    lr: float
    lr_divisor: float = 1.0
    schedule: Schedule = "one-cycle"
    momentum: tuple[float, float] = (0.8, 0.7)


@dataclass(frozen=True)
class Recipe:
    """Stages, and the settings that belong to them."""

    stages: tuple[Stage, ...]
    batch_size: int
    bptt: int
    drop_mult: float
    weight_decay: float
    clip: float


def _unfreezing(rates: tuple[float, ...], epochs: tuple[float, ...], first_divisor: float) -> tuple[Stage, ...]:
    """Gradual unfreezing: the head alone, then one more group a stage, then all."""
    depths = (-1, -2, -3, 0)
    names = ("head", "last 2 groups", "last 3 groups", "all groups")
    return tuple(
        Stage(name, depth, n, lr, first_divisor if depth == -1 else DISCRIMINATIVE)
        for name, depth, n, lr in zip(names, depths, epochs, rates, strict=True)
    )


_LM_RECIPES = {
    "blog": Recipe(
        (Stage("head", -1, 1, 1e-2), Stage("all groups", 0, 2, 1e-3)),
        batch_size=48,
        bptt=70,
        drop_mult=0.3,
        weight_decay=0.01,
        clip=0.0,
    ),
    "ulmfit": Recipe(
        (Stage("head", -1, 1, 2e-2), Stage("all groups", 0, 10, 2e-3)),
        batch_size=256,
        bptt=70,
        drop_mult=1.0,
        weight_decay=0.1,
        clip=0.1,
    ),
}
_CLASSIFIER_RECIPES = {
    "blog": Recipe(
        _unfreezing((1.45e-3, 1.45e-3, 1e-3, 1e-3), (1, 1, 1, 2), 1.0),
        batch_size=48,
        bptt=70,
        drop_mult=0.5,
        weight_decay=0.01,
        clip=0.0,
    ),
    "ulmfit": Recipe(
        _unfreezing((0.1, 0.05, 0.025, 0.005), (1, 1, 1, 2), 1.0),
        batch_size=128,
        bptt=70,
        drop_mult=0.5,
        weight_decay=0.1,
        clip=0.0,
    ),
}
# quick: ours, chosen by cross-validation on small tasks (benchmarks/RESULTS.md). One rate for all layers: rates that
# fall by 2.6 a layer suit an encoder that has read far more text than a user's. From random weights nothing is worth
# freezing.
_QUICK = {
    ("lm", False): Recipe(
        (Stage("all groups", 0, 1, 8e-3),), batch_size=64, bptt=70, drop_mult=0.2, weight_decay=0.01, clip=0.4
    ),
    ("lm", True): Recipe(
        (Stage("all groups", 0, 2, 4e-3),), batch_size=32, bptt=70, drop_mult=0.3, weight_decay=0.01, clip=0.4
    ),
    ("clf", False): Recipe(
        (Stage("all groups", 0, 3, 5e-3),), batch_size=32, bptt=70, drop_mult=0.3, weight_decay=0.01, clip=0.4
    ),
    ("clf", True): Recipe(
        (Stage("head", -1, 1, 1e-2), Stage("all groups", 0, 3, 5e-3)),
        batch_size=32,
        bptt=70,
        drop_mult=0.4,
        weight_decay=0.01,
        clip=0.4,
    ),
}
# Small data need more passes: quick repeats its last stage until it has about this many steps.
_QUICK_STEPS = {"lm": 400, "clf": 350}
_QUICK_MAX_EPOCHS = {"lm": 12, "clf": 12}


def recipe_for(config: TrainConfig, *, pretrained: bool) -> Recipe:
    """The recipe of a command line, with the options that override it put in.

    `--lr` and `--epochs` are those of the last stage; earlier rates keep their ratio to it. Without
    pretrained weights the stages that train only a part of the model are left out: they would train a
    head on noise.
    """
    if config.recipe == "none":
        missing = [flag for flag, value in (("--lr", config.lr),) if value is None]
        if config.epochs is None and config.max_steps is None:
            missing.append("--epochs (or --max-steps)")
        if missing:
            raise UserError(f"--recipe none takes nothing for granted; give {' and '.join(missing)}")
        assert config.lr is not None
        stage = Stage("all groups", 0, config.epochs or 1, config.lr)
        recipe = replace(_QUICK[config.task, pretrained], stages=(stage,), clip=0.0, drop_mult=1.0)
    elif config.recipe == "quick":
        recipe = _QUICK[config.task, pretrained]
    else:
        recipe = (_LM_RECIPES if config.task == "lm" else _CLASSIFIER_RECIPES)[config.recipe]
    stages = recipe.stages
    if not pretrained:
        stages = tuple(stage for stage in stages if stage.freeze_to == 0)
    if config.lr is not None:
        factor = config.lr / stages[-1].lr
        stages = tuple(replace(stage, lr=stage.lr * factor) for stage in stages)
    if config.epochs is not None:
        stages = (*stages[:-1], replace(stages[-1], epochs=config.epochs))
    if config.schedule is not None:
        stages = tuple(replace(stage, schedule=config.schedule) for stage in stages)
    given = {
        name: getattr(config, name)
        for name in ("batch_size", "bptt", "drop_mult", "weight_decay", "clip")
        if getattr(config, name) is not None
    }
    return replace(recipe, stages=stages, **given)


def lengthen_quick(recipe: Recipe, config: TrainConfig, steps_per_epoch: int) -> Recipe:
    """`quick` on small data: more epochs in the last stage, unless the user set the length."""
    if config.recipe != "quick" or config.epochs is not None or config.max_steps is not None:
        return recipe
    last = recipe.stages[-1]
    wanted = math.ceil(_QUICK_STEPS[config.task] / max(1, steps_per_epoch))
    epochs = max(last.epochs, min(wanted, _QUICK_MAX_EPOCHS[config.task]))
    return replace(recipe, stages=(*recipe.stages[:-1], replace(last, epochs=epochs)))


def share_steps(stages: tuple[Stage, ...], max_steps: int) -> list[int]:
    """Steps of each stage when the whole schedule has `max_steps`, in proportion to the epochs.

    Each stage gets at least one step where there are enough; the sum is exactly `max_steps`.
    """
    total = sum(stage.epochs for stage in stages)
    ends, done = [], 0.0
    for stage in stages[:-1]:
        done += stage.epochs
        ends.append(min(max_steps, round(max_steps * done / total)))
    shares = [end - start for start, end in zip([0, *ends], [*ends, max_steps], strict=True)]
    while 0 in shares and max_steps >= len(stages):  # rounded away: taken from the longest stage
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares
