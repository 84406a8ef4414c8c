"""What config.json tells of any classifier: its kind and its temperature. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt

NGRAMS = "ngrams"  # "kind" of a linear classifier of n-grams (`model.ngrams`); that of a network is not told


def is_ngrams(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json is that of a linear classifier of n-grams, which has no encoder."""
    return config.get("kind") == NGRAMS


def is_temperature(value: Any) -> bool:
    """Whether it is a temperature that probabilities can have; those of a calibration are between 0.05 and 20."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-3 <= value <= 1e3  # false for nan


def check_optional(config: Mapping[str, Any], path: Path, cure: str) -> None:
    """Check what a classifier's config.json may tell or not: text_columns, temperature, and thresholds of its label_names.

    Raises:
        UserError: one is of a wrong kind.
    """
    columns, temperature = config.get("text_columns"), config.get("temperature")
    if columns is not None and not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
        raise UserError(f"text_columns in {path} is not a list of names; {cure}")
    if temperature is not None and not is_temperature(temperature):
        raise UserError(f"temperature in {path} is {excerpt(temperature)}, none of a classifier; {cure}")
    thresholds, names = config.get("thresholds"), config["label_names"]
    if thresholds is not None and not (
        isinstance(thresholds, list) and len(thresholds) == len(names) and all(_is_share(value) for value in thresholds)
    ):
        raise UserError(f"thresholds in {path} are not a number from 0 to 1 for each of label_names; {cure}")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
