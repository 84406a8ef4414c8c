"""CRC-32 checksums of the files of a token cache. They find bits that a disk or a copy has changed.

A column is checked as a whole when it is read, which is when the cache is opened. Tokens have a checksum for each
block, and a block is checked when it is first read, because reading all of a large cache first would take minutes.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

BLOCK = 32 * 1024  # bytes; a random read of a disk fetches as much anyway


class BlockSums:
    """Checksums of the blocks of a file that is being written.

    Attributes:
        crc, size: of the unfinished last block.
    """

    def __init__(self, crc: int = 0, size: int = 0) -> None:
        self.crc, self.size = crc, size

    def add(self, data: memoryview) -> np.ndarray:
        """Add bytes of the file. Returns the checksums of the blocks that they complete, uint32."""
        sums = []
        while len(data):
            part = data[: BLOCK - self.size]
            self.crc, self.size = zlib.crc32(part, self.crc), self.size + len(part)
            if self.size == BLOCK:
                sums.append(self.crc)
                self.crc = self.size = 0
            data = data[len(part) :]
        return np.array(sums, dtype="<u4")

    def end(self) -> np.ndarray:
        """End the file: the checksum of its unfinished block, if there is one."""
        sums = [self.crc] if self.size else []
        self.crc = self.size = 0
        return np.array(sums, dtype="<u4")


def num_blocks(size: int) -> int:
    """The number of blocks of a file of `size` bytes."""
    return -(-size // BLOCK)


def read_column(path: Path, dtype: str, crc: int | None) -> np.ndarray:
    """Read a file as a read-only array. `crc` is its checksum; None: not known (of a cache of version 0.2.0).

    Raises:
        ValueError: the checksum differs.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if crc is not None and zlib.crc32(content) != crc:
        raise ValueError(f"{path.name} does not match its checksum")
    return np.frombuffer(content, dtype=dtype)
