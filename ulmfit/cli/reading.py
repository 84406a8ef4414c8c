"""The options of all commands that read files: how tables and texts are written."""

from __future__ import annotations

from dataclasses import dataclass

from ulmfit.data.fingerprint import Access


@dataclass(kw_only=True)
class ReadingOptions:
    """How the files of --data are read."""

    separator: str | None = None
    """Between the fields of a table: a character, comma, semicolon, tab, bar, space, or none (default: found in the
    file)."""
    encoding: str | None = None
    """Encoding of text files and tables (default: UTF-8, UTF-16 or cp1252, as found in the file)."""
    header: bool | None = None
    """Whether the first line of a table names the columns; with --no-header they are 0, 1, 2 ... (default: found in
    the file)."""

    def access(self) -> Access:
        """The same for `ulmfit.data`, which checks them."""
        return Access(separator=self.separator, encoding=self.encoding, header=self.header)
