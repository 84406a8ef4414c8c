"""A language-model batch, and what a position in the data is.

A position is a small JSON-able dict that a checkpoint holds. It names what it belongs to (corpus and
tokenizer, batch size, bptt, seed, and the direction of a stream) beside the place itself, so that it is
never applied to other data.
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

    tokens, targets: int64 [rows, T]; the target is the next token, -100 where it does not count.
    num_targets: targets that count over all rows of the global batch, whoever holds them.
    reset: the hidden state starts at zero (first step of an epoch of `CachedRows`, of a stream).
    epoch, step_in_epoch: from 0. A stream has no common epoch: 0, and the step since its beginning.
    lr_scale: factor for the learning rate, T / bptt with jitter, else 1.
    """

    tokens: Tensor
    targets: Tensor
    num_targets: int
    reset: bool
    epoch: int
    step_in_epoch: int
    lr_scale: float = 1.0


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state for the whole batch from those of all ranks at one step, in any order.

    Any rank of any dealing of the rows can go on from it. States that are all the same are given back: those of
    `CachedRows`, and one that was merged before and from which no step has been taken yet (a run that was stopped
    after its last step, say).
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
        merged["num_documents"] = merged["num_documents"] or state["num_documents"]
        merged["place"] = min(merged["place"], state["place"], key=lambda place: place["number"])
    return merged


def check_identity(state: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """UserError unless `state` (None: a fresh start) belongs to what `expected` names."""
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
