"""Reads the layout of a folder: which files are its documents or tables, which of its folders are classes or splits.

`scan` lists the tree. Left out and counted are hidden files, leftovers of editors and systems, and what is no file:
pipes, devices, dangling links, links back into the tree. `divide` decides whether folders are classes or splits by the
whole picture, because a class may be named Training, dev or test.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ulmfit.data.fingerprint import COMPRESSED
from ulmfit.data.in_memory import SPLIT_NAMES
from ulmfit.errors import UserError, one_line

KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
         ".parquet": "parquet", ".txt": "text", ".tokens": "text"}  # fmt: skip
_SHOWN = 3  # names in the line about what was left out
_LEFTOVER = re.compile(
    r".*\.partial(\.json)?|"  # of a job of predictions
    r".*~|#.*#|~\$.*|.*\.(swp|swo|bak|orig|tmp|part|crdownload)|(eh)?thumbs\.db|desktop\.ini|icon\r|__macosx|"
    r"__pycache__|lost\+found|\$recycle\.bin|system volume information|@eadir|"
    r"_success|_temporary|_metadata|_common_metadata|_spark_metadata|_delta_log",
    re.IGNORECASE | re.DOTALL,
)
_NO_DOCUMENT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|authors|makefile)", re.IGNORECASE)


def kind_of(path: str | Path) -> str | None:
    """How a file of this name is read: csv, tsv, jsonl, parquet or text; None if its name tells of nothing readable."""
    name = Path(path).name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return KINDS.get(Path(name).suffix)


def split_of(name: str) -> str | None:
    """The split that a folder of exactly this name would be, in any case."""
    return SPLIT_NAMES.get(name.lower())


class LeftOut:
    """What a corpus holds beside its documents or tables and is not read, counted by reason."""

    def __init__(self, what: str, root: str | None = None) -> None:
        """`what` is the corpus's name in messages. Paths are shown relative to `root` if it is given."""
        self._what, self._root = what, root
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        self.remarks: list[str] = []  # sentences about what is read in another way than its name may suggest

    def add(self, reason: str, *paths: str) -> None:
        """Count paths under a reason, a plural such as "hidden files"."""
        if not paths:
            return
        self._counts[reason] += len(paths)
        names = self._names.setdefault(reason, [])
        first = paths[: _SHOWN - len(names)]
        names += first if self._root is None else [os.path.relpath(path, self._root) for path in first]

    def is_leftover(self, path: str) -> bool:
        """Whether a file or folder is left out for its name. Such ones are counted."""
        name = os.path.basename(path)
        if name.startswith("."):
            self.add("hidden files", path)
        elif _LEFTOVER.fullmatch(name):
            self.add("leftovers of editors and systems", path)
        else:
            return False
        return True

    def notes(self) -> list[str]:
        """Sentences for the user; none if all was read."""
        listed = []
        for reason, count in self._counts.items():
            names = self._names[reason]
            listed.append(f"{reason} {count:,} ({', '.join(names)}{', ...' if count > len(names) else ''})")
        left_out = [f"{self._what}: left out: {', '.join(listed)}"] if listed else []
        return [one_line(note) for note in self.remarks + left_out]


@dataclass
class Folder:
    """A folder with what can be read of it. The lists are sorted by name."""

    path: str
    texts: list[str] = field(default_factory=list)  # .txt, one document per file (or per line)
    tables: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)  # no suffix; documents if the tree has no .txt
    others: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders)

    def documents(self) -> list[str]:
        """Paths of the .txt files in this folder and below, sorted."""
        return sorted(path for folder in self.walk() for path in folder.texts)

    def is_read(self) -> bool:
        """Whether there are documents, or tables that a split may consist of."""
        return any(folder.texts for folder in self.walk()) or bool(self.tables)

    def classes(self) -> list[Folder]:
        return [folder for folder in self.folders if any(below.texts for below in folder.walk())]


def scan(root: str, left_out: LeftOut) -> Folder:
    """List a folder, and unless it holds tables itself, all folders below.

    Raises:
        UserError: a folder cannot be listed.
    """
    tree = Folder(root)
    real_root = os.path.realpath(root)
    waiting = [tree]
    while waiting:
        folder = waiting.pop()
        for entry in _entries(folder.path):
            _sort(entry, folder, real_root, left_out)
        if folder is tree and tree.tables:
            break
        waiting += reversed(folder.folders)
    _take_plain(tree)
    return tree


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {path} cannot be read ({error.strerror}); make it readable, or move it away") from None


def _sort(entry: os.DirEntry[str], folder: Folder, real_root: str, left_out: LeftOut) -> None:
    if left_out.is_leftover(entry.path):
        return
    try:
        mode = entry.stat().st_mode  # of what a link points to
    except OSError:
        left_out.add("dangling links" if entry.is_symlink() else "files that vanished", entry.path)
        return
    kind = kind_of(entry.name)
    if stat.S_ISDIR(mode):
        if kind is not None:
            left_out.add("folders named like files", entry.path)
        elif entry.is_symlink() and _leads_back(entry.path, folder.path, real_root):
            left_out.add("links back into the folder", entry.path)
        else:
            folder.folders.append(Folder(entry.path))
    elif not stat.S_ISREG(mode):
        left_out.add("pipes, sockets and devices", entry.path)
    elif kind is not None:
        (folder.texts if kind == "text" else folder.tables).append(entry.path)
    else:
        stem, _, suffix = entry.name.rpartition(".")
        is_plain = (not stem or not suffix or suffix.isdecimal()) and not _NO_DOCUMENT.match(entry.name)
        (folder.plain if is_plain else folder.others).append(entry.path)


def _leads_back(path: str, parent: str, real_root: str) -> bool:
    """Whether a link to a folder leads to what is read anyway, or to a folder that contains the link."""
    real = Path(os.path.realpath(path))
    if Path(real_root).is_relative_to(real) or Path(os.path.realpath(parent)).is_relative_to(real):
        return True
    if not real.is_relative_to(real_root):
        return False
    inside = real.relative_to(real_root).parts  # a hidden folder is not read, so a link may lead there
    return not any(name.startswith(".") or _LEFTOVER.fullmatch(name) for name in inside)


def _take_plain(tree: Folder) -> None:
    """Take files without suffix in folders as documents, if the tree has no other files (20 Newsgroups, mail)."""
    below = [folder for folder in tree.walk() if folder is not tree]
    others = [path for folder in below for path in (*folder.tables, *folder.others)]
    if not tree.is_read() and all(_NO_DOCUMENT.match(os.path.basename(path)) for path in others):
        for folder in below:
            folder.texts, folder.plain = folder.plain, []


def divide(tree: Folder, left_out: LeftOut) -> tuple[list[Folder], list[Folder]]:
    """(folders that are splits, folders that are classes) of a folder. If both are given, the classes are training's.

    A folder unsup is a split among splits, and among classes it holds unlabelled texts.

    Raises:
        UserError: a folder that is named like a split may also be a class.
    """
    full = [folder for folder in tree.folders if folder.is_read()]
    left_out.add("folders without documents", *(f.path for f in tree.folders if not f.is_read()))
    unsup = [folder for folder in full if split_of(folder.name) == "unsup"]
    named = [folder for folder in full if split_of(folder.name) and folder not in unsup]
    others = [folder for folder in full if not split_of(folder.name)]
    if not named:
        return [], full
    if not others:
        return named + unsup, []
    kinds = {split_of(folder.name) for folder in named}
    nested = all(folder.tables or folder.classes() for folder in named)
    if nested and "train" in kinds and len(kinds) > 1:
        left_out.add("folders beside the splits", *(folder.path for folder in others))
        return named + unsup, []
    inner = {inside.name for folder in named for inside in folder.classes()}
    if nested and inner and "train" not in kinds and inner <= {folder.name for folder in others}:
        return named, others + unsup  # neg, pos and test/neg, test/pos
    alike = {bool(folder.texts) for folder in (*named, *others)}
    if kinds == {"train"} and len(named) == 1 and len(others) > 1 and len(alike) == 1:
        left_out.remarks.append(
            f"{tree.path}: the folder {named[0].name} is read as a class beside {_names(others)}, not as a split"
        )
        return [], full
    one = len(named) == 1
    raise UserError(
        f"folder {tree.path} holds {_names(named)}, named like {'a split' if one else 'splits'}, beside "
        f"{_names(others)}; rename {'it' if one else 'them'} if all are classes, or move {_names(others)} away"
    )


def class_name(folder: Folder) -> str:
    """The name of a class folder, in UTF-8 whatever the locale is.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return os.fsencode(folder.name).decode()
    except UnicodeDecodeError:
        raise UserError(f"the name of the class folder {folder.path} is not UTF-8; rename it") from None


def suffixes(tree: Folder) -> str:
    """The commonest suffixes of the files that are not read, for the message about a folder without documents."""
    files = [path for folder in tree.walk() for path in (*folder.others, *folder.plain)]
    counts = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in files)
    return ", ".join(f"{count:,} of {suffix}" for suffix, count in counts.most_common(_SHOWN))


def _names(folders: Iterable[Folder]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
