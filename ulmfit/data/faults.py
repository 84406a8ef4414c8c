"""Rows that are left out, counted by reason, and the rule that too many of a corpus are refused.

A row is at fault if it has no readable text: "no text" (null, or not a string), "empty", "undecodable" or "torn". A row
without a label is not at fault, and neither is one whose label the model does not know, if these are to be left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ulmfit.errors import UserError

MAX_FAULTS = 0.05
UNLABELLED, UNSEEN = "unlabelled", "unseen label"
_CURE = "clean them or choose the column by --text-column"
_CURES = {
    "undecodable": "name their --encoding, or clean them",
    "torn": "quote texts that contain the separator or name it by --separator",
}
NO_FAULTS = frozenset((UNLABELLED, UNSEEN))


def faults_among(skipped: Mapping[str, int]) -> Counter[str]:
    """The counts of those reasons that are faults."""
    return Counter({reason: count for reason, count in skipped.items() if reason not in NO_FAULTS})


def reasons(skipped: Mapping[str, int]) -> str:
    """Counts by reason in words, the largest first."""
    return ", ".join(f"{reason} {count:,}" for reason, count in Counter(skipped).most_common())


class Tally:
    """Counts rows of the splits of one corpus. At most `MAX_FAULTS` of all rows may be at fault.

    The rule is for the corpus and not for a split: one bad row of a small validation split is no reason to refuse a
    corpus. So it is applied when every split has been read once, or earlier if the result is certain.

    Args:
        names: the splits.
        total: rows of the corpus, if known before reading.
    """

    def __init__(self, names: Iterable[str], total: int | None = None) -> None:
        self._names, self._total = frozenset(names), total
        self._found: dict[str, tuple[str, int, Counter[str]]] = {}

    def report(self, name: str, where: str, num_rows: int, skipped: Mapping[str, int]) -> None:
        """Set the counts of a split after a pass over it.

        Args:
            where: its files, for the message.
            num_rows: all its rows, including those left out.
            skipped: rows left out, by reason.
        """
        self._found[name] = where, num_rows, faults_among(skipped)

    def check(self) -> None:
        """Raise UserError if more than `MAX_FAULTS` of the corpus's rows are at fault."""
        rows = sum(num_rows for _, num_rows, _ in self._found.values())
        counts = sum((found for _, _, found in self._found.values()), Counter[str]())
        faults = sum(counts.values())
        if not self._names <= self._found.keys():
            if self._total is None:
                return
            rows = max(rows, self._total)
        if faults <= MAX_FAULTS * rows:
            return
        where = " and ".join(dict.fromkeys(where for where, _, found in self._found.values() if found))
        raise UserError(
            f"{where} has {faults:,} rows at fault among the {rows:,} of the corpus ({reasons(counts)}), more than "
            f"{MAX_FAULTS:.0%} allows; {_CURES.get(counts.most_common(1)[0][0], _CURE)}"
        )
