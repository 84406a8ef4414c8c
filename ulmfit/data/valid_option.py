"""What --valid names: a fraction, a column, a split of the corpus, or other files."""

from __future__ import annotations

import glob
import os

from ulmfit.data.choice import Choice
from ulmfit.data.fingerprint import Access
from ulmfit.data.locations import is_url
from ulmfit.data.source import Source
from ulmfit.data.sources import SPLIT_NAMES, find
from ulmfit.errors import UserError
from ulmfit.excerpts import listed

DEFAULT_VALID = 0.1


def validation_of(
    found: dict[str, Source], valid: str | float | None, train: Source, seed: int, access: Access
) -> tuple[Source | None, Choice | None, str | None]:
    """The rows that --valid names, or those that are taken without it.

    Args:
        found: the sources of the corpus by split.
        train: that of the rows to train on, of which a share may be held out.
        seed: of their draw.

    Returns:
        (source, None, its split if it is one of the corpus), or (None, choice of rows of train, None).

    Raises:
        UserError: --valid names nothing, several things, or the rows to train on.
    """
    if valid is None:
        if "valid" in found:
            return found["valid"], None, "valid"
        return None, Choice(True, column="is_valid") if "is_valid" in train.columns else (
            Choice(True, DEFAULT_VALID, seed)), None  # fmt: skip
    try:
        fraction = float(valid)
    except ValueError:
        fraction = None
    if fraction is not None:
        if not 0 < fraction < 1:
            raise UserError(f"--valid {valid} is no fraction between 0 and 1; give one such as 0.1")
        return None, Choice(True, fraction, seed), None
    valid = str(valid)
    split = valid if valid in found else SPLIT_NAMES.get(valid)
    matches = {
        "a path": is_url(valid) or os.path.exists(valid) or bool(glob.glob(valid, recursive=True)),
        "a column": valid in train.columns,
        "a split": split is not None and split in found,
    }
    if not any(matches.values()):
        matches["a column"] = train.has(valid)  # one that appears late is searched for last, as that reads all rows
    kinds = [kind for kind, matched in matches.items() if matched]
    if len(kinds) > 1:
        raise UserError(
            f"--valid {valid} is {' and '.join(kinds)}; write ./{valid} for the path, or rename one of them"
        )
    if not kinds:
        raise UserError(f"--valid {valid} is no fraction, no path, none of the columns {listed(train.columns)} "
                        f"and none of the splits {listed(found)}; give one of these")  # fmt: skip
    if kinds == ["a column"]:
        return None, Choice(True, column=valid), None
    if kinds == ["a split"] and split is not None:
        if split == "train":
            raise UserError(f"--valid {valid} is the training split itself; give a fraction or another split")
        return found[split], None, split
    others = find(valid, access)
    if "valid" not in others and len(others) > 1:
        raise UserError(f"--valid {valid} holds the splits {', '.join(others)}; give the file of one of them")
    source = others.get("valid") or next(iter(others.values()))
    files = _real_paths(source)
    if shared := files & _real_paths(train):
        raise UserError(f"--valid {valid} is among the training files ({min(shared)}); give other files")
    for name, other in found.items():  # the test split is not validation by another name
        if files and files == _real_paths(other):
            return other, None, name
    return source, None, None


def _real_paths(source: Source) -> set[str]:
    return set(map(os.path.realpath, source.files))
