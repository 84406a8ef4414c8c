"""What `--help` prints: the options of a command in groups, a line each where it fits."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ulmfit.cli.option_groups import GROUPS
from ulmfit.cli.options import fields_of, flag_of, is_switch, is_texts, members, nested_of, required
from ulmfit.config import TrainConfig
from ulmfit.paths import PATHS

if TYPE_CHECKING:
    from ulmfit.cli.commands import Command

COLUMN = 28  # where explanations begin
WIDEST = 120
_DEFAULT = re.compile(r"\s*\(default: (?:[^()]|\([^()]*\))*\)")


def overview(commands: Mapping[str, Command]) -> str:
    """The help of `ulmfit` itself: each command with a line."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {_first_line(command.options)}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: ulmfit COMMAND [OPTIONS]",
            "",
            "ULMFiT: a text classifier from a language model. Without --data the commands use an embedded sample.",
            "",
            "commands",
            *lines,
            "",
            "`ulmfit COMMAND --help` lists the options of a command, each with its default.",
        ]
    )


def command_help(command: Command, prog: str, default: Any) -> str:
    """The help of a command.

    Args:
        prog: how the user has called it, for the usage and the example.
        default: options that hold the defaults to show; None for those of the class.
    """
    kind = command.options
    hints, docs, needed = fields_of(kind), field_docs(kind), required(kind)
    texts = [name for name, hint in hints.items() if is_texts(hint)]
    usage = [_head(name, hints[name], False) for name in needed if name not in texts]
    words = {name: getattr(kind, "metavars", {}).get(name, f"{name.upper()} ...") for name in texts}
    usage += [words[name] if name in needed else f"[{words[name]}]" for name in texts]
    lines = [" ".join(["usage:", prog, *usage, "[OPTIONS]"]), "", *_wrapped(" ".join(_doc(kind).split()), 0)]
    groups = GROUPS if issubclass(kind, TrainConfig) else getattr(kind, "groups", {"options": _own_first(kind)})
    for group, names in groups.items():
        lines += ["", group]
        for name in names:
            if name in nested_of(kind):
                lines += _entry(f"--{name}.OPTION VALUE", docs[name].rstrip("."))
            if name not in hints:
                continue
            shown = kind if default is None else default  # fields have their defaults on the class
            head = words[name] if name in texts else _head(name, hints[name], getattr(shown, name, None))
            lines += _entry(head, _explained(kind, name, docs[name], default))
    lines += _entry("--help", "Show this")
    return "\n".join([*lines, "", "example", f"  {prog} {command.example}"])


def _own_first(kind: type) -> tuple[str, ...]:
    """The names of the fields, inherited ones last."""
    return tuple(sorted(fields_of(kind), key=lambda name: name not in kind.__annotations__))


def field_docs(kind: type) -> dict[str, str]:
    """The docstring of each field of a dataclass, in one line; a subclass's wins."""
    docs = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
            assert isinstance(definition, ast.ClassDef)
            for field, doc in pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    docs[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    return docs


def _explained(kind: type, name: str, doc: str, default: Any) -> str:
    """A field's docstring with its default, unless the docstring tells it in words."""
    (own,) = (field.default for field in dataclasses.fields(kind) if field.name == name)
    value = own if default is None else getattr(default, name)
    doc = doc.rstrip(".")
    if value is dataclasses.MISSING:
        return f"{doc} (required)"
    if value != own:
        doc = _DEFAULT.sub("", doc)
    if _DEFAULT.search(doc) or value == ():
        return doc
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"{doc} (default: {shown})"


def _head(name: str, hint: Any, value: Any) -> str:
    flag = flag_of(name)
    if not is_switch(hint):
        return f"{flag} {'PATH' if name in PATHS else _metavar(hint)}"
    return flag if value is False else f"{flag}, --no-{flag[2:]}"


def _metavar(hint: Any) -> str:
    names = {int: "INT", float: "NUMBER", str: "STR"}
    return "|".join(
        "|".join(map(str, get_args(member))) if get_origin(member) is Literal else names[member]
        for member in members(hint)
    )


def _doc(kind: type) -> str:
    assert kind.__doc__ is not None, "the docstring of an options class is its help"
    return kind.__doc__


def _first_line(kind: type) -> str:
    return inspect.cleandoc(_doc(kind)).splitlines()[0].rstrip(".")


def _entry(head: str, text: str) -> list[str]:
    head = f"  {head}"
    lines = _wrapped(text, COLUMN)
    if len(head) + 2 > COLUMN:
        return [head, *lines]
    return [head.ljust(COLUMN) + lines[0][COLUMN:], *lines[1:]]


def _wrapped(text: str, indent: int) -> list[str]:
    width = max(60, min(WIDEST, shutil.get_terminal_size().columns))
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )
