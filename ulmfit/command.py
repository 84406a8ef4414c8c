"""From a command line to a configuration, and from errors to exit codes."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from ulmfit.config import TrainConfig, load_options
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError, tell

Config = TypeVar("Config", bound=TrainConfig)
DONE, FAILED, USER_ERROR = 0, 1, 2


def parse(kind: type[Config], argv: Sequence[str]) -> Config:
    """The options on a command line, over those of `--config FILE` if given.

    Raises:
        UserError: an option is unknown or its value does not fit.
    """
    default = kind()
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
        with redirect_stderr(io.StringIO()):  # its report of a mistake is a page long; ours is a sentence
            return tyro.cli(kind, args=list(argv), default=default)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError(_misfit(kind, argv)) from None


def _misfit(kind: type[TrainConfig], argv: Sequence[str]) -> str:
    """A sentence on the first word of a command line that does not fit."""
    hints = get_type_hints(kind)
    rest = list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            cure = "see --help" if flag.startswith("-") else f"to train on a file, write --data {flag}"
            return f"{flag} belongs to no option; {cure}"
        name = flag[2:].replace("-", "_")
        hint = hints.get(name, bool)
        if hint is bool:
            if equals:
                return f"{flag} takes no value; write {flag} alone, or --no-{flag[2:]} for the opposite"
            continue
        if not equals and (not rest or rest[0].startswith("--")):
            return f"{flag} needs a value: {_takes(hint)}"
        value = value if equals else rest.pop(0)
        if not _readable(value, hint):
            return f"{flag} {value} does not fit; it takes {_takes(hint)}"
    return "the options do not fit together; --help lists what each takes"


def _members(hint: Any) -> tuple[Any, ...]:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(member for member in members if member is not type(None))


def _takes(hint: Any) -> str:
    kinds = {int: "a whole number", float: "a number", str: "a text"}
    words = [kinds.get(member) or ", ".join(map(str, get_args(member))) for member in _members(hint)]
    if len(words) == 1 and get_args(_members(hint)[0]):
        return f"one of {words[0]}"
    return " or ".join(words)


def _readable(value: str, hint: Any) -> bool:
    for member in _members(hint):
        if get_origin(member) is Literal:
            if value in get_args(member):
                return True
            continue
        try:
            member(value)
            return True
        except ValueError:
            continue
    return False


def run_script(kind: type[Config], train: Callable[[Config, StopRequest], dict[str, Any]], stop: StopRequest) -> int:
    """Parse, train, and give the exit code: 0 done or preempted, 2 a user's mistake, 1 failed."""
    try:
        result = train(parse_together(kind, sys.argv[1:]), stop)
    except UserError as error:
        tell(error)
        return USER_ERROR
    except Exception as error:
        traceback.print_exc()
        print(f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return FAILED
    if int(os.environ.get("RANK", 0)) == 0 and result["state"] == "preempted":
        print(f"stopped at step {result['step']} with a checkpoint; the same command goes on from there")
    return DONE


def parse_together(kind: type[Config], argv: Sequence[str]) -> Config:
    """As `parse`; a mistake that this process alone finds (a missing --config file) is told to the others of a launch.

    Those meet this one in the first collective of the training that they begin.
    """
    try:
        return parse(kind, argv)
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from ulmfit.distributed.group import Group

            Group().check_in(error)
        raise
