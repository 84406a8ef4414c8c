"""Opens text files of any encoding as streams of UTF-8 bytes.

All readers of this package read UTF-8. A file in another encoding is recoded while it is read. A place in such a file
counts bytes of UTF-8, so a seek recodes what is before it, as it decompresses what is before it in a compressed file.
"""

from __future__ import annotations

import codecs
import io
import re
import string
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ulmfit.data.locations import is_url, open_binary
from ulmfit.data.magic import is_binary, refuse_binary
from ulmfit.errors import UserError

# Bytes that do not fit the encoding become this noncharacter, which does not occur in valid texts. So the rows can be
# counted.
UNDECODABLE = "\ufdd0"
# The cell of a row that is torn: a record with too many or too few fields, or a line that is no JSON object. It
# contains `UNDECODABLE`, so whatever refuses undecodable texts refuses it too.
TORN = "\ufdd0\ufdd5"

COMPRESSED = {".gz": "gzip", ".xz": "lzma", ".bz2": "bz2"}  # suffix -> module that reads it
HEAD = 2**22  # bytes that are looked at to find the encoding
UTF8 = "utf-8"
_BOMS = {
    codecs.BOM_UTF8: UTF8,  # the mark itself is removed by the readers
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What bytes from 0x80 on usually are in texts of Western Europe.
_WESTERN = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþŒœŠšŽžŸ€‚„…†‡‰‹‘’“”•–—™›\xa0¡¢£§©ª«®°±²³´µ¶·º»¼½¾¿×"
)
_LETTERS = frozenset(char for char in _WESTERN if char.isalpha())
_WORDS = re.compile(rb"[\xc0-\xff]{3,}")
_ASCII = bytes(range(128))
_ASCII_LETTERS = string.ascii_letters.encode()


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error("ulmfit-mark", _mark)


def known_encoding(name: str) -> str:
    """The normalised name of an encoding of texts, as --encoding gives it.

    Raises:
        UserError: there is no such encoding.
    """
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # fails for codecs of bytes such as base64
        codec.incrementaldecoder("ulmfit-mark").decode(b"", True)
        return UTF8 if codec.name == "utf-8-sig" else codec.name
    except (LookupError, TypeError, ValueError, UnicodeError):
        raise UserError(
            f"--encoding {name[:40]} is no encoding of texts; give one such as utf-8, utf-16, cp1252, cp1251, gb18030, "
            "shift_jis or euc_kr"
        ) from None


def open_raw(path: str) -> IO[bytes]:
    """Open a plain or compressed file for reading, as the bytes that it holds."""
    suffix = Path(path).suffix.lower()
    if suffix in COMPRESSED:
        return import_module(COMPRESSED[suffix]).open(open_binary(path) if is_url(path) else path, "rb")
    if suffix == ".zst":
        try:
            return io.BufferedReader(_Frames(open_binary(path)), 2**16)
        except ImportError:
            raise UserError(f"{path} needs the package zstandard; pip install zstandard") from None
    return open_binary(path)


def open_bytes(path: str, encoding: str = UTF8) -> IO[bytes]:
    """Open a plain or compressed text file for reading, as UTF-8."""
    file = open_raw(path)
    return file if encoding == UTF8 else io.BufferedReader(_Recoded(file, encoding, path), 2**16)


class _Frames(io.RawIOBase):
    """The content of a Zstandard file. zstandard's own readers end silently where a file is cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        import zstandard

        self._new_frame: Callable[[], Any] = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._frame: Any = None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            ended = self._frame is None or self._frame.eof
            block = self._frame.unused_data if self._frame is not None and ended else b""
            block = block or self._file.read(2**14)  # a small block may become large
            if not block and not ended:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")  # as gzip
            if not block:
                return 0
            if ended:
                self._frame = self._new_frame()
            self._rest = memoryview(self._frame.decompress(block))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _Recoded(io.RawIOBase):
    """A file in another encoding as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str, path: str) -> None:
        self._file, self._encoding, self._path = file, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)("ulmfit-mark")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            block = self._file.read(2**16)
            try:
                self._rest = self._decoder.decode(block, not block).encode(UTF8, "replace")
            except UnicodeError as error:  # other faults than bytes that do not fit, which are marked
                raise UserError(f"{self._path} is not written in {self._encoding} ({error}); give another --encoding, or "
                                "none") from None  # fmt: skip
            if not block:
                break
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def find_encoding(path: str, given: str | None = None) -> str:
    """The encoding of a text file: the given one, else by its byte order mark, else by its first `HEAD` bytes.

    "cp1252" means that the file is not UTF-8 and reads well as a Western text. If no encoding fits it is UTF-8, and
    its rows are undecodable.

    Raises:
        UserError: the file holds no text (see `magic`); the message says how to convert it.
    """
    with open_raw(path) as file:
        head = b""
        while len(head) < HEAD and (block := file.read(HEAD - len(head))):
            head += block
    return encoding_of(head, given, path, whole=len(head) < HEAD)


def encoding_of(head: bytes, given: str | None, path: str, *, whole: bool) -> str:
    """As `find_encoding`, from the first bytes of a file (all of them if `whole`)."""
    refuse_binary(path, head)
    if given is not None:
        return given
    encoding = text_encoding(head, whole=whole)
    if encoding == UTF8 and is_binary(head):
        raise UserError(f"{path} is binary data and no text; give a file of texts, or name its --encoding")
    return encoding


def text_encoding(head: bytes, *, whole: bool) -> str:
    """As `encoding_of`, of bytes that are a text."""
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    try:
        codecs.getincrementaldecoder(UTF8)().decode(head, whole)
        decodes = True
    except UnicodeDecodeError:
        decodes = False
    if b"\0" in head and (wide := _wide(head)):
        return wide
    return "cp1252" if not decodes and _is_western(head) else UTF8


def decode(content: bytes, encoding: str) -> str:
    """A whole document as text, without a byte order mark. What does not fit becomes `UNDECODABLE`."""
    try:
        text = codecs.getincrementaldecoder(encoding)("ulmfit-mark").decode(content, True)
    except UnicodeError:  # no byte order mark, without which bytes.decode would read any bytes as UTF-16
        wide = _wide(content)
        text = content.decode(wide, "ulmfit-mark") if wide else UNDECODABLE
    return text.removeprefix("\ufeff")


def _wide(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: the zero bytes of its ASCII characters are all at even or all at odd places."""
    head = head[: min(len(head), 2**16) // 2 * 2]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) < max(2, 0.01 * len(head)) or min(even, odd) > 0.02 * max(even, odd):
        return None
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    text = head.decode(encoding, "ulmfit-mark")[:-1]  # a character of two units may be cut at the end
    printable = sum(char.isprintable() or char in "\r\n\t" for char in text)
    return encoding if UNDECODABLE not in text and printable >= 0.98 * len(text) else None


def _is_western(head: bytes) -> bool:
    """Whether bytes that are not UTF-8 read well as cp1252.

    Single bytes of UTF-8's damage, and texts of other alphabets in which most letters are not ASCII, do not.
    """
    text = head.decode(UTF8, "ulmfit-mark")
    wrong = text.count(UNDECODABLE)
    valid = len(text) - len(text.encode("ascii", "ignore")) - wrong
    if valid > 0.05 * wrong:
        return False
    counts = Counter(head.translate(None, _ASCII).decode("cp1252", "ulmfit-mark"))
    common = sum(number for char, number in counts.items() if char in _WESTERN)
    letters = sum(number for char, number in counts.items() if char in _LETTERS)
    ascii_letters = len(head) - len(head.translate(None, _ASCII_LETTERS))
    alone = letters - sum(map(len, _WORDS.findall(head)))  # words of other alphabets are written in such bytes alone
    return common >= 0.95 * counts.total() and alone >= 0.5 * letters and letters <= 0.35 * (letters + ascii_letters)
