"""The smallest and largest value of each numeric option.

The limits are wide. Values outside are typing errors, which otherwise might be noticed only after hours of counting
or allocating.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, NamedTuple

from ulmfit.errors import UserError

MOST_STEPS = 10**9


class Limit(NamedTuple):
    """Values from `least` to `most`, inclusive.

    Attributes:
        off: 0 is allowed too, and means "never" or "none".
    """

    least: float
    most: float
    off: bool = False


_ABOVE_ZERO = 1e-300  # smaller numbers are typing errors
_BELOW_ONE = math.nextafter(1, 0)

LIMITS = {
    "batch_size": Limit(1, 10**6),
    "micro_batches": Limit(1, 10**6),
    "bptt": Limit(2, 10**6),
    "epochs": Limit(_ABOVE_ZERO, 10**4),
    "max_steps": Limit(1, MOST_STEPS),
    "lr": Limit(_ABOVE_ZERO, 10**6),
    "drop_mult": Limit(0, 10**6),
    "weight_decay": Limit(0, 10**6),
    "clip": Limit(0, 1e30),
    "adam_eps": Limit(1e-30, 10**6),  # a smaller one is 0 in float32, and the update of an unused word would be 0 / 0
    "alpha": Limit(0, 10**6),
    "beta": Limit(0, 10**6),
    "seed": Limit(0, 2**63 - 1),
    "draw_seed": Limit(0, 2**63 - 1),
    "save_every": Limit(1, MOST_STEPS, off=True),
    "save_minutes": Limit(_ABOVE_ZERO, 10**7),
    "keep": Limit(1, 10**6),
    "log_every": Limit(1, MOST_STEPS),
    "eval_every": Limit(1, MOST_STEPS, off=True),
    "stop_after": Limit(1, 10**6, off=True),
    "max_time": Limit(_ABOVE_ZERO, 10**7),
    "watchdog": Limit(0.01, 10**7, off=True),  # a shorter limit would be less than a step
    "threads": Limit(1, 1024),
    "vocab_size": Limit(1, 10**7),
    "min_freq": Limit(1, 10**9),
    "sampled_softmax": Limit(64, 10**7, off=True),  # with 64 candidates the most frequent word is always one of them
    "max_len": Limit(1, 10**9),
    "gradient_window": Limit(1, 10**9),
    "labels": Limit(1, 10**9),
    "head_size": Limit(1, 10**5),
    "label_smoothing": Limit(0, _BELOW_ONE),
    # of `ulmfit show`, `ulmfit generate`, `ulmfit top-losses` and `ulmfit report`
    "rows": Limit(1, 10**6),
    "steps": Limit(1, 10**6),
    "max_new_tokens": Limit(0, 10**7),
    "temperature": Limit(0, 10**6),
    "top_k": Limit(1, 10**7),
    "min_p": Limit(0, 1),
    "number": Limit(1, 10**7),
    "errors": Limit(1, 10**4, off=True),
    # of `ulmfit fit`
    "ensemble": Limit(1, 100),
    # of `ulmfit sweep`
    "trials": Limit(1, 10**6),
    "most_epochs": Limit(1, 10**4),
    # of `ulmfit preflight`
    "node": Limit(0, 10**6),
    "processes": Limit(1, 1024),
    "free": Limit(0, 10**7),
    "timeout": Limit(0.1, 10**6),
}


def check_numbers(options: dict[str, Any]) -> None:
    """Raise UserError for a number that is out of its limits, infinite or nan. `options` are by field name."""
    for name, value in options.items():
        if name not in LIMITS or value is None or isinstance(value, (str, bool)):
            continue
        least, most, off = LIMITS[name]
        if off and value == 0:
            continue
        if least <= value <= most:  # false for nan
            continue
        if value > most:
            cure = "a number below 1" if most == _BELOW_ONE else f"at most {_shown(most)}"
        else:
            lowest = {0: "0 or more", _ABOVE_ZERO: "a number above 0"}.get(least, f"at least {_shown(least)}")
            cure = f"0 or {lowest}" if off else lowest
        raise UserError(f"--{name.replace('_', '-')} is {_shown(value)}; give {cure}")


def _shown(number: float) -> str:
    """A short decimal form of a number for messages; an integer may be too large for a float."""
    if isinstance(number, float):
        return f"{number:g}"
    return str(number) if abs(number) < 10**15 else f"{Decimal(number):.6g}".lower()
