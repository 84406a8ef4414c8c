"""generate: continue prompts."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(kw_only=True)
class GenerateOptions:
    """Continue prompts with a language model."""

    prompt: Positional[tuple[str, ...]]
    """Beginnings of texts."""
    model: str
    """Run directory of a language model, its model/, a job of fit, english (comes with the package), or OWNER/MODEL on
    the hub."""
    max_new_tokens: int = 40
    """Tokens to add."""
    temperature: float = 0.75
    """Below 1 for likelier text."""
    top_k: int | None = None
    """Draw from the k likeliest words only (default: all)."""
    min_p: float | None = None
    """Leave out words below min_p times the likeliest (default: none)."""
    seed: int | None = None
    """The same text every time (default: another each time)."""


def generate(options: GenerateOptions) -> None:
    """Print a continuation of each prompt."""
    from ulmfit.coloured import visible
    from ulmfit.generation import LanguageModel

    # A stranger's vocabulary may have words that command a terminal.
    shown = visible if sys.stdout.isatty() else str
    model = LanguageModel.from_pretrained(options.model)
    for text in model.generate(
        list(options.prompt),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
    ):
        print(shown(text))
