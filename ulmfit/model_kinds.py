"""Kinds of classifiers, as their config.json tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NGRAMS = "ngrams"  # "kind" of a linear classifier of n-grams (`model.ngrams`); that of a network is not told


def is_ngrams(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json is that of a linear classifier of n-grams, which has no encoder."""
    return config.get("kind") == NGRAMS
