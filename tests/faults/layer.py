"""Makes one call of the file system fail, or all from it on, in this process and below given folders.

Python's own calls are replaced (`open` and writes to what it opened, os.replace, os.fsync, flock, ...), and those of
safetensors, which is written in Rust and reports its errors in another way. Each call that a fault can hit is counted.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch

WRITES = frozenset({"create", "write", "fsync", "mkdir", "rename"})
#: What happens -> (error number; None: half of the bytes are written; the calls that it hits).
FAULTS: dict[str, tuple[int | None, frozenset[str]]] = {
    "full": (errno.ENOSPC, frozenset({"create", "write", "fsync", "mkdir"})),
    "failing": (errno.EIO, WRITES | {"read", "open"}),
    "denied": (errno.EACCES, frozenset({"create", "mkdir", "rename"})),
    "locks": (errno.ENOLCK, frozenset({"lock"})),
    "short": (None, frozenset({"write"})),
}

LASTING = ("full", "denied")  # these stay; the others hit a single call


class Layer:
    """A file system with one fault.

    Args:
        folders: only paths below them are hit.
        fault: a key of `FAULTS`.
        at: the number of the first call that fails, from 1; 0 only counts.
        lasting: all later calls fail too, as on a disk that is full.

    Attributes:
        counts: how many calls of each kind there were.
        hits: the kinds of the calls that it hit.
    """

    def __init__(self, folders: Sequence[Path], fault: str, at: int = 0, *, lasting: bool = False) -> None:
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.code, self.kinds = FAULTS[fault]
        self.at, self.lasting = at, lasting
        self.counts: Counter[str] = Counter()
        self.hits: list[str] = []

    def call(self, kind: str, path: Any) -> bool:
        """Count a call. Returns whether only half of it happens; raises the fault's error if it fails."""
        if isinstance(path, int):
            path = _path_of(path)
        if not self._is_ours(path):
            return False
        self.counts[kind] += 1
        number = sum(self.counts[kind] for kind in self.kinds)
        if kind not in self.kinds or not self.at or number < self.at or (number > self.at and not self.lasting):
            return False
        self.hits.append(kind)
        if self.code is None:
            return True
        raise OSError(self.code, os.strerror(self.code), os.fspath(path))

    def _is_ours(self, path: Any) -> bool:
        try:
            path = os.fsdecode(path)
            place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        except (TypeError, ValueError):
            return False
        return any(place == folder or place.startswith(folder + os.sep) for folder in self.folders)

    @contextmanager
    def installed(self) -> Iterator[Layer]:
        """Context in which the calls of this process are replaced."""
        layer, real_open, real_os_open = self, builtins.open, os.open

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                half = layer.call("write", self.name if isinstance(self.name, str) else self.fileno())
                return super().write(view[: (len(view) + 1) // 2] if half else view)

        def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
                   newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
            writes = set(mode) & set("wax+")
            if isinstance(file, int) or not layer._is_ours(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            layer.call("create" if set(mode) & set("wax") else "open", file)
            if not writes:
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        def os_opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            layer.call("create" if flags & os.O_CREAT else "open", path)
            return real_os_open(path, flags, *rest, **more)

        def before(kind: str, real: Callable, place: int = 0) -> Callable:
            def call(*arguments: Any, **options: Any) -> Any:
                layer.call(kind, arguments[place])
                return real(*arguments, **options)

            return call

        def in_rust(kind: str, real: Callable, place: int) -> Callable:
            def call(*arguments: Any, **options: Any) -> Any:
                try:
                    layer.call(kind, arguments[place])
                except OSError as error:
                    if kind == "write":
                        Path(arguments[place]).write_bytes(b"a part of the tensors")
                    text = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                    raise safetensors.SafetensorError(text) from None
                return real(*arguments, **options)

            return call

        patches = [
            (builtins, "open", opened),
            (io, "open", opened),
            (os, "open", os_opened),
            (os, "fsync", before("fsync", os.fsync)),
            (os, "mkdir", before("mkdir", os.mkdir)),
            (os, "replace", before("rename", os.replace, 1)),
            (os, "rename", before("rename", os.rename, 1)),
            (os, "link", before("create", os.link, 1)),
            (os, "pread", before("read", os.pread)),
            (os, "pwrite", before("write", os.pwrite)),
            (fcntl, "flock", before("lock", fcntl.flock)),
            (safetensors.torch, "serialize_file", in_rust("write", safetensors.torch.serialize_file, 1)),
            (safetensors.torch, "safe_open", in_rust("open", safetensors.torch.safe_open, 0)),
            (safetensors, "safe_open", in_rust("open", safetensors.safe_open, 0)),
        ]
        with mock.patch.object(*patches[0]):
            stack = [mock.patch.object(*patch) for patch in patches[1:]]
            for patch in stack:
                patch.start()
            try:
                yield self
            finally:
                for patch in reversed(stack):
                    patch.stop()


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
