"""UlmfitClassifier: the whole job as an estimator of scikit-learn, for its pipelines, searches and cross-validation."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ulmfit.errors import TrainingInterrupted, UserError
from ulmfit.estimator_inputs import (
    Form,
    InputError,
    label_sets,
    more_targets,
    plain_labels,
    texts_of_rows,
    training_targets,
)
from ulmfit.fit_config import FitConfig, stage_configs
from ulmfit.inference import TextClassifier
from ulmfit.option_types import PathOption
from ulmfit.training.clf_training import train_classifier
from ulmfit.training.fit import fit as fit_whole_job
from ulmfit.training.job_files import seed_of
from ulmfit.training.result import FitResult, TrainingResult
from ulmfit.turns import own_turn

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_consistent_length, check_random_state
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise UserError("scikit-learn is not installed; pip install 'ulmfit[sklearn]'") from None

_MOST_SEEDS = 2**31 - 1


class StoredModel:
    """A trained classifier, or a bundle of several, as the bytes of its files, loaded at its first use. Copies and pickles
    hold the bytes alone.

    Attributes:
        files: bytes by path in the folder of the model, such as config.json or 1/config.json.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self._loaded: TextClassifier | None = None

    def loaded(self) -> TextClassifier:
        """The model. Its classes are named "0", "1" ..."""
        if self._loaded is None:
            with tempfile.TemporaryDirectory(prefix="ulmfit-", ignore_cleanup_errors=True) as folder:
                self.save(Path(folder) / "model")
                self._loaded = TextClassifier.from_pretrained(Path(folder) / "model")
        return self._loaded

    def save(self, folder: PathOption) -> None:
        """Write the files into a new folder.

        Raises:
            UserError: it exists.
        """
        path = Path(os.fspath(folder))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{path} exists; name a new folder") from None
        for name, content in self.files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model."""
        return {"files": self.files, "_loaded": None}


class UlmfitClassifier(ClassifierMixin, BaseEstimator):
    """ULMFiT as a classifier of scikit-learn. X are texts, y are labels of any type, or several labels a text.

        clf = UlmfitClassifier(random_state=0).fit(texts, labels, unlabeled=more_texts)
        clf.predict(["What a film!"])

    `fit` does what `ulmfit.fit` does: it fine-tunes a language model on the texts of X and `unlabeled`, trains a classifier
    on its encoder, and averages n-grams in where they pay. With `encoder` it trains the classifier only, without n-grams,
    which is many times faster where a search or a cross-validation fits often. A language model sees only the texts that
    it is given: none of a fold that is held out.

    With several labels a text y is a matrix [n, C] of 0 and 1 (an array, a frame, or a sparse matrix), or a list with a
    list of labels for each text. `predict` gives what y was: a matrix, or an array of tuples. Cross-validation and
    searches of scikit-learn take the matrix only.

    A fitted estimator holds its model, so that pickle and joblib take it anywhere. Where several are fitted at once
    (`n_jobs`), give `threads=1` and no `output_dir`.

    Args:
        encoder: language model whose encoder to use: a run directory or its model/, english (comes with the package),
            or none (random weights). None: one is fine-tuned on the texts.
        init: what that language model starts from, as `--init` of `ulmfit fit`.
        preset: model size: tiny, small, base, blog or wide (default: as `ulmfit fit`).
        recipe: stages of training: quick, blog, ulmfit or none.
        epochs: epochs of the last stage of the classifier's training (default: the recipe's).
        lr: peak learning rate of that stage (default: the recipe's).
        drop_mult: factor on the dropout probabilities of the classifier (default: the recipe's).
        ensemble: classifiers whose mean probability is the model, each with a seed of its own. One here, where `ulmfit fit`
            trains three on few texts, because searches and cross-validation fit often.
        ngrams: average in a linear classifier of words and pairs of words (None: where it pays, as `ulmfit fit`).
        validation_fraction: share of X that is held out for validation where no X_val is given.
        calibrate: fit a temperature on the validation texts, so that probabilities tell how often a prediction is right.
        lm: more options of `ulmfit train-lm` for the language model, by name, such as {"epochs": 3}.
        clf: more options of `ulmfit train-clf` for the classifier, such as {"class_weights": "balanced"}.
        output_dir: directory of the runs, which stays; a fit that was interrupted goes on there with the same call, and
            another is refused (default: a temporary one).
        cache_dir: where tokenised texts are kept (default: where ulmfit keeps them; without output_dir they are not kept).
        random_state: seed of validation rows, data order, dropout and initial weights: a whole number, a RandomState,
            or None for another one each time, but that of the fit which goes on in output_dir.
        samples: False where the texts are private: messages, logs and explanations of the model show no text and no value
            of the data, as with `--no-samples`.
        threads: CPU threads (default: the physical cores that the process may use).
        verbose: print what the trainings print.

    Attributes:
        classes_: the labels, sorted, [C]. Of a matrix the numbers of its columns, or the names that a frame gives them.
        class_prior_: their shares in y, float64 [C]: the probabilities of a row without a text.
        multilabel_: whether a text may have several labels.
        thresholds_: float64 [C], with several labels: the probabilities from which a text has them.
        validation_scores_: scores of the model, which may be a mean, on the validation texts, by name (accuracy, f1, loss, ece ...); empty
            without validation texts.
        model_: the model, a `StoredModel`.
    """

    _form: Form = "labels"  # of y; what was pickled before there were several labels does not tell it

    def __init__(
        self,
        *,
        encoder: PathOption | None = None,
        init: PathOption | None = None,
        preset: Literal["tiny", "small", "base", "blog", "wide"] | None = None,
        recipe: Literal["quick", "blog", "ulmfit", "none"] = "quick",
        epochs: float | None = None,
        lr: float | None = None,
        drop_mult: float | None = None,
        ensemble: int = 1,
        ngrams: bool | None = None,
        validation_fraction: float = 0.1,
        calibrate: bool = False,
        lm: Mapping[str, Any] | None = None,
        clf: Mapping[str, Any] | None = None,
        output_dir: PathOption | None = None,
        cache_dir: PathOption | None = None,
        random_state: int | np.random.RandomState | None = None,
        samples: bool = True,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.encoder = encoder
        self.init = init
        self.preset = preset
        self.recipe = recipe
        self.epochs = epochs
        self.lr = lr
        self.drop_mult = drop_mult
        self.ensemble = ensemble
        self.ngrams = ngrams
        self.validation_fraction = validation_fraction
        self.calibrate = calibrate
        self.lm = lm
        self.clf = clf
        self.output_dir = output_dir
        self.cache_dir = cache_dir
        self.random_state = random_state
        self.samples = samples
        self.threads = threads
        self.verbose = verbose

    def fit(self, X: Any, y: Any, unlabeled: Any = None, X_val: Any = None, y_val: Any = None) -> UlmfitClassifier:
        """Train on texts and labels.

        Args:
            X: texts: a list, array or Series [n], or a frame or array of one column [n, 1]. Rows without a text are
                left out; more than 5 % of them are an error.
            y: a label for each, [n], of any type that can be sorted; or several for each, [n, C] of 0 and 1 or a list
                of lists.
            unlabeled: more texts for the language model, as X.
            X_val, y_val: texts and labels for validation, instead of a held-out share of X.

        Returns:
            self

        Raises:
            ValueError: X or y is wrong; most are an InputError, which is a UserError too.
            UserError: an option is wrong, or the texts cannot be learnt from.
            TrainingInterrupted: Ctrl-C, with `output_dir`: the same call goes on. Without it, a KeyboardInterrupt.
        """
        texts, labels = texts_of_rows(X, "X"), training_targets(y, "y")
        check_consistent_length(texts, labels.codes)
        if not texts:
            raise InputError("X holds no text; give a list of texts and y a label for each")
        if (X_val is None) != (y_val is None):
            raise InputError("X_val and y_val belong together and one is missing; give both or none")
        for what, value in (("unlabeled texts are", unlabeled), ("options lm are", self.lm or None)):
            if value is not None and self.encoder is not None:
                raise InputError(f"{what} for a language model and encoder names a trained one; leave out one")
        if self.encoder is not None and (self.ensemble != 1 or self.ngrams):
            raise InputError("with encoder one classifier is trained, without n-grams; leave out ensemble and ngrams")
        if self.calibrate and labels.several:
            raise InputError("calibrate is for one label a text; with several, a threshold by label is chosen anyway")
        data = {"train": {"text": texts, "label": labels.cells()}}
        if X_val is not None:
            held_out, truth = texts_of_rows(X_val, "X_val"), more_targets(y_val, "y_val", labels)
            check_consistent_length(held_out, truth.codes)
            data["valid"] = {"text": held_out, "label": truth.cells()}
        if unlabeled is not None:
            data["unsup"] = {"text": texts_of_rows(unlabeled, "unlabeled")}
        silence = contextlib.nullcontext() if self.verbose else _quiet()
        with own_turn(quiet=not self.verbose), self._folders() as folders, silence:
            result = self._train(data, *folders)
            paths = [path for path in sorted(result.model_dir.rglob("*")) if path.is_file()]
            files = {path.relative_to(result.model_dir).as_posix(): path.read_bytes() for path in paths}
        self.classes_, self.class_prior_ = labels.classes, labels.shares()
        self.multilabel_, self._form, self._dtype = labels.several, labels.form, labels.dtype
        self.model_ = StoredModel(files)
        if labels.several:
            model = self.model_.loaded()
            self.thresholds_ = np.full(len(labels.classes), 0.5)  # that of a label which no text of training has
            self.thresholds_[list(map(int, model.label_names))] = model.thresholds
        scores = result.metrics.get("valid", {})
        self.validation_scores_ = {name: value for name, value in scores.items() if isinstance(value, float)}
        return self

    @contextlib.contextmanager
    def _folders(self) -> Iterator[tuple[str, str | None]]:
        """The directory of the runs and that of the tokenised texts."""
        cache = None if self.cache_dir is None else os.fspath(self.cache_dir)
        if self.output_dir is not None:
            yield os.fspath(self.output_dir), cache
            return
        with tempfile.TemporaryDirectory(prefix="ulmfit-", ignore_cleanup_errors=True) as folder:
            yield os.path.join(folder, "runs"), cache or os.path.join(folder, "cache")

    def _train(self, data: dict[str, Any], output_dir: str, cache_dir: str | None) -> TrainingResult | FitResult:
        own = {"epochs": self.epochs, "lr": self.lr, "drop_mult": self.drop_mult}
        config = FitConfig(
            data=data,
            valid=None if "valid" in data else str(self.validation_fraction),
            init=self.init,
            preset=self.preset,
            recipe=self.recipe,
            calibrate=self.calibrate,
            seed=self._seed(output_dir),
            threads=self.threads,
            lm=dict(self.lm or {}),
            clf=dict(self.clf or {}) | {name: value for name, value in own.items() if value is not None},
            ensemble=self.ensemble,
            ngrams=self.ngrams,
            baseline=False,
            samples=self.samples,
            output_dir=output_dir,
            cache_dir=cache_dir,
        )
        result: TrainingResult | FitResult
        try:
            if self.encoder is None:
                result = fit_whole_job(config)
            else:
                _, classifier = stage_configs(config)
                classifier.encoder, classifier.preset = self.encoder, self.preset
                classifier.output_dir = output_dir
                result = train_classifier(classifier)
        except TrainingInterrupted:
            if self.output_dir is not None:
                raise
            raise KeyboardInterrupt(
                "interrupted, and nothing is kept; with output_dir the same call would go on"
            ) from None
        if result.state != "done":
            raise UserError("the training was stopped before its end; call fit again")
        return result

    def _seed(self, output_dir: str) -> int:
        """The seed: with random_state=None that of the job that `output_dir` holds, if any, so that it goes on."""
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        if self.random_state is None:
            begun = seed_of(Path(output_dir))
            if begun is not None:
                return begun
        return int(check_random_state(self.random_state).randint(_MOST_SEEDS))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities, float64 [n, C], in the order of `classes_`. A row without a text has `class_prior_`.

        With several labels a text each is the probability of one label, and a row need not sum to 1.

        Args:
            X: texts, as for `fit`.
        """
        check_is_fitted(self)
        texts = texts_of_rows(X, "X")
        model = self.model_.loaded()
        readable = [place for place, text in enumerate(texts) if text.strip()]
        found = model.probabilities([texts[place] for place in readable]).astype(np.float64)
        result = np.tile(self.class_prior_, (len(texts), 1))
        # The model's classes are the numbers of ours, in an order of its own. It lacks a label that no text has.
        own = np.zeros((len(readable), len(self.classes_)))
        own[:, [int(name) for name in model.label_names]] = found
        result[readable] = own / own.sum(1, keepdims=True) if self._form == "labels" else own
        return result

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each text, [n], of the type of y.

        With several labels a text those whose probabilities reach `thresholds_`: a matrix [n, C] of 0 and 1 of the type
        of y, or where y was lists an array of tuples, [n].
        """
        probabilities = self.predict_proba(X)
        if self._form == "labels":
            return self.classes_[probabilities.argmax(1)]
        found = probabilities >= self.thresholds_
        if self._form == "matrix":
            return found.astype(self._dtype)
        result = np.empty(len(found), dtype=object)
        result[:] = [tuple(self.classes_[row].tolist()) for row in found]
        return result

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of texts whose label, or all of whose labels, are right."""
        check_is_fitted(self)
        if self._form == "labels":
            return super().score(X, plain_labels(y, "y"), sample_weight)
        if self._form == "matrix":
            return super().score(X, y, sample_weight)
        truth = label_sets(y, "y")
        check_consistent_length(texts_of_rows(X, "X"), truth, sample_weight)
        right = [frozenset(found) == labels for found, labels in zip(self.predict(X), truth, strict=True)]
        return float(np.average(right, weights=sample_weight))

    def save_model(self, folder: PathOption) -> None:
        """Write the model as `TextClassifier.from_pretrained` and `ulmfit export` read it.

        Its classes are named by their places in `classes_`: "0", "1" ...

        Args:
            folder: must not exist.
        """
        check_is_fitted(self)
        self.model_.save(folder)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of one that an earlier version has pickled, with the defaults of the parameters that it did not have."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        super().__setstate__(defaults | state)

    def __sklearn_tags__(self) -> Any:
        """X are texts and no numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = self.random_state is None
        return tags


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context in which this process prints nothing."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
