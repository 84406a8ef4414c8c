"""What config.json tells of any classifier: its kind and its temperature. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NGRAMS = "ngrams"  # "kind" of a linear classifier of n-grams (`model.ngrams`); that of a network is not told


def is_ngrams(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json is that of a linear classifier of n-grams, which has no encoder."""
    return config.get("kind") == NGRAMS


def is_temperature(value: Any) -> bool:
    """Whether it is a temperature that probabilities can have; those of a calibration are between 0.05 and 20."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-3 <= value <= 1e3  # false for nan
