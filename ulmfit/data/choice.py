"""Which rows of a source belong to a split, where --valid names a fraction of it or a column."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ulmfit.data.encoding import UNDECODABLE
from ulmfit.data.shards import Columns
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt

_TRUE, _FALSE = {"true", "1", "yes", "1.0"}, {"false", "0", "no", "0.0", ""}


@dataclass(frozen=True)
class Choice:
    """Selects the rows of a source for a split: by a fraction of hashes, or by a boolean column."""

    validation: bool
    fraction: float = 0.0
    seed: int = 0
    column: str | None = None
    group_column = None

    def takes(self, columns: Columns, texts: list[str]) -> list[bool]:
        if self.column is None:
            return [_in_fraction(text, self.fraction, self.seed) == self.validation for text in texts]
        if self.column not in columns:  # unsup data without the column are training texts
            return [not self.validation] * len(texts)
        return [_truth(value, self.column) == self.validation for value in columns[self.column]]


def _in_fraction(text: str, fraction: float, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def _truth(value: Any, column: str) -> bool:
    text = str("" if value is None else value).strip().lower()
    if UNDECODABLE in text:  # a row at fault, which is counted with training
        return False
    if text not in _TRUE | _FALSE:
        raise UserError(f"column {column} splits train and validation and holds {excerpt(value)}; write true or false")
    return text in _TRUE
