"""Reads the vocabulary file of fastai weights: .pkl (fastai's itos), .json or text. Nothing in it is executed.

A pickle is a program for a stack machine. Python's reader executes calls in it, and a file of a few bytes can make it
allocate gigabytes (an entry of the memo with the number 2**30; many empty sets of one byte each). So this module
interprets pickles itself. It knows the few instructions that write lists of strings, and fastai's two types of lists,
which it reads as lists without importing them. It knows no others.
"""

from __future__ import annotations

import io
import os
import pickletools
from pathlib import Path
from typing import Any

from ulmfit.errors import UserError
from ulmfit.files import parse_json
from ulmfit.texts import is_utf_8

#: Larger files are refused. A vocabulary of 60,000 words takes half a megabyte.
MOST_BYTES = 16 * 2**20
_CURE = "save the vocabulary as a list of strings, in .pkl, .json or .txt"

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_STRINGS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "INT", "NEWTRUE", "NEWFALSE", "NONE"})
_REMEMBER = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_RECALL = frozenset({"GET", "BINGET", "LONG_BINGET"})
#: The types of `learn.dls.vocab` in fastai 2. An object of them is its attributes; `items` holds the list.
_LISTS = frozenset({"fastcore.foundation L", "fastai.data.transforms CategoryMap"})
_MOST_REMEMBERED = MOST_BYTES // 4  # a word takes four bytes at least; an entry of the memo a hundred in memory
_MOST_PARTS = 16  # lists, dicts and open marks: a file of empty ones would take fifty times its size


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    """Read words in id order from .pkl (fastai's itos), .json (a list, or word -> id) or text (one per line).

    Raises:
        UserError: the file is missing, too large, or no list of words.
    """
    return read_words_and_labels(path)[0]


def read_words_and_labels(path: str | os.PathLike) -> tuple[list[str], list[str] | None]:
    """As `read_vocabulary`, and the names of the classes where a classifier's `dls.vocab` was saved: [words, classes].

    Raises:
        UserError: the file is missing, too large, or no list of words.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the weights' vocabulary") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 2**20} MiB, too much for a list of words; {_CURE}")
    try:
        words = _words(content, path.suffix.lower())
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is no list of words ({str(error)[:80]}); {_CURE}") from error
    if _is_texts(words):
        return words, None
    if isinstance(words, list) and len(words) == 2 and all(map(_is_texts, words)):
        return words[0], words[1]
    raise UserError(f"{path} is no list of words; {_CURE}")


def _is_texts(words: Any) -> bool:
    """Whether it is a list of texts. JSON and pickles may hold halves of surrogate pairs, which are no text."""
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) and is_utf_8(word) for word in words)


def _words(content: bytes, suffix: str) -> Any:
    if suffix in (".pkl", ".pickle"):
        return unpickle_words(content)
    text = content.decode("utf-8-sig")
    if suffix != ".json":
        # As Windows ends lines; a word may end in \r where the lines do not.
        lines = text.removesuffix("\n").split("\n")
        return [line[:-1] for line in lines] if all(line.endswith("\r") for line in lines) else lines
    words = parse_json(text)
    if isinstance(words, dict) and sorted(words.values()) == list(range(len(words))):
        words = sorted(words, key=words.__getitem__)
    return words


class _Type:
    """A type that a pickle names. It is not imported."""


class _Object:
    """An object of fastai's list types. Its attributes but for the items are forgotten."""

    def __init__(self) -> None:
        self.items: Any = None


def unpickle_words(content: bytes) -> list[Any]:
    """The list in a pickle: of strings, or of such lists.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    return _list(_Machine().run(content))


class _Machine:
    """The stack machine of pickles, without calls."""

    def __init__(self) -> None:
        self._mark = object()
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}
        self._parts = self._marks = 0

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            self._step(opcode.name, argument)
        (result,) = self._stack
        return _plain(result)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _STRINGS or name in _NUMBERS:
            stack.append(argument)
        elif name == "APPEND":
            word = stack.pop()
            _list(stack[-1]).append(word)
        elif name == "MARK":
            self._marks += 1
            if self._marks > _MOST_PARTS:
                raise ValueError("it holds several lists")
            stack.append(self._mark)
        elif name == "APPENDS":
            words = self._popped()
            _list(stack[-1]).extend(words)
        elif name == "LIST":
            words = self._popped()
            stack.append(self._part(words))
        elif name == "EMPTY_LIST":
            stack.append(self._part([]))
        elif name == "EMPTY_DICT":
            stack.append(self._part({}))
        elif name == "DICT":
            stack.append(self._part(_attributes(self._popped())))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _dict(stack[-1]).update(_attributes([key, value]))
        elif name == "SETITEMS":
            pairs = self._popped()
            _dict(stack[-1]).update(_attributes(pairs))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            if arguments != () or not isinstance(kind, _Type):
                raise ValueError("it calls a type")
            stack.append(self._part(_Object()))
        elif name == "BUILD":
            state = _dict(stack.pop())
            if not isinstance(stack[-1], _Object):
                raise ValueError("it sets attributes of another type")
            stack[-1].items = state.get("items")
        elif name in _REMEMBER:
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            if len(self._memo) > _MOST_REMEMBERED:
                raise ValueError("it remembers more than words")
        elif name in _RECALL:
            stack.append(self._memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            called = " ".join(map(str, stack[-2:])) if name == "STACK_GLOBAL" else str(argument)
            if name == "INST" or called not in _LISTS:
                raise ValueError(f"it asks for {called[:60].replace(' ', '.')}")
            if name == "STACK_GLOBAL":
                del stack[-2:]
            stack.append(_Type())
        elif name not in _IGNORED:
            raise ValueError(f"it holds more than strings: {name}")

    def _popped(self) -> list[Any]:
        """What stands above the mark, which is removed too."""
        place = len(self._stack) - 1
        while self._stack[place] is not self._mark:  # from its end: a copy of a long stack for each mark takes hours
            place -= 1
        values = self._stack[place + 1 :]
        del self._stack[place:]
        self._marks -= 1
        return values

    def _part(self, part: Any) -> Any:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise ValueError("it holds several lists")
        return part


def _attributes(pairs: list[Any]) -> dict[str, Any]:
    """The entry `items` of keys and values in turn."""
    found = dict(zip(map(str, pairs[::2]), pairs[1::2], strict=True))
    return {"items": found["items"]} if "items" in found else {}


def _plain(value: Any, depth: int = 4) -> Any:
    """`value` with the objects in it as the lists that they hold. A list of lists is followed `depth` levels down."""
    while isinstance(value, _Object) and depth:
        value, depth = value.items, depth - 1
    if isinstance(value, list) and any(isinstance(part, list | _Object) for part in value):
        if not depth or len(value) > _MOST_PARTS:
            raise ValueError("it holds several lists")
        return [_plain(part, depth - 1) for part in value]
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("its parts are in no list")
    return value


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its attributes are in no dict")
    return value
