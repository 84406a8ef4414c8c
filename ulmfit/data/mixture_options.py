"""Reads which sources a mixture has: from --data NAME=WEIGHT:DATA,NAME=WEIGHT:DATA, or from a .toml file.

    wiki=0.7:wikipedia/*.parquet,notes=0.3:s3://bucket/notes.jsonl.zst

    [wiki]                              # a table for each source, with its name
    data = "wikipedia/*.parquet"        # what --data takes; a relative path is looked for beside the file first
    weight = 0.7                        # share of the tokens; in no table: each source as it is
    text_column = "text"                # and valid, group_column, separator, encoding, header, as the options

What a weight means is described in `ulmfit.batches.mixture`.
"""

from __future__ import annotations

import glob
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulmfit.data.locations import is_url, open_binary
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed
from ulmfit.paths import entries_of_mixture

SUFFIX = ".toml"
_LONGEST = 2**20  # bytes of such a file
# Options of the command line that a table may give for its source alone, with their types.
OPTIONS: dict[str, tuple[type, ...]] = {
    "text_column": (str,),
    "valid": (str, float),
    "group_column": (str,),
    "separator": (str,),
    "encoding": (str,),
    "header": (bool,),
}
_PATHS = ("data", "valid")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Ingredient:
    """One source of a mixture.

    Attributes:
        name: in messages and metrics.
        data: as --data takes it.
        weight: not yet divided by the sum of all; None: in proportion to its tokens.
        options: those of `OPTIONS` that are given for this source.
    """

    name: str
    data: str
    weight: float | None
    options: dict[str, Any] = field(default_factory=dict)


def is_mixture(data: object) -> bool:
    """Whether a value of --data names several sources. A file or folder of this name is no mixture, but for .toml."""
    if not isinstance(data, str):
        return False
    if data.lower().endswith(SUFFIX):
        return is_url(data) or os.path.isfile(data)
    return bool(entries_of_mixture(data)) and not os.path.exists(data)


def ingredients(data: str) -> list[Ingredient]:
    """The sources that `data` names, of which `is_mixture` is true.

    Raises:
        UserError: a name occurs twice, a weight is no number above 0, or the file has other faults.
    """
    found = _of_file(data) if data.lower().endswith(SUFFIX) else _of_text(data)
    for source in found:
        if sum(other.name.lower() == source.name.lower() for other in found) > 1:
            raise UserError(f"{data} names the source {source.name} twice; give each a name of its own")
    if len({source.weight is None for source in found}) > 1:
        missing = next(source.name for source in found if source.weight is None)
        raise UserError(f"{data} gives {missing} no weight and others one; give a weight to each source or to none")
    weights = [source.weight for source in found if source.weight is not None]
    # The sum of very large ones is infinite, and the share of a very small one 0.
    if weights and not all(weight / sum(weights) > 0 for weight in weights):
        raise UserError(
            f"the weights of {data} are too large or too far apart; give shares of the tokens, as 0.7 and 0.3"
        )
    return found


def _of_text(text: str) -> list[Ingredient]:
    found = []
    for name, written, data in entries_of_mixture(text):
        try:
            weight = float(written)
        except ValueError:
            weight = math.nan
        found.append(Ingredient(name, _data(name, data), _weight(name, weight, written)))
    return found


def _of_file(path: str) -> list[Ingredient]:
    try:
        with open_binary(path) as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise UserError(
                f"{path} is larger than {_LONGEST:,} bytes; name by it the files of a corpus, not their texts"
            )
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise UserError(f"{path} cannot be read (it is nested too deeply); see docs/data.md for its form") from None
    except (OSError, ValueError) as error:  # also of a number with thousands of digits
        raise UserError(f"{path} cannot be read ({str(error).rstrip('.')}); see docs/data.md for its form") from error
    if not tables:
        raise UserError(f"{path} names no source; write a table [NAME] with data and weight for each")
    return [_of_table(path, name, table) for name, table in tables.items()]


def _of_table(path: str, name: str, table: object) -> Ingredient:
    if not isinstance(table, Mapping):
        raise UserError(f"{path} has {excerpt(name)} outside of a table; write it below the [NAME] of its source")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{path} has a source {excerpt(name)}; name it by letters, digits, dots, dashes and underscores"
        )
    known = ("data", "weight", *OPTIONS)
    if unknown := [key for key in table if key not in known]:
        raise UserError(f"{path} has {excerpt(unknown[0])} in [{name}]; the keys are {listed(known)}")
    options = {key: value for key, value in table.items() if key in OPTIONS}
    for key, value in options.items():
        if isinstance(value, int) and not isinstance(value, bool):
            value = options[key] = _float(value)
        if not isinstance(value, OPTIONS[key]):
            kinds = " or ".join(
                {str: "a text", float: "a number", bool: "true or false"}[kind] for kind in OPTIONS[key]
            )
            raise UserError(f"{path} has {key} = {excerpt(value)} in [{name}]; write {kinds}")
    data = table.get("data")
    if not isinstance(data, str):
        raise UserError(f'{path} names no data in [{name}]; write data = "PATH"')
    if "weight" not in table:
        weight = None
    else:
        number = table["weight"]
        weight = _float(number) if isinstance(number, int | float) and not isinstance(number, bool) else math.nan
        weight = _weight(name, weight, number)
    places = {"data": _data(name, data)} | {key: options[key] for key in options if key in _PATHS}
    for key, value in places.items():
        if isinstance(value, str):
            places[key] = _beside(path, value)
    return Ingredient(name, places.pop("data"), weight, options | places)


def _float(number: int | float) -> float:
    """The number; infinite if an integer is too large for a float."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _weight(name: str, weight: float, written: object) -> float:
    if not (weight > 0 and math.isfinite(weight)):
        raise UserError(
            f"the source {name} has the weight {excerpt(written)}; give a number above 0, as in {name}=0.5:PATH"
        )
    return weight


def _data(name: str, data: str) -> str:
    if not data.strip():
        raise UserError(f"the source {name} has no data; give a path after its weight, as in {name}=0.5:PATH")
    return data


def _beside(file: str, path: str) -> str:
    """A relative path as seen from the folder of a file, if there is something; else unchanged, as names of the hub."""
    if is_url(path) or os.path.isabs(path):
        return path
    if is_url(file):
        return path
    joined = str(Path(file).parent / path)
    there = os.path.exists(joined) or any(sign in path for sign in "*?[") and glob.glob(joined, recursive=True)
    return joined if there else path
