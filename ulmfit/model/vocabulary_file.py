"""Reads the vocabulary file of fastai weights: .pkl (fastai's itos), .json or text. Nothing in it is executed.

A pickle is a program for a stack machine. Python's reader executes calls in it, and a file of a few bytes can make it
allocate gigabytes (an entry of the memo with the number 2**30; many empty sets of one byte each). So this module
interprets pickles itself. It knows the few instructions that write one list of strings, and no others.
"""

from __future__ import annotations

import io
import os
import pickletools
from pathlib import Path
from typing import Any

from ulmfit.errors import UserError
from ulmfit.files import parse_json

#: Larger files are refused. A vocabulary of 60,000 words takes half a megabyte.
MOST_BYTES = 16 * 2**20
_CURE = "save the vocabulary as a list of strings, in .pkl, .json or .txt"

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_STRINGS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})
_REMEMBER = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_RECALL = frozenset({"GET", "BINGET", "LONG_BINGET"})


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    """Read words in id order from .pkl (fastai's itos), .json (a list, or word -> id) or text (one per line).

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
        words = _words(content, path.suffix)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is no list of words ({str(error)[:80]}); {_CURE}") from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} is no list of words; {_CURE}")
    return words


def _words(content: bytes, suffix: str) -> Any:
    if suffix in (".pkl", ".pickle"):
        return unpickle_words(content)
    text = content.decode("utf-8")
    if suffix != ".json":
        return text.removesuffix("\n").split("\n")
    words = parse_json(text)
    if isinstance(words, dict) and sorted(words.values()) == list(range(len(words))):
        words = sorted(words, key=words.__getitem__)
    return words


def unpickle_words(content: bytes) -> list[str]:
    """The list of strings in a pickle.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    mark = object()
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    made = False  # one list only, because a file of empty lists would take fifty times its size
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        name = opcode.name
        if name in _STRINGS:
            stack.append(argument)
        elif name == "APPEND":
            word = stack.pop()
            _list(stack[-1]).append(word)
        elif name == "MARK":
            stack.append(mark)
        elif name in ("APPENDS", "LIST"):
            place = len(stack) - 1 - stack[::-1].index(mark)
            words = stack[place + 1 :]
            del stack[place:]
            if name == "APPENDS":
                _list(stack[-1]).extend(words)
            elif made:
                raise ValueError("it holds several lists")
            else:
                stack.append(words)
                made = True
        elif name == "EMPTY_LIST":
            if made:
                raise ValueError("it holds several lists")
            stack.append([])
            made = True
        elif name in _REMEMBER:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in _RECALL:
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            called = " ".join(map(str, stack[-2:])) if name == "STACK_GLOBAL" else argument
            raise ValueError(f"it asks for {str(called)[:60].replace(' ', '.')}")
        elif name not in _IGNORED:
            raise ValueError(f"it holds more than strings: {name}")
    (words,) = stack
    return _list(words)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("its parts are in no list")
    return value
