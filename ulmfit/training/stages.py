"""Recipes. A recipe is a list of stages; a stage corresponds to `freeze_to` and `fit_one_cycle` of fastai.

Sources: blog = the 2019 post that this project reimplements; ulmfit = fastai v1's ULMFit.ipynb, its best
published run (94.96 % forward on IMDb). The paper is Howard & Ruder 2018 (ULMFiT), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ulmfit.config import TrainConfig
from ulmfit.errors import UserError

Schedule = Literal["one-cycle", "stlr", "constant"]
DISCRIMINATIVE = 2.6**4  # paper, section 3.2: each layer has 1/2.6 of the rate of the layer above


@dataclass(frozen=True)
class Stage:
    """A part of training with a fixed set of trained layer groups and one cycle of the schedule.

    Attributes:
        freeze_to: groups before this index are frozen, as in fastai (0: none, -1: all but the last).
        epochs: passes over the training data.
        lr: peak learning rate of the last group.
        lr_divisor: the first group's rate is lr / lr_divisor, with geometric steps between; 1 for one common rate.
        momentum: Adam's beta1, (at start and end of the cycle, at the peak learning rate).
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
    """Stages and the training settings that go with them."""

    stages: tuple[Stage, ...]
    batch_size: int
    bptt: int
    drop_mult: float
    weight_decay: float
    clip: float


def _unfreezing(rates: tuple[float, ...], epochs: tuple[float, ...], first_divisor: float) -> tuple[Stage, ...]:
    """Gradual unfreezing: first only the head, then one more group in each stage, then all groups."""
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
# quick: this project's own, chosen by cross-validation on small tasks (benchmarks/RESULTS.md). All layers have one
# rate: rates that fall by 2.6 per layer are for an encoder trained on far more text than users have. Keys are (task,
# pretrained). Without pretrained weights there is nothing to preserve by freezing.
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
# On small data, quick gets more epochs in its last stage, for about this many steps.
_QUICK_STEPS = {"lm": 400, "clf": 350}
_QUICK_MAX_EPOCHS = {"lm": 12, "clf": 12}
# On large data, a classifier on a pretrained encoder gets fewer, as many whole ones as fit into so many steps, but one. On
# 23,750 reviews, the second and third epoch at this rate only learn by heart (benchmarks/RESULTS.md, IMDb).
_QUICK_MOST_STEPS = 1000


def recipe_for(config: TrainConfig, *, pretrained: bool) -> Recipe:
    """The recipe for a configuration, with the options that override it.

    `--lr` and `--epochs` apply to the last stage; the rates of earlier stages keep their ratio to it. Without
    pretrained weights, the stages that train only some layers are left out, because the frozen ones would be random.

    Raises:
        UserError: recipe `none` without a learning rate or a length.
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


def fit_length(recipe: Recipe, config: TrainConfig, steps_per_epoch: int) -> Recipe:
    """For `quick`, more epochs of the last stage on small data and fewer on large, unless the user has set the length."""
    if config.recipe != "quick" or config.epochs is not None or config.max_steps is not None:
        return recipe
    last = recipe.stages[-1]
    steps_per_epoch = max(1, steps_per_epoch)
    wanted = math.ceil(_QUICK_STEPS[config.task] / steps_per_epoch)
    epochs = max(last.epochs, min(wanted, _QUICK_MAX_EPOCHS[config.task]))
    if config.task == "clf" and len(recipe.stages) > 1:  # a stage of the head alone: the encoder is pretrained
        epochs = min(epochs, max(1, _QUICK_MOST_STEPS // steps_per_epoch))
    return replace(recipe, stages=(*recipe.stages[:-1], replace(last, epochs=epochs)))


def narrow_quick(recipe: Recipe, config: TrainConfig, pairs: int) -> Recipe:
    """For `quick` on a corpus of less than a step, fewer rows, unless the user has set their number.

    The number is a power of two, which most numbers of processes divide. It does not depend on theirs.

    Args:
        pairs: neighbouring tokens in the corpus. A row needs one or more.
    """
    if config.recipe != "quick" or config.batch_size is not None or pairs >= recipe.batch_size or pairs < 1:
        return recipe
    return replace(recipe, batch_size=1 << (pairs.bit_length() - 1))


def share_steps(stages: tuple[Stage, ...], max_steps: int) -> list[int]:
    """Divide `max_steps` between the stages, in proportion to their epochs.

    The sum is exactly `max_steps`. Each stage gets at least one step if there are enough.
    """
    total = sum(stage.epochs for stage in stages)
    ends, done = [], 0.0
    for stage in stages[:-1]:
        done += stage.epochs
        ends.append(min(max_steps, round(max_steps * done / total)))
    shares = [end - start for start, end in zip([0, *ends], [*ends, max_steps], strict=True)]
    while 0 in shares and max_steps >= len(stages):  # rounded to zero: take a step from the longest stage
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares
