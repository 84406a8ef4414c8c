"""A language-model batch, and positions in the data.

A position (state) is a small JSON-able dict in a checkpoint. Besides the position itself it contains corpus, tokenizer,
batch size, bptt, seed, and for a stream the direction, so that it is never used with other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ulmfit.errors import UserError


@dataclass(frozen=True)
class LMBatch:
    """One step of this rank's rows.

    Attributes:
        tokens, targets: int64 [rows, T]; the target is the next token, or -100 if it is not counted.
        num_targets: number of counted targets in the global batch, over all ranks.
        reset: the hidden state is set to zero (at the first step of an epoch of `CachedRows`, or of a stream).
        epoch, step_in_epoch: from 0. A stream has no common epoch: here epoch is 0, and steps count from its start.
        lr_scale: factor for the learning rate: T / bptt with jitter, else 1.
        sources: int64 [S], how many tokens were read from each source of a mixture, in this rank's rows; None for one
            corpus.
    """

    tokens: Tensor
    targets: Tensor
    num_targets: int
    reset: bool
    epoch: int
    step_in_epoch: int
    lr_scale: float = 1.0
    sources: Tensor | None = None


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the states of all ranks at one step, in any order, into one of the global batch.

    Every rank can resume from it, with any number of ranks. If all states are equal, the result is that state: this is
    so for `CachedRows`, and for a merged state before the next step (e.g. of a run stopped after its last step).
    """
    if all(state == states[0] for state in states):
        return states[0]
    assert "positions" in states[0], "ranks are at different steps"
    states = sorted(states, key=lambda state: state["rows"])
    merged = dict(states[0])
    for state in states[1:]:
        assert state["step"] == merged["step"] and state["rows"][0] == merged["rows"][1]
        merged["rows"] = [merged["rows"][0], state["rows"][1]]
        merged["positions"] = merged["positions"] + state["positions"]
        for name, merge in (("num_documents", _known), ("place", _earlier)):
            both = merged[name], state[name]
            several = isinstance(both[0], list)  # of the sources of a mixture
            merged[name] = [merge(*pair) for pair in zip(*both, strict=True)] if several else merge(*both)
    return merged


def _known(first: int | None, second: int | None) -> int | None:
    return first or second


def _earlier(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return min(first, second, key=lambda place: place["number"])


def check_identity(state: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """Raise UserError unless `state` belongs to the data and settings in `expected`. None (a fresh start) is valid."""
    if state is None:
        return
    for name, value in expected.items():
        found = state.get(name)
        if found != value:
            what = "corpus or tokenizer" if name == "source" else name.replace("_", " ")
            raise UserError(
                f"the saved position in the data is of another {what} ({found}, now {value}); "
                "resume with the same one, or start afresh by --resume never"
            )
