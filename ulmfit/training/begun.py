"""What a later start takes from a run that was begun: options that are not given, and what they had become.

A recipe, a default or the sizes of a preset may change with the package. A run that was begun goes on as it began.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit.config import INPUTS, OPERATION, SCHEDULE, TrainConfig, check, given
from ulmfit.data.fingerprint import SCHEME
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.run.directory import begun_by, read_stored
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.loop import PlannedStage
from ulmfit.training.stages import Stage

# Of these the later start may give one where the first start gave another.
_ALTERNATIVES = ({"epochs", "max_steps"}, {"init", "tokenizer", "subword"}, {"encoder", "subword"})


@dataclass(frozen=True)
class Begun:
    """A begun run.

    Attributes:
        path: its directory.
        stored: its config.json (see `run.directory.read_stored`).
        tokenizer: its tokenizer.json; None where it is not there or not the one that the run began with.
    """

    path: str
    stored: dict[str, Any]
    tokenizer: str | None

    @property
    def options(self) -> dict[str, Any]:
        """As they were given at the beginning."""
        return self.stored.get("options", {})

    @property
    def resolved(self) -> dict[str, Any]:
        """What they had become."""
        return self.stored.get("resolved", {})

    def fill(self, config: TrainConfig) -> TrainConfig:
        """A copy of `config` with the options that are not given as they are in the run.

        Raises:
            UserError: this version does not know a value.
        """
        told = given(config)
        for alternatives in _ALTERNATIVES:
            if told & alternatives:
                told |= alternatives
        known = self.options | {name: value for name, value in self.resolved.items() if value is not None}
        taken = INPUTS | ({"eval_every"} if known.get("keep_best") else set())
        values = {
            field.name: known[field.name]
            for field in dataclasses.fields(config)
            if field.name in known and field.name not in told and field.name not in OPERATION - taken
        }
        filled = dataclasses.replace(config, **values)
        try:
            check(filled)
        except (UserError, TypeError) as error:
            check(config)  # a mistake of the command line itself is told as such
            raise self.refused(str(error)) from None
        return filled

    def taken(self, config: TrainConfig, filled: TrainConfig) -> str:
        """The options that `fill` has changed, in words for the user; "" if none."""
        changed = [
            f"{field.name.replace('_', '-')} {getattr(filled, field.name)}"
            for field in dataclasses.fields(config)
            if self.options.get(field.name) is not None and getattr(filled, field.name) != getattr(config, field.name)
        ]
        return f"as this run began: {', '.join(changed)}" if changed else ""

    def plan(self, config: TrainConfig) -> list[PlannedStage] | None:
        """The stages of the run, where no option that they come from is given otherwise than at the beginning."""
        default = type(config)()
        if any(getattr(config, name) != self.options.get(name, getattr(default, name)) for name in SCHEDULE):
            return None
        try:
            return [_stage(stored) for stored in self.resolved["stages"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self.refused(f"its stages cannot be read ({error})") from None

    def architecture(self, sizes: AWDLSTMConfig, config: TrainConfig) -> AWDLSTMConfig:
        """Sizes and dropouts of the run where --preset and --drop-mult are its own, else `sizes`."""
        stored = self.resolved.get("architecture")
        asked = (config.preset, config.drop_mult)
        if stored is None or asked != (self.options.get("preset"), self.resolved.get("drop_mult")):
            return sizes
        try:
            found = AWDLSTMConfig(**stored)
        except (TypeError, UserError) as error:
            raise self.refused(f"its architecture cannot be read: {error}") from None
        return found if found.vocab_size == sizes.vocab_size else sizes

    @property
    def scheme(self) -> int:
        """How its corpus is fingerprinted."""
        return self.resolved["scheme"]

    def revision(self, config: TrainConfig) -> str | None:
        """That of its hub data set, where `config` names the same."""
        same = isinstance(config.data, str) and config.data == self.options.get("data")
        return self.resolved.get("revision") if same else None

    def check_rebuilt(self, resolved: dict[str, Any]) -> None:
        """Refuse a model of other sizes than the run's, which its checkpoints would not fit.

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
    """The run that stands in the output directory, None where there is none to go on with (or it is another task's)."""
    if config.resume == "never":
        return None
    try:
        stored = read_stored(Path(config.output_dir))
    except UserError:
        return None  # it is named when the directory is opened
    if stored is None or stored.get("task") != config.task:
        return None
    return Begun(config.output_dir, stored, _tokenizer(Path(config.output_dir), stored))


def _tokenizer(run: Path, stored: dict[str, Any]) -> str | None:
    for file in (run / "tokenizer.json", run / "model" / "tokenizer.json"):
        with suppress(OSError, ValueError, UserError):
            text = file.read_text(encoding="utf-8")
            if Tokenizer.from_str(text).fingerprint == stored["identity"].get("tokenizer (content)"):
                return text
    return None


def scheme_of(begun: Begun | None) -> int:
    return SCHEME if begun is None else begun.scheme
