"""The command that a run was started with, from the options in its config.json. For reports and model cards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.fit_config import FitConfig
from ulmfit.option_types import flag
from ulmfit.paths import DESCRIBED

KINDS: dict[str, type] = {"fit": FitConfig, "lm": LMConfig, "clf": ClassifierConfig}  # by the `task` of config.json
_COMMANDS = {"fit": "fit", "lm": "train-lm", "clf": "train-clf"}
_NEVER = {"config", "resume"}  # they tell how the run was started, not what it is


def _as_typed(name: str, value: Any) -> str:
    return str(value)


def words_of_command(
    task: str,
    options: Mapping[str, Any],
    *,
    always: Collection[str] = (),
    never: Collection[str] = (),
    spelled: Callable[[str, Any], str] = _as_typed,
) -> list[str]:
    """The words of a command line: the options that are not the defaults. Data from Python cannot be typed and are left out.

    Args:
        task: fit, lm or clf.
        options: those of config.json.
        always: options that are told even if they have the default.
        never: options that are left out.
        spelled: called with the name of an option and its value, which is no switch; gives the word behind the option.
    """
    words = ["ulmfit", _COMMANDS[task]]
    for each in fields(KINDS[task]):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        value = options.get(each.name, default)
        if value is None or each.name in _NEVER or each.name in never or str(value).startswith(DESCRIBED):
            continue
        if value != default or each.name in always:
            words += _words("", each.name, value, spelled)
    return words


def _words(prefix: str, name: str, value: Any, spelled: Callable[[str, Any], str]) -> Iterator[str]:
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from _words(f"{flag(name)}.", inner, part, spelled)
    elif isinstance(value, bool):
        yield f"--{prefix}{'' if value else 'no-'}{flag(name)}"
    else:
        yield from (f"--{prefix}{flag(name)}", spelled(name, value))
