"""Resuming a run with its stored settings: options that are not given again, and the values used for defaults.

A recipe, a default or the sizes of a preset may change with the version of the package. A resumed run keeps its own.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit.config import ALTERNATIVES, TrainConfig, changed, given
from ulmfit.config_check import check
from ulmfit.data.fingerprint import SCHEME
from ulmfit.errors import UserError
from ulmfit.identity import INPUTS, OPERATION, SCHEDULE
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.option_types import flag, path_text
from ulmfit.run.stored import begun_by, read_stored
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.masks import DEFINITION
from ulmfit.training.stages import Stage
from ulmfit.training.task import PlannedStage


@dataclass(frozen=True)
class Begun:
    """A run that was started earlier in the output directory.

    Attributes:
        path: its directory.
        stored: its config.json (see `run.stored.read_stored`).
        tokenizer: its tokenizer.json; None if it is missing or not the one that the run started with.
    """

    path: str
    stored: dict[str, Any]
    tokenizer: str | None

    @property
    def options(self) -> dict[str, Any]:
        """The options as given at the first start."""
        return self.stored.get("options", {})

    @property
    def resolved(self) -> dict[str, Any]:
        """The values used, including those for options that were not given."""
        return self.stored.get("resolved", {})

    def fill(self, config: TrainConfig) -> TrainConfig:
        """A copy of `config` in which options that are not given have the values of the run.

        Raises:
            UserError: this version does not know a stored value.
        """
        told = given(config)
        for alternatives in ALTERNATIVES:
            if told & alternatives:
                told |= alternatives
        known = self.options | {name: value for name, value in self.resolved.items() if value is not None}
        taken = INPUTS | ({"eval_every"} if known.get("keep_best") or known.get("stop_after") else set())
        if self.resolved.get("best_clearly"):  # what follows from leaving it out is not what follows from giving it
            known["keep_best"] = None
        values = {
            field.name: known[field.name]
            for field in dataclasses.fields(config)
            if field.name in known and field.name not in told and field.name not in OPERATION - taken
        }
        if self.options.get("samples") is False:  # no later start makes private texts public
            values["samples"] = False
        filled = changed(config, **values)
        try:
            check(filled)
        except (UserError, TypeError) as error:
            check(config)  # if the command line itself is wrong, report that first
            raise self.refused(str(error)) from None
        return filled

    def taken(self, config: TrainConfig, filled: TrainConfig) -> str:
        """A sentence for the user about the options that `fill` has changed; "" if none."""
        changed = [
            "no-samples" if field.name == "samples" else f"{flag(field.name)} {getattr(filled, field.name)}"
            for field in dataclasses.fields(config)
            if self.options.get(field.name) is not None and getattr(filled, field.name) != getattr(config, field.name)
        ]
        return f"as this run began: {', '.join(changed)}" if changed else ""

    def plan(self, config: TrainConfig) -> list[PlannedStage] | None:
        """The stored stages of the run; None if an option that determines them was changed."""
        default = type(config)()
        if any(getattr(config, name) != self.options.get(name, getattr(default, name)) for name in SCHEDULE):
            return None
        try:
            return [_stage(stored) for stored in self.resolved["stages"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.refused(f"its stages cannot be read ({error})") from None

    def architecture(self, sizes: AWDLSTMConfig, config: TrainConfig) -> AWDLSTMConfig:
        """The run's sizes and dropouts if --preset and --drop-mult are unchanged, else `sizes`."""
        stored = self.resolved.get("architecture")
        asked = (config.preset, config.drop_mult)
        if stored is None or asked != (self.options.get("preset"), self.resolved.get("drop_mult")):
            return sizes
        try:
            found = AWDLSTMConfig(**stored)
        except (TypeError, UserError) as error:
            raise self.refused(f"its architecture cannot be read: {error}") from None
        sizes_found = (found.vocab_size, found.embedding_size, found.hidden_size, found.num_layers, found.pad_id)
        # Checked before the model is built, because a damaged number may be huge.
        if any(type(size) is not int for size in sizes_found) or (
            found.num_parameters > self.resolved.get("parameters", math.inf) or found.pad_id >= found.vocab_size
        ):
            raise self.refused("the sizes of its architecture do not fit its number of parameters")
        return found if found.vocab_size == sizes.vocab_size else sizes

    @property
    def scheme(self) -> int:
        """The number of the method by which the run's corpus is fingerprinted."""
        return self.resolved["scheme"]

    @property
    def masks(self) -> int:
        """The definition of the run's dropout masks (see training/masks.py).

        Raises:
            UserError: a later version made it.
        """
        found = self.resolved.get("masks", 1)  # versions up to 0.2.0 do not tell
        if found not in range(1, DEFINITION + 1):
            raise self.refused(f"its dropout masks have definition {found}, here are 1 to {DEFINITION}")
        return found

    @property
    def time_step_overhead(self) -> float:
        """The fixed cost of a time step by which the run's documents are dealt (see batches/documents.py).

        Raises:
            UserError: the stored value is not a cost.
        """
        found = self.resolved.get("time_step_overhead", 16.0)  # that of versions up to 0.2.0
        if type(found) not in (int, float) or not 0 <= found < math.inf:
            raise self.refused(f"the cost of its time steps is {found}")
        return found

    def revision(self, config: TrainConfig) -> str | None:
        """The revision of the run's hub data set, if `config` names the same one; else None."""
        same = isinstance(config.data, str) and config.data == self.options.get("data")
        return self.resolved.get("revision") if same else None

    def start_revision(self, name: str) -> str | None:
        """The commit on the hub that the run started from, if `name` is what its --init or --encoder was."""
        same = name in (self.options.get("init"), self.options.get("encoder"))
        return self.resolved.get("start_revision") if same else None

    def check_rebuilt(self, resolved: dict[str, Any]) -> None:
        """Check that the model has the run's sizes, so that the checkpoints fit it.

        Raises:
            UserError: the number of parameters or of words differs.
        """
        for name in ("vocabulary", "parameters"):
            if self.resolved.get(name, resolved[name]) != resolved[name]:
                raise self.refused(f"{name}: {self.resolved[name]:,} there, {resolved[name]:,} here")

    def refused(self, reason: str) -> UserError:
        return UserError(
            f"--output-dir {self.path} was begun by {begun_by(self.stored)} and cannot be gone on with by this version "
            f"({reason}); use that version, or start afresh with --resume never"
        )


def _stage(stored: dict[str, Any]) -> PlannedStage:
    values = {name: value for name, value in stored.items() if name != "steps"}
    if values.get("schedule") not in ("one-cycle", "stlr", "constant"):
        raise ValueError(f"schedule {values.get('schedule')}")
    return PlannedStage(Stage(**values | {"momentum": tuple(values["momentum"])}), stored["steps"])


def read_begun(config: TrainConfig) -> Begun | None:
    """The run in the output directory; None if there is none to resume, or it is one of the other task."""
    if config.resume == "never":
        return None
    try:
        stored = read_stored(Path(config.output_dir))
    except UserError:
        return None  # reported later, when the directory is opened
    if stored is None or stored.get("task") != config.task:
        return None
    return Begun(path_text(config.output_dir), stored, _tokenizer(Path(config.output_dir), stored))


def _tokenizer(run: Path, stored: dict[str, Any]) -> str | None:
    for file in (run / "tokenizer.json", run / "model" / "tokenizer.json"):
        with suppress(OSError, ValueError, UserError):
            text = file.read_text(encoding="utf-8")
            if Tokenizer.from_str(text).fingerprint == stored["identity"].get("tokenizer (content)"):
                return text
    return None


def scheme_of(begun: Begun | None) -> int:
    return SCHEME if begun is None else begun.scheme


def masks_of(begun: Begun | None) -> int:
    return DEFINITION if begun is None else begun.masks
