"""Random reads of the token files of a cache entry.

The files are read and not mapped. If a mapped file is truncated or its disk fails, an access ends the process by
SIGBUS; a read gives an error that can be told to the user.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ulmfit.batches.checksums import BLOCK, num_blocks
from ulmfit.errors import UserError

MANIFEST = "manifest.json"


class TokenFiles:
    """The shards of one entry. Positions count tokens over all shards. Several threads may read.

    Args:
        folder: the entry.
        sizes: file name -> bytes of each shard, in order.
        checksums: uint32, of the blocks of all shards; None: not known (a cache of version 0.2.0).
    """

    def __init__(self, folder: Path, sizes: dict[str, int], dtype: np.dtype, checksums: np.ndarray | None) -> None:
        self.folder, self.dtype = folder, dtype
        self._names, self._sizes = list(sizes), list(sizes.values())
        self._starts = np.cumsum([0, *self._sizes[:-1]]) // dtype.itemsize
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        for name in self._names:
            self._files.append(os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC))
        blocks = [num_blocks(size) for size in self._sizes]
        self._first_blocks = np.cumsum([0, *blocks[:-1]])
        if checksums is not None and len(checksums) != sum(blocks):
            raise ValueError("the number of checksums is wrong")
        self._checksums = checksums
        self._unread = np.ones(sum(blocks), dtype=bool)  # blocks that were not checked yet
        self._num_unread = 0 if checksums is None else sum(blocks)
        self._counting = threading.Lock()

    @property
    def sizes(self) -> dict[str, int]:
        """File name -> bytes of each shard, in order."""
        return dict(zip(self._names, self._sizes, strict=True))

    @property
    def checksums(self) -> np.ndarray | None:
        """uint32, of the blocks of all shards in order; None: not known."""
        return self._checksums

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read `lengths[k]` tokens from position `starts[k]` on, for all k, concatenated. A piece is within one shard.

        Raises:
            UserError: a file is shorter than it was, or a block does not match its checksum.
            OSError: it cannot be read.
        """
        item = self.dtype.itemsize
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        begins, sizes = (starts - self._starts[shards]) * item, lengths * item
        ends = np.cumsum(sizes)
        ids = np.empty(int(ends[-1]) // item if len(ends) else 0, dtype=self.dtype)
        if self._num_unread:
            some = sizes > 0
            self._check(shards[some], begins[some], sizes[some])
        target = ids.view(np.uint8).data
        for shard, begin, size, end in np.stack([shards, begins, sizes, ends]).T.tolist():
            if size:
                target[end - size : end] = self._read(shard, begin, size)
        return ids

    def _read(self, shard: int, begin: int, size: int) -> bytes:
        try:
            data = os.pread(self._files[shard], size, begin)
            while len(data) < size:  # a system call reads 2 GiB at most
                more = os.pread(self._files[shard], size - len(data), begin + len(data))
                if not more:
                    raise self._damaged(shard, "is shorter than it was")
                data += more
        except OSError as error:
            path = self.folder / self._names[shard]
            raise OSError(error.errno, f"the token cache cannot be read ({error.strerror})", str(path)) from error
        return data

    def _check(self, shards: np.ndarray, begins: np.ndarray, sizes: np.ndarray) -> None:
        """Check the blocks of these pieces that were not read before."""
        assert self._checksums is not None
        before = self._first_blocks[shards]
        first, last = before + begins // BLOCK, before + (begins + sizes - 1) // BLOCK
        if not (self._unread[first].any() or self._unread[last].any() or (last - first > 1).any()):
            return
        several = [np.arange(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        blocks = np.unique(np.concatenate(several))
        for block in blocks[self._unread[blocks]].tolist():
            shard = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
            begin = (block - int(self._first_blocks[shard])) * BLOCK
            content = self._read(shard, begin, min(BLOCK, self._sizes[shard] - begin))
            if zlib.crc32(content) != int(self._checksums[block]):
                raise self._damaged(shard, "does not match its checksum")
            with self._counting:
                self._num_unread -= int(self._unread[block])  # another thread may have checked it meanwhile
                self._unread[block] = False

    def _damaged(self, shard: int, how: str) -> UserError:
        """Without its manifest the entry counts as incomplete, and the next start builds it again."""
        with suppress(OSError):
            (self.folder / MANIFEST).unlink()
        cure = "start the same command again, it builds the cache anew"
        if (self.folder / MANIFEST).exists():
            cure = f"delete {self.folder} and start the same command again"
        return UserError(f"the token cache is damaged: {self.folder / self._names[shard]} {how}; {cure}")


def _close(files: Sequence[int]) -> None:
    for file in files:
        with suppress(OSError):
            os.close(file)
