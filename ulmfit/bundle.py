"""Several classifiers as one, whose probabilities are the mean of theirs: usually a forward and a backward half, or the
classifiers of one job, also with a linear one of n-grams.

A bundle on disk is a folder with bundle.json, which names its members, and a model folder for each of them; so is the
model/ of a job with --ensemble. In memory it is a `TextClassifier`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.excerpts import listed_values
from ulmfit.inference import Backend, TextClassifier
from ulmfit.model_kinds import is_ngrams, is_temperature
from ulmfit.paths import as_path
from ulmfit.texts import texts_of

if TYPE_CHECKING:
    import torch

BUNDLE = "bundle.json"
FORMAT_VERSION = 3  # 1 knows no temperature, 2 no shares
SMALLEST = 1e-38  # its logarithm is finite


class Bundle(TextClassifier):
    """Classifiers whose probabilities are averaged. Net, tokenizer and config are those of the first network; the order of
    the classes is that of the first one.

    Attributes:
        members: the classifiers.
        shares: by member, the weight of its probabilities in the mean; they sum to 1.
        places: by member, the place of each class of the first one among its own.

    Raises:
        UserError: the classifiers have other classes, or were trained on other columns.
    """

    def __init__(
        self,
        members: Sequence[TextClassifier],
        names: Sequence[str],
        *,
        temperature: float | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        first, self.shares = members[0], list(shares or _equal(len(members)))
        # A temperature of the first one is in its probabilities.
        shown = next((member for member in members if not is_ngrams(member.config)), first)
        config = {name: value for name, value in shown.config.items() if name != "temperature"}
        config["label_names"] = first.label_names
        config["members"] = sum(not is_ngrams(member.config) for member in members)
        config["ngrams"] = sum(
            share for member, share in zip(members, self.shares, strict=True) if is_ngrams(member.config)
        )
        if temperature is not None:
            config["temperature"] = temperature
        super().__init__(shown.net, shown.tokenizer, config)
        self.loaded_from, self.form = _folder_of(members), BUNDLE
        self.members = list(members)
        for member, name in zip(members, names, strict=True):
            if sorted(member.label_names) != sorted(first.label_names):
                raise UserError(
                    f"the classes of {name} are {listed_values(member.label_names)}, and those of {names[0]} "
                    f"{listed_values(first.label_names)}; average models of the same classes"
                )
            columns, expected = (model.config.get("text_columns") for model in (member, first))
            if columns != expected:
                raise UserError(
                    f"{name} reads the columns {columns}, and {names[0]} {expected}; average models of the same columns"
                )
        if len({member.thresholds is None for member in members}) > 1:
            raise UserError("some of these models give one label a text and others several; average models of one kind")
        self.places = [np.array([member.label_names.index(label) for label in first.label_names]) for member in members]
        if first.thresholds is not None:
            rows = [member.thresholds[place] for member, place in zip(members, self.places, strict=True)]  # type: ignore[index]
            self.thresholds = mean_of(rows, self.shares)

    @property
    def temperature(self) -> float | None:
        """Divides the logarithm of the mean, from which the probabilities are computed again (`tempered`)."""
        return self.config.get("temperature")

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """The mean of the members' class probabilities, float32 [n, C], in the order of the texts."""
        texts = texts_of(texts)
        rows = [member.probabilities(texts)[:, place] for member, place in zip(self.members, self.places, strict=True)]
        return tempered(mean_of(rows, self.shares), self.temperature)

    def _save_pretrained(self, save_directory: Path) -> None:
        names = _numbered(len(self.members))
        for member in self.members:  # all of them, before the first one is written: they may lie in this folder
            member.keep_graph()
        for name, member in zip(names, self.members, strict=True):
            folder = save_directory / name
            folder.mkdir(parents=True, exist_ok=True)
            member.remove_other_forms(folder)
            member._save_pretrained(folder)
        write_index(save_directory, self.label_names, names, self.temperature, self.shares)


def _folder_of(members: Sequence[TextClassifier]) -> Path | None:
    """The bundle that these are the members of; None if they were put together from several places."""
    places = [member.loaded_from for member in members]
    folder = places[0].parent if places[0] else None
    if folder is None or not (folder / BUNDLE).is_file() or places != members_of(folder):
        return None
    return folder


def mean_of(rows: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """The mean of arrays of equal shape by shares that sum to 1, computed in float64, float32."""
    return np.asarray(np.tensordot(np.asarray(shares), np.asarray(rows, dtype=np.float64), 1), dtype=np.float32)


def tempered(probabilities: np.ndarray, temperature: float | None) -> np.ndarray:
    """Probabilities [n, C] whose logarithms are divided by a temperature, float32; with None as they are."""
    if temperature is None:
        return probabilities
    logits = np.log(np.maximum(probabilities, SMALLEST, dtype=np.float64)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), dtype=np.float32)


def load_bundle(
    paths: Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    int8: bool = False,
    backend: Backend = "auto",
) -> Bundle:
    """Load classifiers, or bundles of them, as one.

    Raises:
        UserError: a model is missing, damaged or a language model, or they do not fit together.
    """
    found = each_model(paths)
    if not found:
        raise UserError("no model was given; name at least one")
    return Bundle([TextClassifier.from_pretrained(path, device=device, int8=int8, backend=backend) for path in found],
                  [str(path) for path in found], temperature=_temperature_of(paths),
                  shares=_shares_of(paths))  # fmt: skip


def mean_as_told(paths: Sequence[str | Path]) -> str:
    """What bundle.json and the choice of models tell of their mean; "" of one model."""
    return "" if len(each_model(paths)) == 1 else repr([_shares_of(paths), _temperature_of(paths)])


def _temperature_of(paths: Sequence[str | Path]) -> float | None:
    """The temperature of the mean of one bundle. Together with other models its members have another mean."""
    index = _index(paths[0]) if len(paths) == 1 else None
    return index.temperature if index else None


def _shares_of(paths: Sequence[str | Path]) -> list[float]:
    """By member its share in the mean of models and bundles. A bundle counts as often as it has members."""
    weights: list[float] = []
    for path in paths:
        index = _index(path)
        number = len(index.members) if index else 1
        weights += [number * share for share in index.shares] if index else [1.0]
    return [weight / sum(weights) for weight in weights]


def each_model(paths: Sequence[str | Path]) -> list[str | Path]:
    """The models that paths name, with the members of a bundle in its place."""
    found: list[str | Path] = []
    for path in paths:
        found += members_of(path) or [path]
    return found


class _Index(NamedTuple):
    members: list[Path]
    temperature: float | None
    shares: list[float]


def members_of(path: str | Path) -> list[Path] | None:
    """The model folders of a bundle, or of a directory whose model/ is one; None if the path is neither.

    Raises:
        UserError: bundle.json is damaged.
    """
    index = _index(path)
    return index.members if index else None


def make_up(path: str | Path) -> tuple[int, float]:
    """How many networks the model in a folder is the mean of, and the share of n-grams in it. Raises as `members_of`."""
    index = _index(path)
    if index is None:
        return 1, 0.0
    ngrams = [share for member, share in zip(index.members, index.shares, strict=True) if _holds_ngrams(member)]
    return len(index.members) - len(ngrams), sum(ngrams)


def _holds_ngrams(folder: Path) -> bool:
    """Whether the model in a folder is a linear classifier of n-grams; False for one that cannot be read."""
    try:
        config = files.parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and is_ngrams(config)


def _index(path: str | Path) -> _Index | None:
    """What bundle.json tells; arguments and errors as of `members_of`."""
    folder = Path(as_path(path))
    if not (folder / BUNDLE).is_file():
        folder /= "model"  # of a job (fit) with --ensemble
    file = folder / BUNDLE
    if not file.is_file():
        return None
    try:
        content = files.parse_json(file.read_text(encoding="utf-8"))
        names, temperature, shares = content["members"], content.get("temperature"), content.get("shares")
        good = content["format_version"] <= FORMAT_VERSION and isinstance(names, list) and all(map(_is_folder, names))
        good = good and len(set(names)) == len(names)
        # A bundle in a bundle is none of ours, and might hold itself.
        good = good and not any((folder / name / BUNDLE).is_file() for name in names)
        good = good and (temperature is None or is_temperature(temperature))
        good = good and (shares is None or _are_shares(shares, len(names)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        good = False
    if not good or not names:
        cure = "write it again by ulmfit export"
        if (folder.parent / "summary.json").is_file():
            cure = "start its ulmfit fit again, which trains nothing anew"
        raise UserError(f"{file} does not tell the members of a bundle; {cure}")
    return _Index([folder / name for name in names], None if temperature is None else float(temperature),
                  shares or _equal(len(names)))  # fmt: skip


def _equal(number: int) -> list[float]:
    """The shares of so many members that count alike."""
    return [1 / number] * number


def _are_shares(values: Any, number: int) -> bool:
    """Whether they are the shares of so many members."""
    return len(values) == number and min(values) > 0 and math.isclose(sum(values), 1.0, rel_tol=1e-6)


def _is_folder(name: Any) -> bool:
    """Whether it is the name of a folder directly in the bundle."""
    return isinstance(name, str) and Path(name).name == name and name != ".."


def save_bundle(folder: Path, paths: Sequence[str | Path], *, bits: Literal[8, 32] = 32) -> None:
    """Write a bundle of classifiers. Each is stored as `save_model` does.

    Raises:
        UserError: as `load_bundle`.
    """
    from ulmfit.model.pretrained import load_model, save_model

    bundle = load_bundle(paths, device="cpu", backend="torch")
    found = each_model(paths)
    names = _numbered(len(found))
    for name, path in zip(names, found, strict=True):
        net, tokenizer, config = load_model(path)
        save_model(folder / name, net, tokenizer, config, bits=bits)
    write_index(folder, bundle.label_names, names, bundle.temperature, bundle.shares)


def _numbered(number: int) -> list[str]:
    """The folders of so many members: 1, 2, 3, ..."""
    return [str(place) for place in range(1, number + 1)]


def write_index(
    folder: Path,
    label_names: Sequence[str],
    members: Sequence[str],
    temperature: float | None = None,
    shares: Sequence[float] | None = None,
) -> None:
    """Write bundle.json of a folder, unless it is there.

    Args:
        members: their folders in it.
        temperature, shares: of the `Bundle`.
    """
    content: dict[str, Any] = {"format_version": 1, "label_names": list(label_names), "members": list(members)}
    if temperature is not None:
        content |= {"format_version": 2, "temperature": temperature}
    if shares is not None and len(set(shares)) > 1:
        content |= {"format_version": 3, "shares": list(shares)}
    text = json.dumps(content, indent=2) + "\n"
    if not (folder / BUNDLE).is_file() or (folder / BUNDLE).read_text(encoding="utf-8", errors="replace") != text:
        files.write_text(folder / BUNDLE, text)
