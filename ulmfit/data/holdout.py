"""Holds out rows of a corpus for validation: a stratified random draw.

A unit is what stays together on one side: all rows with one text, or with `--group-column` all rows of one group. Units
are ordered by a 64-bit hash of the text or group and the seed. So the same rows are held out whatever their order, and
only hashes and labels are in memory, 12 bytes a row. The strata are the classes; with several labels a row they are the
sets of labels, and of sets with few rows the rarest label. Every class keeps a unit in training. Rows without readable text
belong to training, unless their group is held out.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ulmfit.data.label_values import as_label
from ulmfit.data.shards import Columns
from ulmfit.files import replacing

if TYPE_CHECKING:
    from ulmfit.data.splits import Split

STRATIFIED = 3  # the first scheme (see `fingerprint`) with this draw; earlier runs hold out rows by their hash alone
VERSION = 2  # of the draw, for its cache
NO_CLASS = -1


@dataclass(frozen=True)
class HeldOut:
    """Selects the rows of a source for a split, by a draw of units.

    Attributes:
        validation: the side: validation or training.
        fraction: share of rows that is held out, in (0, 1).
        seed: of the draw.
        group_column: rows with the same value there stay together; None: rows with the same text.
        digest: a hash of the units, 16 hex digits.
        units: hashes of the units held out, uint64 [n], ascending; None for a stream, of which the units with a hash
            below `fraction` are held out.
        counts: labelled rows of this side by label name; None for a stream.
    """

    validation: bool
    fraction: float
    seed: int
    group_column: str | None = None
    digest: str = ""
    units: np.ndarray | None = field(default=None, repr=False, compare=False)
    counts: Counter[str] | None = field(default=None, repr=False, compare=False)

    column = None  # no boolean column selects the rows

    def takes(self, columns: Columns, texts: list[str]) -> list[bool]:
        """Which rows belong to this side. Texts of rows without readable text are ""."""
        groups = columns.get(self.group_column, []) if self.group_column else []
        hashes = unit_hashes(texts, groups, self.seed)
        if self.units is None:
            inside = hashes < np.uint64(int(self.fraction * 2**64))
        else:
            places = np.searchsorted(self.units, hashes)
            inside = np.append(self.units, self.units[-1:])[places] == hashes if len(self.units) else hashes < 0
        return (inside == self.validation).tolist()


def unit_hashes(texts: list[str], groups: list[Any], seed: int) -> np.ndarray:
    """The hash of each row's unit, uint64 [n]. A row without a group (null or "") is a unit by its text."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = []
    for place, text in enumerate(texts):
        group = group_name(groups[place]) if groups else ""
        if group:
            content = hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt, person=b"group")
        else:
            content = hashlib.blake2b(text.encode(), digest_size=8, salt=salt)
        digests.append(content.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8")


def group_name(value: Any) -> str:
    """A group as text; "" if there is none. 1, 1.0 and "1" are the same group."""
    if value is None or value != value:
        return ""
    return as_label(str(int(value) if isinstance(value, float) and value.is_integer() else value)) or ""


def hold_out(
    whole: Split,
    fraction: float,
    seed: int,
    group_column: str | None = None,
    *,
    need_classes: bool,
    cache_dir: Path | None = None,
    beat: Callable[[], None] = lambda: None,
) -> tuple[HeldOut, HeldOut]:
    """Draw the validation rows of a corpus in one pass. Returns the selections of training and of validation.

    Args:
        whole: all rows, with the label column, if there is one.
        need_classes: whether the rows are for a classifier. A language model without any validation row takes some,
            although a class then has no row in training.
        cache_dir: of draws, so that other ranks and later starts read no texts. It is no error if it cannot be used.
        beat: heartbeat, called for each batch.
    """
    key = (VERSION, whole.fingerprint, fraction, seed, group_column, need_classes)
    file = None if cache_dir is None else cache_dir / "held-out" / f"{_digest(repr(key).encode())}.npz"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        if file is not None:
            with np.load(file) as stored:
                return _sides(fraction, seed, group_column, stored["units"], json.loads(str(stored["counts"])))
    numbers: dict[str, int] = {}
    hashes, labels = [np.empty(0, "<u8")], [np.empty(0, "<i4")]
    for texts, names, groups in whole.readable_rows(group_column, strict=need_classes):
        beat()
        hashes.append(unit_hashes(texts, groups, seed))
        found = [NO_CLASS if name is None else numbers.setdefault(name, len(numbers)) for name in names]
        labels.append(np.array(found, dtype="<i4"))
    units, codes, classes = np.concatenate(hashes), np.concatenate(labels), sorted(numbers)
    order = np.full(len(classes) + 1, NO_CLASS, dtype="<i4")  # by name, as the order of the rows decided the numbers
    order[[numbers[name] for name in classes]] = np.arange(len(classes))
    codes = order[codes]
    held = draw(units, whole.strata(classes, codes), fraction)
    if not len(held) and not need_classes:
        held = draw(units, np.full_like(codes, NO_CLASS), fraction)
    inside = np.isin(units, held)
    counts = [
        dict(zip(classes, np.bincount(codes[side & (codes != NO_CLASS)], minlength=len(classes)).tolist(), strict=True))
        for side in (~inside, inside)
    ]
    with suppress(OSError):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as aside, open(aside, "wb") as opened:
                np.savez(opened, units=held, counts=json.dumps(counts))
    return _sides(fraction, seed, group_column, held, counts)


def _sides(
    fraction: float, seed: int, group_column: str | None, units: np.ndarray, counts: list[dict[str, int]]
) -> tuple[HeldOut, HeldOut]:
    digest = _digest(units.tobytes())
    train, valid = (
        HeldOut(validation, fraction, seed, group_column, digest, units, +Counter(counts[validation]))
        for validation in (False, True)
    )
    return train, valid


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def draw(units: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """The units held out: as near as possible to `fraction` of the labelled rows, and of the others.

    Strata are the classes. A unit of several classes belongs to the stratum of the rarest one, so that this one is
    represented. A stratum gives its first units in the order of the hashes. The unit with the last hash of each class
    stays in training. The unlabelled rows change nothing for the others: so a classifier and a language model, which
    reads more of them, hold out the same labelled rows.

    Args:
        units: uint64 [rows].
        labels: int32 [rows], classes from 0, `NO_CLASS` for unlabelled rows.

    Returns:
        uint64 [n], ascending.
    """
    if not len(units):
        return units
    keys, place = np.unique(units, return_inverse=True)
    labelled = labels != NO_CLASS
    num_classes = int(labels.max(initial=NO_CLASS)) + 1
    sizes = np.bincount(labels[labelled], minlength=num_classes)
    rarity = np.empty(num_classes, dtype=np.int64)
    rarity[np.argsort(sizes, kind="stable")] = np.arange(num_classes)
    stratum = np.full(len(keys), num_classes)  # the last one is of the unlabelled units
    np.minimum.at(stratum, place[labelled], rarity[labels[labelled]])
    weight = np.bincount(place[labelled], minlength=len(keys))
    weight = np.where(weight, weight, np.bincount(place, minlength=len(keys)))

    free = np.ones(len(keys), dtype=bool)
    kept = np.full(num_classes, -1)
    np.maximum.at(kept, labels[labelled], place[labelled])
    free[kept[kept >= 0] if num_classes else -1] = False

    order = np.argsort(stratum, kind="stable")  # within a stratum by hash
    starts = np.searchsorted(stratum[order], np.arange(num_classes + 2))
    members = [order[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
    size = np.array([weight[group].sum() for group in members])
    room = np.array([weight[group[free[group]]].sum() for group in members])
    first = np.array([group[0] if len(group) else 0 for group in members])
    seats = np.zeros(num_classes + 1, dtype=np.int64)
    for part in (slice(0, num_classes), slice(num_classes, num_classes + 1)):
        total = int(size[part].sum() * fraction + 0.5)
        if part.start == 0 or num_classes == 0:  # one row at least
            total = max(1, total)
        seats[part] = share_seats(size[part], room[part], total, first[part])
    held = [_fill(group[free[group]], weight, int(most), int(size[k])) for k, (group, most) in
            enumerate(zip(members, seats, strict=True)) if most]  # fmt: skip
    return keys[np.sort(np.concatenate(held))] if held else keys[:0]


def share_seats(sizes: np.ndarray, room: np.ndarray, total: int, ties: np.ndarray) -> np.ndarray:
    """Share `total` rows among strata in proportion to their sizes, by largest remainders, int64 [strata].

    Args:
        room: the most that each can give. What one cannot give, the others do.
        ties: of equal remainders, the one with the smaller value is first.
    """
    seats = np.zeros(len(sizes), dtype=np.int64)
    left = min(total, int(room.sum()))
    while left > 0:
        can_give = room > seats
        quota = left * np.where(can_give, sizes, 0) / sizes[can_give].sum()
        give = np.minimum(np.floor(quota + 1e-9).astype(np.int64), room - seats)
        seats, left = seats + give, left - int(give.sum())
        waits = (seats == 0) & (quota >= 0.5)  # a class that would have none, though it is due half a row
        order = np.lexsort((ties, give - quota, ~waits))
        extra = order[(room > seats)[order]][:left]
        seats[extra] += 1
        left -= len(extra)
    return seats


def _fill(units: np.ndarray, weight: np.ndarray, most: int, size: int) -> np.ndarray:
    """The first units that have at most `most` rows together; if the smallest has more, that one, up to half of the
    stratum."""
    taken, left, waiting = [units[:0]], most, units
    while left:
        waiting = waiting[weight[waiting] <= left]
        fits = int(np.searchsorted(np.cumsum(weight[waiting]), left, side="right"))
        if not fits:
            break
        taken.append(waiting[:fits])
        left -= int(weight[waiting[:fits]].sum())
        waiting = waiting[fits:]
    found = np.concatenate(taken)
    if not len(found) and len(units):
        smallest = units[np.argmin(weight[units])]
        found = np.array([smallest]) if 2 * weight[smallest] <= size else found
    return found
