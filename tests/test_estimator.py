"""UlmfitClassifier as scikit-learn uses it: its own checks, and its searches, calibration, pipelines and pickles.

`check_estimator` gives texts to no estimator: of one that takes no matrix of numbers it tests only the cloning. So its
checks run on `Worded`, which writes each number of a row as a word. These are left out, or say less than they seem to:

- check_classifiers_train asks for 83 % accuracy unless an estimator has the tag poor_score: one step learns nothing.
- What checks of dtypes, NaN, sparse and empty matrices and the number of features find is the work of `Worded`'s
  validate_data, since texts have none of these.
- check_array_api_input is skipped by scikit-learn: texts are no array of a GPU.
- Checks of sample weights, decision_function, partial_fit, several outputs and transform do not apply.

The quick half of them runs here, all with ULMFIT_LONG=1.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

import joblib  # noqa: E402
from joblib.externals.loky import get_reusable_executor  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

from ulmfit import UlmfitClassifier  # noqa: E402
from ulmfit.bundle import make_up  # noqa: E402
from ulmfit.data import sample  # noqa: E402
from ulmfit.errors import TrainingInterrupted, UserError  # noqa: E402
from ulmfit.inference import TextClassifier  # noqa: E402
from ulmfit.training.privacy import hides_texts  # noqa: E402

SHORT = {"max_steps": 1, "batch_size": 8, "bptt": 20}
ROWS = list(islice(sample.generate("train"), 40))
X = [row["text"] for row in ROWS]
Y = np.array([["no", "yes"][row["label"]] for row in ROWS])
LONG = bool(os.environ.get("ULMFIT_LONG"))
SLOW = {
    "check_classifiers_train", "check_classifier_data_not_an_array", "check_estimators_dtypes", "check_dtype_object",
    "check_classifiers_classes", "check_fit_idempotent", "check_estimators_nan_inf", "check_supervised_y_2d",
    "check_pipeline_consistency", "check_f_contiguous_array_estimator", "check_fit_score_takes_y",
    "check_readonly_memmap_input", "check_estimators_fit_returns_self", "check_n_features_in",
    "check_methods_sample_order_invariance", "check_n_features_in_after_fitting", "check_fit2d_predict1d",
    "check_fit2d_1feature", "check_estimators_overwrite_params", "check_fit_check_is_fitted",
    "check_classifiers_multilabel_representation_invariance",
}  # fmt: skip


def quick(**options):
    """An estimator that trains one step of a classifier on random weights: half a second."""
    return UlmfitClassifier(**({"preset": "tiny", "encoder": "none", "clf": SHORT, "random_state": 0} | options))


def words(numbers):
    """Rows of numbers as texts: f0d f1g ..., a letter for the whole part of a number."""
    return [
        " ".join(f"f{i}{'abcdefghij'[int(np.clip(np.floor(value) + 5, 0, 9))]}" for i, value in enumerate(row))
        for row in np.asarray(numbers, float)
    ]


class Worded(UlmfitClassifier):
    """Takes a matrix of numbers, for checks that have no texts."""

    __init__ = UlmfitClassifier.__init__

    def fit(self, X, y):
        return super().fit(words(validate_data(self, X)), y)

    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(words(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        tags.classifier_tags.poor_score = True
        return tags


def checks():
    estimator = Worded(preset="tiny", encoder="none", clf=SHORT | {"min_freq": 1}, random_state=0)
    for one, check in estimator_checks_generator(estimator):
        name = getattr(check, "func", check).__name__
        if LONG or name not in SLOW:
            yield pytest.param(one, check, id=f"{name}{getattr(check, 'keywords', '') or ''}")


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    """On labels that are no texts, with classes in another order than their names have as texts."""
    return quick().fit(X, np.where(Y == "yes", 10, 9))


def test_labels_come_back_as_they_were_given(fitted):
    assert fitted.classes_.tolist() == [9, 10] and fitted.classes_.dtype == fitted.predict(X[:2]).dtype == np.int64
    found = fitted.predict_proba(X)
    assert found.shape == (40, 2) and found.dtype == np.float64
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (fitted.predict(X) == fitted.classes_[found.argmax(1)]).all()
    assert fitted.score(X, np.where(Y == "yes", 10, 9)) == (fitted.predict(X) == np.where(Y == "yes", 10, 9)).mean()
    assert set(fitted.validation_scores_) >= {"accuracy", "f1", "loss", "ece"}


def test_columns_of_probabilities_are_those_of_classes(fitted):
    """The model may have its classes in another order, as where the number 10 comes before 2."""
    names = sorted(str(number) for number in range(12))
    rows = np.arange(24, dtype=np.float32).reshape(2, 12)
    many = copy.deepcopy(fitted)
    many.classes_, many.class_prior_ = np.array(list("abcdefghijkl")), np.full(12, 1 / 12)
    many.model_ = SimpleNamespace(loaded=lambda: SimpleNamespace(label_names=names, probabilities=lambda texts: rows))
    found = many.predict_proba(X[:2])
    for number in range(12):
        np.testing.assert_allclose(found[:, number], rows[:, names.index(str(number))] / rows.sum(1))
    assert many.predict(X[:2]).tolist() == ["j"] * 2 and names[11] == "9"


def test_containers_of_texts(fitted):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    expected = fitted.predict_proba(X[:4])
    array = np.array(X[:4], dtype=object)
    series = pandas.Series(X[:4], index=[7, 7, 1, 2])
    for given in (array, array[:, None], series, series.to_frame("a"), polars.Series(X[:4]), tuple(X[:4]),
                  polars.DataFrame({"a": X[:4]}), iter(X[:4])):  # fmt: skip
        np.testing.assert_array_equal(fitted.predict_proba(given), expected)


def test_a_row_without_a_text_has_the_shares_of_the_classes(fitted):
    found = fitted.predict_proba(["", X[0], None, float("nan"), "  "])
    np.testing.assert_array_equal(found[[0, 2, 3, 4]], [fitted.class_prior_] * 4)
    assert (found[1] != fitted.class_prior_).all()
    assert fitted.predict_proba([]).shape == (0, 2) and fitted.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": X[0]}, "X is one text"),
        ({"X": b"bytes"}, "X is of type bytes"),
        ({"X": [1.0] * 40}, "row 0 of X is of type float"),
        ({"X": np.zeros((40, 2))}, r"X is an array of shape \[40, 2\]"),
        ({"X": 3}, "X is of type int"),
        ({"X": [], "y": []}, "X holds no text"),
        ({"X": X[:10]}, "inconsistent numbers of samples"),
        ({"y": None}, "requires y to be passed"),
        ({"y": ["a"] * 40}, "one class"),
        ({"y": [None, *Y[1:]]}, "y has missing labels"),
        ({"y": np.linspace(0, 1, 40)}, "Unknown label type"),
        ({"X_val": X}, "X_val and y_val belong together"),
        ({"X_val": X, "y_val": ["maybe"] * 40}, "y_val holds a label that y does not"),
        ({"unlabeled": X}, "unlabeled texts are for a language model"),
        ({"ensemble": 2}, "with encoder one classifier is trained"),
        ({"ngrams": True}, "with encoder one classifier is trained"),
    ],
)
def test_mistakes_are_value_errors(change, words):
    with pytest.raises(ValueError, match=words):
        options = {name: change[name] for name in ("ensemble", "ngrams") if name in change}
        quick(**options).fit(**({"X": X, "y": Y} | {name: change[name] for name in change if name not in options}))


def test_wrong_options_are_told_as_those_of_commands():
    with pytest.raises(UserError, match="--clf.lrr is no option of train-clf; the nearest is --clf.lr"):
        quick(clf={"lrr": 1}).fit(X, Y)
    with pytest.raises(NotFittedError):
        quick().predict(X)


@pytest.mark.slow
def test_whole_job_reads_unlabeled_texts_and_validates_on_given_ones(tmp_path, capfd):
    clf = UlmfitClassifier(preset="tiny", init="none", lm=SHORT, clf=SHORT, calibrate=True, random_state=1,
                           ngrams=False, output_dir=tmp_path / "job")  # fmt: skip
    more = ["zebras graze quietly"] * 3
    clf.fit(X, Y == "yes", unlabeled=more, X_val=X[:8], y_val=(Y == "yes")[:8])
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    assert clf.predict(X[:3]).dtype == bool
    assert clf.model_.loaded().config["temperature"] == clf.validation_scores_["temperature"]
    assert "zebras" in clf.model_.files["tokenizer.json"].decode()
    assert (tmp_path / "job" / "clf" / "metrics.jsonl").is_file()
    before = clf.predict_proba(X[:4])
    np.testing.assert_array_equal(
        clf.fit(X, Y == "yes", unlabeled=more, X_val=X[:8], y_val=(Y == "yes")[:8]).predict_proba(X[:4]), before
    )  # the finished job is read
    clf.save_model(tmp_path / "model")
    assert TextClassifier.from_pretrained(tmp_path / "model").label_names == ["0", "1"]
    with pytest.raises(UserError, match="exists; name a new folder"):
        clf.save_model(tmp_path / "model")


@pytest.mark.slow
def test_a_fit_without_a_seed_goes_on_in_its_folder_and_another_folder_gets_another_seed(tmp_path):
    first, again, other = (
        quick(random_state=None, output_dir=tmp_path / name).fit(X, Y) for name in ("one", "one", "two")
    )
    assert first.model_.files == again.model_.files
    assert other.model_.files["model.safetensors"] != first.model_.files["model.safetensors"]


@pytest.mark.slow
def test_what_a_program_draws_does_not_begin_anew_at_every_fit():
    np.random.seed(0)
    expected = np.random.permutation(10), np.random.permutation(10)
    np.random.seed(0)
    found = []
    for _ in expected:
        found.append(np.random.permutation(10))
        quick().fit(X, Y)
    np.testing.assert_array_equal(found, expected)


def test_ctrl_c_without_a_folder_promises_no_checkpoint(tmp_path, monkeypatch):
    def interrupted(config):
        raise TrainingInterrupted(tmp_path / "clf", 3)

    monkeypatch.setattr("ulmfit.estimator.train_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept; with output_dir") as found:
        quick().fit(X, Y)
    assert not isinstance(found.value, TrainingInterrupted)
    with pytest.raises(TrainingInterrupted, match="goes on from there"):
        quick(output_dir=tmp_path / "kept").fit(X, Y)


@pytest.mark.slow
def test_texts_are_hidden_only_where_samples_says_so(tmp_path):
    for samples in (True, False):
        quick(samples=samples).fit(X, Y).save_model(tmp_path / str(samples))
        assert hides_texts([tmp_path / str(samples)]) != samples


@pytest.mark.slow
def test_fits_in_threads_take_turns(fitted, capsys):
    """Else the second one would meet the first one's settings of accelerate, and leave standard output closed."""
    many = [*X, *X, *X], np.concatenate([Y, Y, Y])
    with ThreadPoolExecutor(2) as pool:
        longer = pool.submit(quick(clf=SHORT | {"max_steps": 20}).fit, *many)
        shorter = [pool.submit(quick().fit, X, Y) for _ in range(2)]
        assert all(one.result().model_.files == fitted.model_.files for one in shorter)
        longer.result()
    print("still open")
    assert capsys.readouterr().out == "still open\n"


@pytest.mark.slow
def test_the_model_may_be_a_mean_of_classifiers_and_ngrams(tmp_path):
    """It is that of the job, with its scores and temperature, also in a pickle."""
    clf = UlmfitClassifier(preset="tiny", init="none", lm=SHORT, clf=SHORT, calibrate=True, random_state=1, ensemble=2,
                           ngrams=True, output_dir=tmp_path / "job")  # fmt: skip
    clf.fit(X, Y, unlabeled=X)
    model = TextClassifier.from_pretrained(tmp_path / "job")
    assert make_up(tmp_path / "job")[0] == 2 and make_up(tmp_path / "job")[1] > 0
    for fitted in (clf, pickle.loads(pickle.dumps(clf))):
        np.testing.assert_allclose(fitted.predict_proba(X[:4]), model.probabilities(X[:4]), atol=1e-6)
    scores = json.loads((tmp_path / "job/ensemble.json").read_text())["metrics"]["valid"]
    assert clf.validation_scores_["temperature"] == scores["temperature"]
    assert clf.validation_scores_["accuracy"] == scores["accuracy"]
    clf.save_model(tmp_path / "model")
    np.testing.assert_allclose(
        TextClassifier.from_pretrained(tmp_path / "model").probabilities(X), model.probabilities(X), atol=1e-6
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(fitted):
    again, other = (quick(random_state=seed).fit(X, np.where(Y == "yes", 10, 9)) for seed in (0, 1))
    assert again.model_.files == fitted.model_.files
    assert other.model_.files["model.safetensors"] != fitted.model_.files["model.safetensors"]


def test_labels_in_an_array_of_objects_are_scored(fitted):
    assert fitted.score(X, np.where(Y == "yes", 10, 9).astype(object)) == fitted.score(X, np.where(Y == "yes", 10, 9))


def test_a_pickle_of_an_earlier_version_has_the_defaults_of_new_parameters(fitted):
    state = {**fitted.__getstate__()}
    state.pop("samples")
    old = UlmfitClassifier.__new__(UlmfitClassifier)
    old.__setstate__(state)
    assert clone(old).get_params()["samples"] is True and "samples" not in repr(old)
    np.testing.assert_array_equal(old.predict_proba(X[:3]), fitted.predict_proba(X[:3]))


def test_pickle_and_joblib_take_the_model_along(fitted, tmp_path):
    expected = fitted.predict_proba(X[:3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X[:3]), expected)
    assert not hasattr(clone(fitted), "model_") and clone(fitted).get_params() == fitted.get_params()
    joblib.dump(fitted, tmp_path / "fitted.joblib", compress=3)
    np.testing.assert_array_equal(joblib.load(tmp_path / "fitted.joblib").predict_proba(X[:3]), expected)


@pytest.mark.slow
def test_cross_validation_and_pipelines():
    steps = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), quick())
    scores = cross_val_score(steps, X, Y, cv=2, error_score="raise", params={"ulmfitclassifier__X_val": X[:6],
                             "ulmfitclassifier__y_val": Y[:6]})  # fmt: skip
    assert scores.shape == (2,) and np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2] if LONG else [1])
def test_grid_search(jobs):
    search = GridSearchCV(quick(threads=1), {"lr": [1e-3, 1e-2][:jobs]}, cv=2, n_jobs=jobs, error_score="raise")
    try:
        search.fit(np.array(X, dtype=object), Y)
    finally:
        get_reusable_executor().shutdown(wait=True)  # joblib's processes would wait for more work
    assert search.best_estimator_.lr in (1e-3, 1e-2) and search.predict(X[:2]).dtype == Y.dtype


@pytest.mark.slow
def test_calibrated_classifier():
    calibrated = CalibratedClassifierCV(quick(), cv=2, ensemble=False).fit(X, Y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1, atol=1e-9)
    assert calibrated.classes_.tolist() == ["no", "yes"]
