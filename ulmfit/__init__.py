"""ulmfit: distributed training for Universal Language Model Fine-tuning (Howard & Ruder 2018).

    ulmfit.fit(data="reviews.csv", output_dir="runs/reviews")  # the whole job; the next lines are its two trainings
    lm = ulmfit.train_language_model(ulmfit.LMConfig(data="texts.csv", output_dir="runs/lm"))
    result = ulmfit.train_classifier(ulmfit.ClassifierConfig(data="labelled.csv", encoder=lm.run_dir))
    result.metrics["valid"]["accuracy"], result.model().predict("What a film!").label

The names below are imported on first use, so that `import ulmfit` is fast and signal handlers can be installed before
torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ulmfit.config import ClassifierConfig, LMConfig
    from ulmfit.errors import TrainingInterrupted, UserError
    from ulmfit.estimator import UlmfitClassifier as UlmfitClassifier
    from ulmfit.fit_config import FitConfig
    from ulmfit.generation import LanguageModel
    from ulmfit.inference import TextClassifier
    from ulmfit.learner import language_model_learner, text_classifier_learner
    from ulmfit.prediction import Prediction
    from ulmfit.tokenizer.tokenizer import Tokenizer
    from ulmfit.training.clf_training import train_classifier
    from ulmfit.training.fit import fit
    from ulmfit.training.lm_training import train_language_model
    from ulmfit.training.result import FitResult, TrainingResult
    from ulmfit.training.show_batch import show_batch

__version__ = "0.3.0.dev0"

__all__ = [
    "ClassifierConfig",
    "FitConfig",
    "FitResult",
    "LMConfig",
    "LanguageModel",
    "Prediction",
    "TextClassifier",
    "Tokenizer",
    "TrainingInterrupted",
    "TrainingResult",
    "UserError",
    "__version__",
    "fit",
    "language_model_learner",
    "show_batch",
    "text_classifier_learner",
    "train_classifier",
    "train_language_model",
]
# Needs scikit-learn, so `from ulmfit import *` does not import it.
_WITH_EXTRA = {"UlmfitClassifier": "ulmfit.estimator"}
_HOMES = {
    "ClassifierConfig": "ulmfit.config",
    "FitConfig": "ulmfit.fit_config",
    "FitResult": "ulmfit.training.result",
    "LMConfig": "ulmfit.config",
    "LanguageModel": "ulmfit.generation",
    "Prediction": "ulmfit.prediction",
    "TextClassifier": "ulmfit.inference",
    "Tokenizer": "ulmfit.tokenizer.tokenizer",
    "TrainingInterrupted": "ulmfit.errors",
    "TrainingResult": "ulmfit.training.result",
    "UserError": "ulmfit.errors",
    "fit": "ulmfit.training.fit",
    "language_model_learner": "ulmfit.learner",
    "show_batch": "ulmfit.training.show_batch",
    "text_classifier_learner": "ulmfit.learner",
    "train_classifier": "ulmfit.training.clf_training",
    "train_language_model": "ulmfit.training.lm_training",
} | _WITH_EXTRA


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ulmfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_WITH_EXTRA])
