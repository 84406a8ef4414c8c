"""From the words of a command line to the dataclass of its options; each mistake is one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ulmfit.config import ALTERNATIVES, expand_paths, load_options
from ulmfit.errors import UserError
from ulmfit.limits import check_numbers
from ulmfit.option_types import Dataclass, alternatives
from ulmfit.option_types import flag as spelled
from ulmfit.paths import as_path

Options = TypeVar("Options", bound=Dataclass)

_OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(=.*)?", re.DOTALL)
_KINDS = {int: "a whole number", float: "a number", str: "a text"}


def parse(kind: type[Options], words: Sequence[str]) -> Options:
    """The options on a command line, over those of `--config FILE` if given; `~` at a path's beginning is resolved.

    Raises:
        UserError: an option is unknown or missing, or its value does not fit or is out of its limits.
    """
    import tyro

    words, nested = _take_nested(kind, words)
    options, texts = _sort(kind, words)
    words = [*options, *(["--", *texts] if texts else [])]
    try:
        with redirect_stderr(io.StringIO()):  # its report of a mistake is a page long
            default = defaults(kind, words)
            parsed = expand_paths(
                tyro.cli(kind, args=words) if default is None else tyro.cli(kind, args=words, default=default)
            )
    except SystemExit:
        raise UserError("the options do not fit together; --help lists what each takes") from None
    flags = {option.partition("=")[0] for option in options}
    if "--config" in flags:
        _drop_alternatives(parsed, flags)
    check_numbers(vars(parsed))
    for prefix, values in nested.items():
        setattr(parsed, prefix, getattr(parsed, prefix) | values)
    if hasattr(kind, "on_command_line"):
        parsed.on_command_line = frozenset(  # type: ignore[attr-defined]  # a ClassVar that one instance has for itself
            field.name
            for field in dataclasses.fields(kind)
            if flags & {flag_of(field.name), f"--no-{flag_of(field.name)[2:]}"}
            or ("--config" in flags and getattr(parsed, field.name) is not None)
        )
    return parsed


def _drop_alternatives(parsed: Any, flags: set[str]) -> None:
    """Of alternatives, put back what came from the file of --config where the command line gives another one."""
    for names in ALTERNATIVES:
        kept = {name for name in names if flag_of(name) in flags}
        for name in names - kept if kept else ():
            if hasattr(parsed, name):
                setattr(parsed, name, getattr(type(parsed)(), name))


def parse_together(kind: type[Options], words: Sequence[str]) -> Options:
    """As `parse`; a mistake that this process alone finds (a missing --config file) is told to the others of a launch.

    Those meet this one in the first collective of the training that they begin.
    """
    try:
        return parse(kind, words)
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from ulmfit.distributed.group import Group

            Group().check_in(error)
        raise


def defaults(kind: type[Options], words: Sequence[str]) -> Options | None:
    """What options that are not given become: those of `--config FILE` where the command line has it.

    None for a command that cannot do without some options.
    """
    words = list(_before_texts(words))
    for place, word in enumerate(words if "config" in fields_of(kind) else []):
        flag, equals, file = word.partition("=")
        if flag == "--config":
            return load_options(as_path(file if equals else [*words, ""][place + 1], "--config"), kind)
    return None if required(kind) else kind()


def wants_help(words: Sequence[str]) -> bool:
    """Whether a command line asks for the help."""
    return any(word in ("-h", "--help") for word in _before_texts(words))


def fields_of(kind: type) -> dict[str, Any]:
    """Name and type of each option, but for those of `nested_of`."""
    hints, nested = get_type_hints(kind), nested_of(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name not in nested}


def nested_of(kind: type) -> dict[str, type]:
    """By field, the options that `--FIELD.OPTION` takes."""
    return getattr(kind, "nested", {})


def required(kind: type) -> list[str]:
    """Names of the fields that have no default."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    ]


def is_texts(hint: Any) -> bool:
    """Whether a field takes the words without an option: it is declared as Positional[tuple[str, ...]]."""
    return get_origin(hint) is tuple


def is_switch(hint: Any) -> bool:
    """Whether an option takes no value: `--name`, `--no-name`."""
    return members(hint) == (bool,)


def flag_of(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + spelled(name)


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """`did you mean ...?` where something has a similar name."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def takes(hint: Any) -> str:
    """What values an option accepts, in words."""
    words = [_KINDS.get(member) or ", ".join(map(str, get_args(member))) for member in members(hint)]
    if len(words) == 1 and get_args(members(hint)[0]):
        return f"one of {words[0]}"
    return " or ".join(words)


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, without None."""
    return tuple(member for member in alternatives(hint) if member is not type(None))


def _before_texts(words: Sequence[str]) -> Sequence[str]:
    return words[: words.index("--")] if "--" in words else words


def _take_nested(kind: type, words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words without `--FIELD.OPTION VALUE`, and by field the values of these options by name."""
    before = list(_before_texts(words))
    behind = list(words[len(before) :])
    own: list[str] = []
    taken: dict[str, list[str]] = {}
    while before:
        word = before.pop(0)
        field, dot, option = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and field in nested_of(kind)):
            own.append(word)
            continue
        name, equals, _ = option.partition("=")
        hint = fields_of(nested_of(kind)[field]).get(name.removeprefix("no-").replace("-", "_"))
        taken.setdefault(field, []).append(f"--{option}")
        if not (equals or is_switch(hint) or not before or before[0].startswith("--")):
            taken[field].append(before.pop(0))
    values = {}
    for field, options in taken.items():
        try:
            parsed: Any = parse(nested_of(kind)[field], options)
        except UserError as error:
            raise UserError(str(error).replace("--", f"--{field}.")) from None
        values[field] = {name: getattr(parsed, name) for name in sorted(parsed.on_command_line)}
    return own + behind, values


def _sort(kind: type, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--name=value` of the options, and the words that belong to none. What is behind `--` belongs to none."""
    hints = fields_of(kind)
    texts_field = next((name for name, hint in hints.items() if is_texts(hint)), None)
    flags = {flag_of(name): hint for name, hint in hints.items() if name != texts_field}
    flags |= {f"--no-{flag[2:]}": hint for flag, hint in flags.items() if is_switch(hint)}
    options, texts, given = [], [], set()
    rest = list(_before_texts(words))
    behind = list(words[len(rest) + 1 :])
    while rest:
        word = rest.pop(0)
        match = _OPTION.fullmatch(word)
        if not match and word.startswith("--") and texts_field is None:
            raise UserError(f"there is no option {word.partition('=')[0]}; see --help")
        if not match:
            texts.append(word)
            continue
        flag, value = match[1].replace("_", "-"), match[2]
        if flag not in flags:
            nested = [
                prefix for prefix, part in nested_of(kind).items() if flag[2:].replace("-", "_") in fields_of(part)
            ]
            cure = " or ".join(f"--{prefix}.{flag[2:]}" for prefix in nested)
            cure = f"give {cure}" if cure else nearest(flag, flags, "see --help")
            raise UserError(f"there is no option {flag}; {cure}")
        hint = flags[flag]
        given.add(flag)
        if is_switch(hint):
            if value is not None:
                raise UserError(f"{flag} takes no value; write {flag} alone, or --no-{flag[2:]} for the opposite")
            # What may also be None takes a value in tyro.
            own = flag_of(flag.removeprefix("--no-")) if flag.startswith("--no-") else flag
            options.append(flag if hint is bool else f"{own}={own == flag}")
            continue
        if value is None and (not rest or _OPTION.fullmatch(rest[0])):
            cure = "give a run's config.json" if flag == "--config" else f"it takes {takes(hint)}"
            raise UserError(f"{flag} needs a value; {cure}")
        value = rest.pop(0) if value is None else value[1:]
        if not _readable(value, hint):
            raise UserError(f"{flag} {value} does not fit; it takes {takes(hint)}")
        options.append(f"{flag}={value}")
    texts += behind
    if texts and texts_field is None:
        cure = f"to train on a file, write --data {texts[0]}" if "--data" in flags else "see --help"
        raise UserError(f"{texts[0]} belongs to no option; {cure}")
    for name in required(kind):
        if name == texts_field and not texts:
            raise UserError(f"{getattr(kind, 'metavars', {}).get(name, name.upper())} is missing; see --help")
        if name != texts_field and flag_of(name) not in given:
            raise UserError(f"{flag_of(name)} is missing; see --help")
    return options, texts


def _readable(value: str, hint: Any) -> bool:
    if value == "None" and type(None) in get_args(hint):
        return True
    for member in members(hint):
        if get_origin(member) is Literal:
            if value in map(str, get_args(member)):
                return True
            continue
        try:
            member(value)
            return True
        except ValueError:
            continue
    return False
