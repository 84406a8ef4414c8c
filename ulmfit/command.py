"""From a command line to a configuration, and from errors to exit codes."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from ulmfit.config import TrainConfig, load_options
from ulmfit.errors import UserError
from ulmfit.training.stop import StopRequest

Config = TypeVar("Config", bound=TrainConfig)
DONE, FAILED, USER_ERROR = 0, 1, 2


def parse(kind: type[Config], argv: Sequence[str]) -> Config:
    """The options on a command line, over those of `--config FILE` if given.

    Raises:
        UserError: an option is unknown or its value does not fit.
    """
    default = None
    names = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)}
    names |= {f"--no-{field.name.replace('_', '-')}" for field in dataclasses.fields(kind) if field.type == "bool"}
    for index, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag.startswith("--") and flag not in names and flag != "--help":
            near = difflib.get_close_matches(flag, names, n=1)
            raise UserError(f"there is no option {flag}; " + (f"did you mean {near[0]}?" if near else "see --help"))
        if flag == "--config":
            if not value and index + 1 == len(argv):
                raise UserError("--config needs a file; give a run's config.json")
            default = load_options(value or argv[index + 1], kind)
    try:
        return tyro.cli(kind, args=list(argv), default=default)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError("an option's value does not fit (see above); --help lists what each takes") from None


def run_script(kind: type[Config], train: Callable[[Config, StopRequest], dict[str, Any]],
               stop: StopRequest) -> int:
    """Parse, train, and give the exit code: 0 done or preempted, 2 a user's mistake, 1 failed."""
    main = int(os.environ.get("RANK", 0)) == 0
    try:
        result = train(parse(kind, sys.argv[1:]), stop)
    except UserError as error:
        if main:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except Exception as error:
        traceback.print_exc()
        print(f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return FAILED
    if main and result["state"] == "preempted":
        print(f"stopped at step {result['step']} with a checkpoint; the same command goes on from there")
    return DONE
