"""X and y as users of scikit-learn give them: texts, and one label or several for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ulmfit.errors import UserError
from ulmfit.texts import is_missing

try:
    from sklearn.utils import column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
except ImportError:
    raise UserError("scikit-learn is not installed; pip install 'ulmfit[sklearn]'") from None

Form = Literal["labels", "matrix", "lists"]
_SETS = list | tuple | set | frozenset | np.ndarray  # what holds the labels of a text


class InputError(UserError, ValueError):
    """X or y is wrong. scikit-learn's own functions expect a ValueError."""


@dataclass(frozen=True)
class Targets:
    """The labels of texts.

    Attributes:
        form: a label a text, a matrix of 0 and 1, or a list of labels a text.
        classes: the labels, sorted, [C]; of a matrix the numbers or names of its columns.
        codes: places in `classes`, int64 [n]; with several labels a text bool [n, C].
        dtype: of the labels, or of the numbers of a matrix.
    """

    form: Form
    classes: np.ndarray
    codes: np.ndarray
    dtype: Any

    @property
    def several(self) -> bool:
        """Whether a text may have several labels."""
        return self.form != "labels"

    def cells(self) -> list[Any]:
        """For each text the label of a training, or a list of them: places in `classes`, as texts."""
        if self.several:
            return [list(map(str, np.flatnonzero(row))) for row in self.codes]
        return list(map(str, self.codes))

    def shares(self) -> np.ndarray:
        """The share of texts with each label, float64 [C]."""
        return self.codes.mean(0) if self.several else np.bincount(self.codes) / len(self.codes)


def texts_of_rows(given: Any, name: str) -> list[str]:
    """Texts from a list, array or Series, or from a frame or array of one column. A missing value becomes "".

    Raises:
        InputError: they are no texts.
    """
    if isinstance(given, str | bytes | Mapping) or hasattr(given, "toarray"):
        what = "one text" if isinstance(given, str) else f"of type {type(given).__name__}"
        raise InputError(f"{name} is {what}; give a list of texts")
    if hasattr(given, "columns"):
        if len(given.columns) != 1:
            raise InputError(f"{name} is a frame of {len(given.columns)} columns; give the one with the texts")
        given = given[given.columns[0]]
    array = given if isinstance(given, np.ndarray) else None
    if array is not None and array.ndim != 1:
        if array.ndim != 2 or array.shape[1] != 1:
            raise InputError(f"{name} is an array of shape {list(array.shape)}; give the texts alone, [n] or [n, 1]")
        given = array[:, 0]
    try:
        items = list(given)
    except TypeError:
        raise InputError(f"{name} is of type {type(given).__name__}; give a list of texts") from None
    for place, item in enumerate(items):
        if not isinstance(item, str) and not is_missing(item):
            raise InputError(f"row {place} of {name} is of type {type(item).__name__} and no text; give texts")
    return [str(item) if isinstance(item, str) else "" for item in items]


def training_targets(given: Any, name: str) -> Targets:
    """The labels to train on.

    Raises:
        ValueError: they are no labels, or those of all texts are the same.
    """
    form, values, names = _parsed(given, name)
    if form == "labels":
        check_classification_targets(values)
        classes, codes = np.unique(values, return_inverse=True)
        if len(values) and len(classes) < 2:
            raise InputError(f"{name} holds one class only; give labels of two classes or more")
        return Targets(form, classes, codes, classes.dtype)
    if form == "lists":
        try:
            names = sorted({label for labels in values for label in labels})
        except TypeError:
            raise InputError(f"the labels in {name} are of several types; give texts or numbers") from None
        codes = _membership(values, names)
        classes = np.array(names)
    else:
        codes, classes = values != 0, np.asarray(names)
    if len(codes) and (codes == codes[0]).all():
        raise InputError(f"all rows of {name} have the same labels; give texts with different ones")
    return Targets(form, classes, codes, classes.dtype if form == "lists" else values.dtype)


def more_targets(given: Any, name: str, known: Targets) -> Targets:
    """Labels of other texts, in the form of `known`.

    Raises:
        ValueError: they are no labels, have another form, or one of them is not known.
    """
    form, values, names = _parsed(given, name)
    if form != known.form:
        told = {"labels": "a label", "matrix": "a row of 0 and 1", "lists": "a list of labels"}
        raise InputError(f"{name} holds {told[form]} for each text and y {told[known.form]}; give both in one form")
    unseen = InputError(f"{name} holds a label that y does not; leave such rows out")
    if form == "matrix":
        if list(names) != known.classes.tolist():
            raise InputError(f"{name} has other columns than y; give the same ones in the same order")
        codes = values != 0
        if (codes.any(0) & ~known.codes.any(0)).any():
            raise unseen
        return Targets(form, known.classes, codes, known.dtype)
    labels = known.classes.tolist()
    try:
        if form == "lists":
            return Targets(form, known.classes, _membership(values, labels), known.dtype)
        place = {label: index for index, label in enumerate(labels)}
        return Targets(form, known.classes, np.array([place[label] for label in values.tolist()], int), known.dtype)
    except KeyError:
        raise unseen from None


def label_sets(given: Any, name: str) -> list[frozenset[Any]]:
    """The labels of each text of a list of lists.

    Raises:
        ValueError: it is none.
    """
    form, values, _ = _parsed(given, name)
    if form != "lists":
        raise InputError(f"{name} holds no list of labels for each text, as y of fit did; give both in one form")
    return [frozenset(labels) for labels in values]


def plain_labels(given: Any, name: str) -> Any:
    """A label for each text as scikit-learn's scores take them; what has another form as it is."""
    form, values, _ = _parsed(given, name)
    return values if form == "labels" else given


def _parsed(given: Any, name: str) -> tuple[Form, Any, Sequence[Any]]:
    """(form, labels [n], or lists of labels, or numbers [n, C]; names of the columns of a matrix)."""
    if given is None:
        # scikit-learn's checks look for these words.
        raise InputError(f"fit requires {name} to be passed, but the target {name} is None; give a label for each text")
    if hasattr(given, "toarray"):
        given = given.toarray()
    columns = getattr(given, "columns", ())
    if len(columns) == 1 and hasattr(given, "iloc"):
        given, columns = given.iloc[:, 0], ()
    if len(columns) > 1:
        return "matrix", _numbers(np.asarray(given), name), list(columns)
    if isinstance(given, np.ndarray) and given.ndim > 1:
        if given.ndim > 2:
            raise InputError(f"{name} is an array of shape {list(given.shape)}; give a label for each text, [n], or a matrix "
                             "of 0 and 1, [n, C]")  # fmt: skip
        if given.shape[1] > 1:
            return "matrix", _numbers(given, name), range(given.shape[1])
    elif not len(columns) and not isinstance(given, str | Mapping) and hasattr(given, "__iter__"):
        given = given if hasattr(given, "__len__") else list(given)
        method = next((name for name in ("to_list", "to_pylist") if hasattr(given, name)), None)  # polars, Arrow
        rows = getattr(given, method)() if method else list(given)
        if any(isinstance(row, _SETS) for row in rows):
            matrix = _as_matrix(rows)
            if matrix is None:
                return "lists", _lists(rows, name), ()
            given = matrix
            if matrix.shape[1] > 1:
                return "matrix", matrix, range(matrix.shape[1])
        dtype, kinds = getattr(given, "dtype", None), {type(row) for row in rows}
        plain = isinstance(dtype, np.dtype) and dtype.kind != "O"
        if not plain and len(kinds) == 1 and issubclass(kinds.pop(), int | np.integer | np.bool_):
            given = np.array(rows)  # of pandas' Int64 scikit-learn makes floats, and an array of objects it refuses
    labels = column_or_1d(given, warn=True)
    if any(map(is_missing, labels.tolist())):
        raise InputError(f"{name} has missing labels (NaN or None); give such texts as unlabeled")
    return "labels", labels, ()


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    """A matrix of 0 and 1.

    Raises:
        InputError: it has other values.
    """
    if array.dtype == object:
        if any(map(is_missing, array.ravel().tolist())):
            raise InputError(f"{name} has missing labels (NaN or None); give such texts as unlabeled")
        array = np.array(array.tolist())
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{name} has missing labels (NaN or None); give such texts as unlabeled")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise InputError(f"{name} is a matrix of shape {list(array.shape)} with other values than 0 and 1; give 1 where a "
                         "text has a label and 0 where not, or one label for each text")  # fmt: skip
    return array


def _as_matrix(rows: list[Any]) -> np.ndarray | None:
    """Lists of 0 and 1 of one length, which scikit-learn takes for the rows of a matrix; None if they are none."""
    if not all(isinstance(row, list | tuple | np.ndarray) for row in rows) or len(set(map(len, rows))) != 1:
        return None
    try:
        array = np.array([list(row) for row in rows])
    except ValueError:
        return None
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "biuf":
        return None
    return array if array.shape[1] == 1 or np.isin(array, (0, 1)).all() else None


def _lists(rows: list[Any], name: str) -> list[list[Any]]:
    for place, row in enumerate(rows):
        if is_missing(row):
            raise InputError(f"{name} has missing labels (NaN or None); give such texts as unlabeled")
        if not isinstance(row, _SETS) or isinstance(row, np.ndarray) and row.ndim != 1:
            raise InputError(f"row {place} of {name} is of type {type(row).__name__} beside lists; give a list of labels for "
                             "each text")  # fmt: skip
    lists = [row.tolist() if isinstance(row, np.ndarray) else list(row) for row in rows]
    for place, row in enumerate(lists):
        if any(map(is_missing, row)):
            raise InputError(f"row {place} of {name} has a missing label among its labels; leave it out of the list")
        if any(isinstance(label, _SETS | dict) for label in row):
            raise InputError(f"row {place} of {name} holds a list in a list; give a list of labels for each text")
    return lists


def _membership(lists: Sequence[Sequence[Any]], names: Sequence[Any]) -> np.ndarray:
    """bool [n, C], whether a list holds a name. KeyError for a label that is none."""
    place = {label: index for index, label in enumerate(names)}
    codes = np.zeros((len(lists), len(names)), dtype=bool)
    for row, labels in zip(codes, lists, strict=True):
        row[[place[label] for label in labels]] = True
    return codes
