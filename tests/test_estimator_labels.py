"""UlmfitClassifier where a text may have several labels: matrices of 0 and 1, and lists of labels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy.sparse import csr_matrix  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.metrics import accuracy_score, f1_score  # noqa: E402
from sklearn.model_selection import cross_validate  # noqa: E402

from ulmfit import UlmfitClassifier  # noqa: E402
from ulmfit.errors import UserError  # noqa: E402
from ulmfit.estimator_inputs import more_targets, training_targets  # noqa: E402
from ulmfit.inference import TextClassifier  # noqa: E402

SHORT = {"max_steps": 1, "batch_size": 8, "bptt": 20, "min_freq": 1}
LABELS = ["hill", "lake", "sea"]
X = [f"{' '.join(name for place, name in enumerate(LABELS) if row >> place & 1)} w{row} text" for row in range(40)]
MATRIX = np.array([[row >> place & 1 for place in range(3)] for row in range(40)])
LISTS = [[name for name, one in zip(LABELS, row, strict=True) if one] for row in MATRIX]


def quick(**options):
    return UlmfitClassifier(**({"preset": "tiny", "encoder": "none", "clf": SHORT, "random_state": 0} | options))


@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_all_forms_are_the_same_labels():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    forms = {
        "matrix": [MATRIX, MATRIX.tolist(), MATRIX.astype(float), MATRIX.astype(bool), csr_matrix(MATRIX),
                   MATRIX.astype(object), list(MATRIX), [tuple(row) for row in MATRIX.tolist()]],
        "frames": [pandas.DataFrame(MATRIX, columns=LABELS), polars.DataFrame(dict(zip(LABELS, MATRIX.T, strict=True)))],
        "lists": [LISTS, [set(row) for row in LISTS], [np.array(row, "U9") for row in LISTS], pandas.Series(LISTS), polars.Series(LISTS),
                  [tuple(row[::-1] + row) for row in LISTS]],
    }  # fmt: skip
    for form, several in forms.items():
        for given in several:
            found = training_targets(given, "y")
            assert found.several and found.form == ("lists" if form == "lists" else "matrix")
            assert found.classes.tolist() == ([0, 1, 2] if form == "matrix" else LABELS)
            np.testing.assert_array_equal(found.codes, MATRIX == 1)
            np.testing.assert_array_equal(more_targets(given[:7], "y", found).codes, MATRIX[:7] == 1)
            assert found.cells()[5] == ["0", "2"] and found.cells()[0] == []
    for given in (["a", "b"], [[1], [0]], np.array([[1], [0]]), [2, 3], np.array(["a", "b"], object), [True, False]):
        assert not training_targets(given, "y").several
    assert training_targets([["a"], ["b"]], "y").several and training_targets([[3, 4], [4, 5]], "y").form == "lists"
    assert training_targets([["a"], []], "y").cells() == [["0"], []]


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "int8", "object", "category", "string", "int64[pyarrow]"])
def test_a_label_a_text_keeps_its_type(dtype):
    pandas = pytest.importorskip("pandas")
    values = {"boolean": [True, False], "string": ["b", "a"]}.get(dtype, [7, 4])
    found = training_targets(pandas.Series(values * 3, dtype=dtype), "y")
    assert found.classes.tolist() == sorted(values) and type(found.classes.tolist()[0]) is type(values[0])
    assert found.codes.tolist() == [1, 0] * 3
    if dtype == "int8":
        assert found.classes.dtype == np.int8
    as_frame = training_targets(pandas.DataFrame({"label": pandas.Series(values * 3, dtype=dtype)}), "y")
    assert as_frame.classes.tolist() == found.classes.tolist() and as_frame.codes.tolist() == found.codes.tolist()
    if dtype in ("Int64", "boolean"):
        with pytest.raises(ValueError, match="y has missing labels"):
            training_targets(pandas.Series([*values, None], dtype=dtype), "y")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (MATRIX + 1, r"y is a matrix of shape \[40, 3\] with other values than 0 and 1"),
        (MATRIX.astype(str), "other values than 0 and 1"),
        (np.where(MATRIX == 1, np.nan, 0.0), "y has missing labels"),
        (np.where(MATRIX == 1, None, 0), "y has missing labels"),
        (np.zeros((40, 3)), "all rows of y have the same labels"),
        ([["a", "b"]] * 40, "all rows of y have the same labels"),
        ([[]] * 40, "all rows of y have the same labels"),
        ([*LISTS[:-1], "sea"], "row 39 of y is of type str beside lists"),
        ([*LISTS[:-1], None], "y has missing labels"),
        ([*LISTS[:-1], ["sea", None]], "row 39 of y has a missing label"),
        ([*LISTS[:-1], [["sea"]]], "row 39 of y holds a list in a list"),
        ([*LISTS[:-1], [3]], "the labels in y are of several types"),
        (MATRIX[:10], "inconsistent numbers of samples"),
        (MATRIX[:, :, None], r"y is an array of shape \[40, 3, 1\]"),
    ],
)
def test_mistakes_are_value_errors(y, words):
    with pytest.raises(ValueError, match=words):
        quick().fit(X, y)


def test_mistakes_about_validation_and_calibration():
    for given, told in (
        (LISTS, "y_val holds a list of labels for each text and y a row of 0 and 1"),
        (["a"] * 40, "y_val holds a label for each text and y a row of 0 and 1"),
        (MATRIX[:, :2], "y_val has other columns than y"),
    ):
        with pytest.raises(ValueError, match=told):
            quick().fit(X, MATRIX, X_val=X, y_val=given)
    for y, y_val in ((MATRIX * [1, 1, 0], MATRIX), (LISTS, [["moon"]] * 40)):
        with pytest.raises(ValueError, match="y_val holds a label that y does not"):
            quick().fit(X, y, X_val=X, y_val=y_val)
    with pytest.raises(UserError, match="calibrate is for one label a text"):
        quick(calibrate=True).fit(X, MATRIX)


def test_a_matrix_comes_back_as_a_matrix(tmp_path):
    """One column is 0 everywhere: nothing is learnt of such a label, and no text has it."""
    y = np.insert(MATRIX, 1, 0, axis=1).astype(np.int8)
    clf = quick().fit(X, y, X_val=X[:8], y_val=y[:8])
    assert clf.multilabel_ and clf.classes_.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(clf.class_prior_, y.mean(0))
    probabilities, found = clf.predict_proba(X), clf.predict(X)
    assert probabilities.shape == found.shape == (40, 4) and found.dtype == np.int8
    assert (probabilities[:, 1] == 0).all() and not np.allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(found, probabilities >= clf.thresholds_)
    assert clf.score(X, y) == accuracy_score(y, found) and 0 < f1_score(y, found, average="micro", zero_division=0)
    assert set(clf.validation_scores_) >= {"micro_f1", "f1", "accuracy", "loss"}
    np.testing.assert_array_equal(clf.predict_proba(["", None]), [clf.class_prior_] * 2)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict(X), found)
    assert not hasattr(clone(clf), "thresholds_")
    clf.save_model(tmp_path / "model")
    model = TextClassifier.from_pretrained(tmp_path / "model")
    assert model.label_names == ["0", "2", "3"]
    assert [set(one.labels) for one in model.predict(X[:5])] == [
        set(map(str, np.flatnonzero(row))) for row in found[:5]
    ]


def test_lists_come_back_as_tuples():
    clf = quick().fit(X, LISTS)
    assert clf.classes_.tolist() == LABELS
    found = clf.predict(X)
    assert found.shape == (40,) and all(isinstance(labels, tuple) for labels in found)
    expected = [tuple(clf.classes_[row].tolist()) for row in clf.predict_proba(X) >= clf.thresholds_]
    assert found.tolist() == expected
    assert clf.score(X, [labels[::-1] for labels in expected]) == 1
    right = [set(labels) == set(true) for labels, true in zip(found, LISTS, strict=True)]
    weights = np.arange(1, 41)
    assert clf.score(X, LISTS) == np.mean(right)
    assert clf.score(X, LISTS, sample_weight=weights) == pytest.approx(np.average(right, weights=weights))
    with pytest.raises(ValueError, match="y holds no list of labels for each text"):
        clf.score(X, MATRIX)


def test_cross_validation_by_predictions_and_by_probabilities():
    found = cross_validate(quick(), X, MATRIX, cv=2, scoring=["accuracy", "f1_micro", "average_precision"], error_score="raise")  # fmt: skip
    assert all(np.isfinite(found[f"test_{name}"]).all() for name in ("accuracy", "f1_micro", "average_precision"))
