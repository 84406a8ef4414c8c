"""Recognises files that hold no text by their content, whatever their names are.

Each kind has a sentence that says how to make a text file of it.
"""

from __future__ import annotations

import zipfile
from contextlib import suppress

from ulmfit.data.locations import STDIN
from ulmfit.errors import UserError

HEAD = 2**16  # bytes that are looked at
_TO_CSV = "open it in a spreadsheet program and save it as CSV UTF-8, or use pandas.read_excel(...).to_csv(...)"
_TO_TEXT = "open it in a word processor and save it as plain text (.txt)"
_PACKED = "give its name the ending {0}"
# First bytes -> (what it is, how to convert it).
_KINDS = {
    b"%PDF-": ("a PDF", "convert it to text, for example by `pdftotext FILE.pdf FILE.txt`"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an .xls workbook or a .doc document", f"if it is a table, {_TO_CSV}; {_TO_TEXT} if not"),
    b"{\\rtf": ("an RTF document", _TO_TEXT),
    b"PAR1": ("a Parquet file", _PACKED.format(".parquet")),
    b"ARROW1": ("an Arrow file", "convert it to .parquet, for example by pandas.read_feather(...).to_parquet(...)"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "convert it to .parquet, for example by datasets.Dataset.from_file(...).to_parquet(...)"),
    b"SQLite format 3\0": ("an SQLite database", "export a table of it as .csv"),
    b"\x89HDF\r\n": ("an HDF5 file", "convert it to .csv or .parquet"),
    b"\x93NUMPY": ("a NumPy array", "convert it to .csv or .parquet"),
    b"\x1f\x8b": ("compressed by gzip", _PACKED.format(".gz")),
    b"BZh": ("compressed by bzip2", _PACKED.format(".bz2")),
    b"\xfd7zXZ\0": ("compressed by xz", _PACKED.format(".xz")),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", _PACKED.format(".zst")),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it"),
    b"\x89PNG\r\n": ("an image", "give a file of texts"),
    b"\xff\xd8\xff": ("an image", "give a file of texts"),
    b"GIF8": ("an image", "give a file of texts"),
    b"\x7fELF": ("a program", "give a file of texts"),
    b"Obj\x01": ("an Avro file", "convert it to .csv or .parquet"),
    b"RDX": ("an R data file", "write it from R by write.csv(..., row.names = FALSE)"),
    b"RDA": ("an R data file", "write it from R by write.csv(..., row.names = FALSE)"),
}  # fmt: skip
_ZIPPED = {
    "xl/": ("an .xlsx workbook", _TO_CSV),
    "word/": ("a .docx document", _TO_TEXT),
    "ppt/": ("a .pptx presentation", "save its texts as plain text (.txt)"),
}
_OPEN = {"spreadsheet": ("an .ods spreadsheet", _TO_CSV), "text": ("an .odt document", _TO_TEXT)}
_WEB = (b"<!doctype html", b"<html")
_TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1a\x1b\x1c\x1d\x1e\x1f")  # also ends of DOS files, escapes, separators


def describe_binary(path: str, head: bytes) -> tuple[str, str] | None:
    """(what the file is, how to convert it) if it holds no text; None if it may hold text.

    Args:
        path: opened again only to list a zip archive.
        head: the first bytes, after decompression by the ending of the name.
    """
    head = head[:HEAD]
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(path, head)
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp" or head.startswith((b"ID3", b"RIFF", b"OggS", b"fLaC")) and b"\0" in head[:64]:
        return "a recording or a film", "give a file of texts"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and b"." in head:
        return "a Python pickle", "convert it to .csv or .parquet"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower().startswith(_WEB):
        return "a web page", "download the file itself, or save the texts of the page"
    return None


def refuse_binary(path: str, head: bytes) -> None:
    """Raise UserError, with how to convert it, for a file that holds no text."""
    if binary := describe_binary(path, head):
        if path == STDIN and binary[1].startswith(_PACKED.format("")):  # it has no name of its own
            binary = binary[0], "unpack it before, as in `zcat FILE | ulmfit ...`, or give the file by its name"
        raise UserError(f"{path} is {binary[0]} and no text; {binary[1]}")


def is_binary(head: bytes) -> bool:
    """Whether bytes in an ASCII-compatible encoding have too many control characters for a text."""
    head = head[:HEAD]
    controls = sum(head.count(code) for code in (*range(32), 127) if code not in _TEXT_CONTROLS)
    return controls > 8 and controls > 0.005 * len(head)


def is_no_document(path: str, content: bytes, encoding: str) -> bool:
    """Whether a file of a folder of documents holds no text, whatever its name is and even if its bytes fit `encoding`.

    A web page is a text. In UTF-16 and UTF-32, control characters cannot be counted: every character of English has a zero byte.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return False
    found = describe_binary(path, content)
    wide = encoding.startswith(("utf-16", "utf-32"))
    return found is not None and found[0] != "a web page" or not wide and is_binary(content)


def _zipped(path: str, head: bytes) -> tuple[str, str]:
    names, mimetype = "", b""
    with suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(path) as archive:
        names = "\n".join(archive.namelist())
    if b"mimetypeapplication/vnd.oasis.opendocument." in head:
        mimetype = head.partition(b"opendocument.")[2]
    for kind, sentence in _OPEN.items():
        if mimetype.startswith(kind.encode()):
            return sentence
    for prefix, sentence in _ZIPPED.items():
        if f"\n{prefix}" in f"\n{names}" or prefix.encode() in head:
            return sentence
    return "a zip archive", "unpack it"
