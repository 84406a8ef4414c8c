"""ulmfit: Universal Language Model Fine-tuning, distributed.

The names below load on first use, so that `import ulmfit` (and the installation of signal handlers
before torch is imported) stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Tokenizer": "ulmfit.tokenizer.tokenizer",
    "LanguageModel": "ulmfit.inference",
    "TextClassifier": "ulmfit.inference",
    "Prediction": "ulmfit.inference",
    "UserError": "ulmfit.errors",
}
__all__ = ["LanguageModel", "Prediction", "TextClassifier", "Tokenizer", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ulmfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
