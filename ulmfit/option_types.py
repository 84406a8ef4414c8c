"""Checks and converts the types of options that no command line has parsed.

From Python an option may be a `pathlib.Path`, a numpy number or a misspelt choice. `normalized` returns the values
that the command line would give, so that a run is the same from Python and from the command line.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import numbers
import os
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.paths import PATHS, as_path

if TYPE_CHECKING:
    PathOption = str | os.PathLike[str]  # from Python
    DataOption = Any  # see ulmfit.data.in_memory
else:
    PathOption = DataOption = str  # from the command line


class Dataclass(Protocol):
    """An instance of any dataclass, as `dataclasses.fields` needs it."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Config = TypeVar("Config")


def flag(name: str) -> str:
    """The option name of a field on the command line, without the leading dashes."""
    return name.replace("_", "-")


def check_types(config: Any) -> None:
    """Raise UserError for a value of a wrong type or not among the choices of its option."""
    for name, members in _hints(type(config)).items():
        _normalized(config, name, members)


def normalized(config: Config) -> Config:
    """A copy with the values that the command line would give: paths as str with ~ expanded, plain Python numbers.

    Data in memory stay as they are.

    Raises:
        UserError: as `check_types`.
    """
    result = copy.copy(config)  # including attributes set by the command line
    for name, members in _hints(type(config)).items():
        setattr(result, name, _normalized(config, name, members))
    return result


@overload
def path_text(option: PathOption) -> str: ...
@overload
def path_text(option: PathOption | None) -> str | None: ...


def path_text(option: PathOption | None) -> str | None:
    """A path option as str. After `normalized` it is one already."""
    return None if option is None else os.fspath(option)


def _hints(kind: type) -> dict[str, tuple[Any, ...]]:
    """By option, the alternatives of its type."""
    return _resolved_hints(cast(Hashable, kind))  # mypy asks its objects to be hashable, not the class


@cache
def _resolved_hints(kind: Any) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(kind)
    return {field.name: tuple(alternatives(hints[field.name])) for field in dataclasses.fields(kind)}


def alternatives(hint: Any) -> list[Any]:
    """The members of a type that is a union, None included; the type itself otherwise. Of a list, those of an item."""
    if get_origin(hint) is list:
        return alternatives(get_args(hint)[0])
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for part in get_args(hint) for member in alternatives(part)]
    return [hint]


def _normalized(config: Any, name: str, members: tuple[Any, ...]) -> Any:
    value = getattr(config, name)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if name in PATHS and isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    if name == "valid" and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = str(value)  # a fraction
    if name == "data" and value is not None and not isinstance(value, str):
        return value  # data in memory, which ulmfit.data.in_memory checks
    for member in members:
        if member is type(None) and value is None:
            return None
        if get_origin(member) is Literal and isinstance(value, str) and value in get_args(member):
            return value
        if member is bool and isinstance(value, bool):
            return value
        if member is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if member is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            return value if isinstance(value, int) else float(value)
        if get_origin(member) is dict and isinstance(value, Mapping):
            return dict(value)
        if member is str and isinstance(value, str) and _is_word(value):
            return as_path(value, f"--{flag(name)}") if name in PATHS else value
    raise UserError(f"--{flag(name)} is {excerpt(value)}; give {_takes(members, value)}")


def is_of_type(kind: type, name: str, value: Any) -> bool:
    """Whether a stored value has a type of the option. True for options that this version does not know.

    It need not be among the choices of this version, because another one may have written it.
    """
    members = _hints(kind).get(name)
    if members is None or (value is None and type(None) in members):
        return True
    kinds = {str if get_origin(member) is Literal else get_origin(member) or member for member in members}
    return type(value) in kinds or (type(value) is int and float in kinds)


def _is_word(value: str) -> bool:
    """Whether a text can be a word of a command line."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return False


def nearest_of(word: str, known: Iterable[str]) -> str | None:
    """The most similar of the known words; None if none is similar."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return near[0] if near else None


def _takes(members: tuple[Any, ...], value: Any) -> str:
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    if any(get_origin(member) is dict for member in members):
        return "a dict of options by name"
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    words = [kinds[member] for member in members if member in kinds]
    if choices:
        words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
    near = difflib.get_close_matches(str(value), choices, n=1)
    return " or ".join(words) + (f" (the nearest is {near[0]})" if near else "")
