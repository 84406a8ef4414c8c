"""Paths as users give them, to any command and any function: `~` is the home directory, `pathlib.Path` is like str.

A shell expands `~` only at the beginning of a word, not in `--data=~/reviews.csv`, and nobody expands it in Python.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from pathlib import PurePath

from ulmfit.errors import UserError
from ulmfit.excerpts import cut
from ulmfit.texts import is_utf_8

# Options of any command that name a file or a folder (--data and --valid may name other things too).
PATHS = frozenset(
    {
        "data",
        "valid",
        "output_dir",
        "init",
        "encoder",
        "tokenizer",
        "config",
        "cache_dir",
        "local_cache",
        "model",
        "output",
        "html",
    }
)
DESCRIBED = "in memory: "  # prefix of the description of data from Python, which stands in config.json for a path
_ENTRY = re.compile(r"(?:^|, *)([A-Za-z_][\w.-]*)=([^:,=/]*):")
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, in the usual file systems


def as_path(given: str | os.PathLike[str] | os.PathLike[bytes], option: str = "") -> str:
    """A path as text, with `~` resolved.

    Args:
        option: its spelling for messages, such as --data. Its value may also be something else than a path.

    Raises:
        UserError: no file system can hold such a name, or the home directory of a user is not known.
    """
    path = os.fsdecode(given)
    what = option or "the path"
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise UserError(
            f"{what} {cut(path)} has characters that names of files cannot have here ({sys.getfilesystemencoding()}); "
            "set PYTHONUTF8=1, or rename it"
        ) from None
    if option == "--output-dir" and not is_utf_8(path):
        raise UserError(f"{what} {cut(path)} is not UTF-8, which the writers of TensorBoard and of weights need; give "
                        "another name")  # fmt: skip
    if b"\0" in encoded:
        raise UserError(f"{what} {cut(path)} holds a null character, which no name has; remove it")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and option != "--valid" and not os.path.lexists(expanded):
        user = expanded.partition("/")[0]
        raise UserError(f"{what} {cut(path)} begins with {cut(user)}, whose home directory is not known; write "
                        f"./{cut(user)} for a file of that name")  # fmt: skip
    for name in expanded.split(os.sep):
        size = len(os.fsencode(name))
        if size > LONGEST_NAME and not set(name) & set("*?["):
            raise UserError(f"{what} holds a name of {size:,} bytes ({cut(name)}) and a file system takes "
                            f"{LONGEST_NAME}; give a shorter one")  # fmt: skip
    if len(os.fsencode(expanded)) > LONGEST_PATH:
        raise UserError(f"{what} {cut(expanded)} is longer than {LONGEST_PATH:,} bytes; give a shorter one")
    return expanded


def entries_of_mixture(data: str) -> list[tuple[str, str, str]]:
    """Name, weight and data of each source, as they are written, of NAME=WEIGHT:DATA,NAME=WEIGHT:DATA; else empty."""
    if not _ENTRY.match(data):
        return []
    starts = list(_ENTRY.finditer(data))
    ends = [match.start() for match in starts[1:]] + [len(data)]
    return [(match[1], match[2], data[match.end() : end]) for match, end in zip(starts, ends, strict=True)]


def without_folders(data: str, whole: Collection[str] = ()) -> str:
    """A value of --data or another path for the eyes of others, without folders: they tell of the machine.

    URLs lose what stands behind `?`, too, and user and password: both may be keys.

    Args:
        whole: names of sources of a mixture whose data stay as they are, such as names on the hub.
    """

    def last(path: str) -> str:
        if "://" in path:
            path = re.split("[?#]", path, maxsplit=1)[0]
            return PurePath(path).name.rpartition("@")[2] or "a URL"
        return PurePath(path).name or path

    sources = entries_of_mixture(data)
    if not sources:
        return last(data)
    return ",".join(f"{name}={weight}:{path if name in whole else last(path)}" for name, weight, path in sources)
