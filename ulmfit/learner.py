"""Stages run by hand, in fastai's words: freeze_to, fit_one_cycle, save, load, unfreeze.

    learn = ulmfit.language_model_learner(data="reviews.csv", drop_mult=0.3, output_dir="runs/lm")
    learn.fit_one_cycle(1, 1e-2, moms=(0.8, 0.7))
    learn.unfreeze()
    learn.fit_one_cycle(2, 1e-3, moms=(0.8, 0.7))
    learn.save("fine_tuned")

Every fit is a training like any other: a run directory in output_dir, exact and resumable. Its name follows from what it
goes on from and what it does. So the same cells run again, from the one that makes the learner, find what is done and go on
with what is not. A fit called twice on one learner is two stages. The weights are, bit for bit, those of one training with all these stages.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Generic, TypeVar

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.files import parse_json, write_text
from ulmfit.generation import LanguageModel
from ulmfit.inference import TextClassifier
from ulmfit.limits import check_numbers
from ulmfit.option_types import path_text
from ulmfit.paths import as_path
from ulmfit.training import clf_training, lm_training
from ulmfit.training.by_hand import ByHand
from ulmfit.training.result import TrainingResult
from ulmfit.training.run_task import run_session
from ulmfit.training.stages import Stage

SAVED = "saved"  # folder of the names given by `save`
# Options of a training that a learner's calls set.
_SET = {
    "epochs": "give them to fit_one_cycle",
    "lr": "give it to fit_one_cycle",
    "max_steps": "give epochs to fit_one_cycle",
    "schedule": "fit_one_cycle is one cycle, and fit keeps the rate",
    "lr_find": "call lr_find",
    "lr_find_stage": "call freeze_to and lr_find",
    "resume": "delete the output_dir to begin afresh",
    "config": "give its options",
}
Config = TypeVar("Config", LMConfig, ClassifierConfig)


@dataclass(frozen=True)
class _Place:
    """Where a learner stands: the stages so far, the run that did the last one, and what is trained next."""

    stages: tuple[Stage, ...] = ()
    run: str | None = None
    freeze_to: int = -1


class Learner(Generic[Config]):
    """A training whose stages are called one by one. Made by `language_model_learner` and `text_classifier_learner`.

    As in fastai only the last layer group is trained at first, because the others are pretrained.

    Args:
        config: the options; not modified. Those that the calls set must be left out.

    Attributes:
        path: the output directory.
        results: of the fits of this object, the last one at the end.
    """

    def __init__(self, config: Config) -> None:
        for name, cure in _SET.items():
            if getattr(config, name) != getattr(type(config)(), name):
                raise UserError(f"{name} is set by the calls of a learner; {cure}")
        if config.recipe == "none":
            raise UserError("recipe 'none' leaves a learner without a batch size; give quick, blog or ulmfit")
        self._config: Config = config
        self._place: _Place = _Place()
        self.path = Path(path_text(config.output_dir))
        self.results: list[TrainingResult] = []

    def freeze_to(self, n: int) -> None:
        """Train the layer groups from `n` on in the next fit; -2 for the last two, 0 for all.

        Raises:
            UserError: it is no whole number.
        """
        if not isinstance(n, Integral):
            raise UserError(f"freeze_to is {excerpt(n)}; give the whole number of a layer group, such as -2")
        self._place = _Place(self._place.stages, self._place.run, int(n))

    def freeze(self) -> None:
        """Train the last layer group alone in the next fit."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train all layer groups in the next fit."""
        self.freeze_to(0)

    def fit_one_cycle(
        self, epochs: float, lr: float | slice = 3e-3, moms: tuple[float, float] = (0.8, 0.7)
    ) -> TrainingResult:
        """Train by one cycle of learning rate and momentum (Smith 2018).

        Args:
            epochs: passes over the data.
            lr: peak rate of all trained groups, or slice(lowest, highest) with geometric steps from the first group of
                the model to the last.
            moms: Adam's beta1 at the ends and at the peak of the cycle.

        Returns:
            The result, as of `train_classifier`. If its state is "preempted", call this again to go on.

        Raises:
            UserError: an option, file or column is wrong.
            TrainingInterrupted: stopped by Ctrl-C; the same call goes on.
        """
        return self._fit(self._stage(epochs, lr, "one-cycle", moms))

    def fit(self, epochs: float, lr: float | slice = 3e-3) -> TrainingResult:
        """Train at a constant rate. Arguments and result as of `fit_one_cycle`."""
        return self._fit(self._stage(epochs, lr, "constant", (0.9, 0.9)))

    def lr_find(self) -> TrainingResult:
        """Train a copy with growing rates and suggest one for the next fit. The learner stays as it is.

        Returns:
            A result with `suggestions` by rule, and `picture`, the PNG file of the curve.
        """
        stage = self._stage(1, 1.0, "constant", (0.8, 0.8))
        return self._train(stage, lr_find=True)

    def save(self, name: str) -> Path:
        """Give the present state a name, which `load` takes, also in another process. Returns its file."""
        if self._place.run is None:
            raise UserError("there is nothing to save yet; call fit_one_cycle first")
        path = self._named(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(self._place), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); make room or give another name") from None
        return path

    def load(self, name: str) -> Learner[Config]:
        """Go back to a saved state: weights, and which groups are trained. Returns the learner.

        Raises:
            UserError: there is none of this name.
        """
        path = self._named(name)
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
            place = _place_of(stored)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; save({name!r}) makes it") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; run the cell again that saves it") from None
        self._place = place
        return self

    @property
    def run_dir(self) -> Path:
        """The run directory of the last fit. `encoder=`, `init=`, predict and evaluate take it.

        Raises:
            UserError: there was no fit yet.
        """
        if self._place.run is None:
            raise UserError("this learner has not been trained yet; call fit_one_cycle first")
        return self.path / self._place.run

    def model(self, **options: Any) -> Any:
        """Load the model of the last fit. Each call loads a new one. Options are those of its `from_pretrained`."""
        kind = LanguageModel if isinstance(self._config, LMConfig) else TextClassifier
        return kind.from_pretrained(self.run_dir, **options)

    def _stage(self, epochs: float, lr: float | slice, schedule: Any, moms: tuple[float, float]) -> Stage:
        if isinstance(lr, slice):
            if lr.start is None or lr.stop is None or lr.step is not None:
                raise UserError("a slice of rates has two ends; write slice(lowest, highest)")
            lowest, peak = _number("the learning rate", lr.start), _number("the learning rate", lr.stop)
        else:
            lowest = peak = _number("the learning rate", lr)
        epochs = _number("the number of epochs", epochs)
        check_numbers({"epochs": epochs, "lr": lowest})
        check_numbers({"lr": peak})
        if not isinstance(moms, tuple | list) or len(moms) != 2:
            raise UserError(f"moms is {excerpt(moms)}; give two numbers, such as (0.8, 0.7)")
        moms = (_number("a momentum", moms[0]), _number("a momentum", moms[1]))
        if not all(0 <= value < 1 for value in moms):
            raise UserError(f"moms is {excerpt(moms)}; give two numbers of at least 0 and below 1")
        freeze_to = self._place.freeze_to
        return Stage(_name_of(freeze_to), freeze_to, epochs, peak, peak / lowest, schedule, moms)

    def _fit(self, stage: Stage) -> TrainingResult:
        result = self._train(stage)
        self.results.append(result)
        if result.state == "done":
            self._place = _Place((*self._place.stages, stage), result.run_dir.name, self._place.freeze_to)
        return result

    def _train(self, stage: Stage, *, lr_find: bool = False) -> TrainingResult:
        place: _Place = self._place
        key = hashlib.sha256(json.dumps([place.run, asdict(stage)]).encode()).hexdigest()[:8]
        folder = f"{len(place.stages) + 1:02}-{'finder-' * lr_find}{key}"
        values = {part.name: getattr(self._config, part.name) for part in fields(self._config)}
        values |= {"output_dir": str(self.path / folder), "lr_find": lr_find}
        by_hand = ByHand((*place.stages, stage), self.path / place.run if place.run else None)
        if isinstance(self._config, LMConfig):
            return run_session(lm_training.train_with, LMConfig(**values), None, by_hand)
        return run_session(clf_training.train_with, ClassifierConfig(**values), None, by_hand)

    def _named(self, name: str) -> Path:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"the name of a saved state is {excerpt(name)}; give a name without slashes")
        return self.path / SAVED / as_path(f"./{name}.json")


def _name_of(freeze_to: int) -> str:
    """What a stage trains, in words: as the stages of recipes are called."""
    if freeze_to in (0, -1):
        return "head" if freeze_to else "all groups"
    return f"last {-freeze_to} groups" if freeze_to < 0 else f"all but the first {freeze_to} groups"


def _number(what: str, value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return float(value.item())  # of numpy or torch
    except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{what} is {excerpt(value)}; give a number") from None


def _place_of(stored: Any) -> _Place:
    """The place in the file of `save`, which the user may have edited.

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    kinds: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "Schedule": str}
    stages = []
    for entry in stored["stages"]:
        first, second = map(float, entry["momentum"])
        stages.append(Stage(**(entry | {"momentum": (first, second)})))
        for part in fields(Stage):
            if part.name != "momentum" and not isinstance(getattr(stages[-1], part.name), kinds[str(part.type)]):
                raise TypeError(part.name)
    run, freeze_to = stored["run"], stored["freeze_to"]
    if not stages or not isinstance(run, str) or Path(run).name != run or run == ".." or type(freeze_to) is not int:
        raise ValueError("no place of a training")
    return _Place(tuple(stages), run, freeze_to)


class LanguageModelLearner(Learner[LMConfig]):
    """A language model's training, stage by stage."""

    def predict(self, text: str, n_words: int = 40, *, temperature: float = 0.75, seed: int | None = None) -> str:
        """The text with a continuation of `n_words` tokens."""
        return self.model().generate(text, max_new_tokens=n_words, temperature=temperature, seed=seed)

    def save_encoder(self, name: str) -> Path:
        """As `save`. The classifier's learner loads the encoder with load_encoder(learner) or load_encoder(run_dir)."""
        return self.save(name)


class TextClassifierLearner(Learner[ClassifierConfig]):
    """A classifier's training, stage by stage."""

    def load_encoder(self, encoder: LanguageModelLearner | str | Path) -> TextClassifierLearner:
        """Start from the encoder of a language model: its learner as it stands, or a run directory. Returns the learner.

        Raises:
            UserError: the classifier has been trained already.
        """
        if self._place.run is not None:
            raise UserError(
                "the encoder is the start of a classifier, and this one has been trained; make a new learner"
            )
        path = encoder.run_dir if isinstance(encoder, LanguageModelLearner) else encoder
        values = {part.name: getattr(self._config, part.name) for part in fields(self._config)}
        self._config = ClassifierConfig(**(values | {"encoder": str(path)}))
        return self

    def predict(self, texts: Any) -> Any:
        """Label, index and probabilities of a text, or a list of these for several."""
        return self.model().predict(texts)


def language_model_learner(data: Any = None, **options: Any) -> LanguageModelLearner:
    """A learner of a language model, with the recipe blog unless another is given.

    Args:
        data: the corpus, as of `train_language_model`.
        options: those of `LMConfig`, such as drop_mult and output_dir.
    """
    return LanguageModelLearner(LMConfig(data=data, **({"recipe": "blog"} | options)))


def text_classifier_learner(data: Any = None, **options: Any) -> TextClassifierLearner:
    """A learner of a classifier, with the recipe blog unless another is given.

    Args:
        data: the corpus, as of `train_classifier`.
        options: those of `ClassifierConfig`, such as drop_mult and output_dir.
    """
    return TextClassifierLearner(ClassifierConfig(data=data, **({"recipe": "blog"} | options)))
