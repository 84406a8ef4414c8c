"""The rows that evaluate and top-losses read: a split of --data, or of the run that the model lies in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit.cli.reading import ReadingOptions
from ulmfit.errors import UserError
from ulmfit.option_types import flag

if TYPE_CHECKING:
    from ulmfit.data.splits import Split
    from ulmfit.distributed.runtime import Runtime


@dataclass(kw_only=True)
class ScoringOptions(ReadingOptions):
    """Which labelled rows are scored."""

    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: that of the run which the model lies in, else the
    embedded sample)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: what the classifier was trained on, else text)."""
    label_column: str | None = None
    """Column with the label or with lists of labels; several, comma-separated, of 0 and 1 (default: that of training
    where a text may have several labels, else label)."""
    label_separator: str | None = None
    """Between the labels of a cell, where a text may have several (default: that of training)."""
    unlabelled: str | None = None
    """Label of rows without a label (default: -1 where all classes are whole numbers)."""
    split: str | None = None
    """Split to score; all for every row (default: test, else valid, else all)."""
    valid: str | None = None
    """What training held out of data without a valid split, with --split valid (default: column is_valid, else 0.1)."""
    seed: int = 0
    """Training's seed, which chose a held-out fraction."""
    skip_unseen: bool = False
    """Leave out rows of --data whose label the classifier does not know, and count them (default: an error)."""


def split_of_run(
    options: ScoringOptions, model: str, saved: Mapping[str, Any], runtime: Runtime
) -> tuple[str, Split] | None:
    """The name and rows of a split of the run that the model lies in, divided as in its training (a collective).

    By default the test split, else the validation split. None if the model lies in no run.
    """
    from ulmfit.config import ClassifierConfig, LMConfig
    from ulmfit.data.sources import SPLIT_NAMES
    from ulmfit.paths import DESCRIBED
    from ulmfit.training.begun import read_begun
    from ulmfit.training.setup import corpus_of_run

    label_names = saved.get("label_names")
    config = (ClassifierConfig if label_names else LMConfig)(output_dir=str(folder_of_run(model)))
    begun = runtime.broadcast(read_begun(config) if runtime.is_main else None)
    if begun is None:
        return None
    filled = begun.fill(config)
    for option in ("text_column", "label_column", "label_separator", "valid"):
        if getattr(options, option) is not None:
            setattr(filled, option, getattr(options, option))
    if str(filled.data).startswith(DESCRIBED):
        raise UserError(f"{model} was trained on data from Python, which its run does not hold; give --data")
    if options.split == "all":
        for option in (
            "data",
            "text_column",
            "label_column",
            "label_separator",
            "separator",
            "encoding",
            "header",
            "unlabelled",
        ):
            if getattr(options, option) is None:
                setattr(options, option, getattr(filled, option, None))
        return None
    of_data = [name for name in ("separator", "encoding", "header", "unlabelled") if getattr(options, name) is not None]
    if of_data or options.skip_unseen:
        raise UserError(
            f"--{flag([*of_data, 'skip_unseen'][0])} is for --data, and here a split of the run is scored as it was read there; "
            "leave it out"
        )
    corpus = corpus_of_run(filled, begun, runtime, label_names)
    name = options.split or ("test" if "test" in corpus.splits else "valid")
    name = SPLIT_NAMES.get(name, name)
    if name not in corpus.splits:
        raise UserError(f"the data of {model} have no split {name}, only {', '.join(corpus.splits)}; give one "
                        "of these, or all")  # fmt: skip
    return name, corpus.splits[name]


def folder_of_run(model: str) -> Path:
    """The run directory that a model lies in; of the model of a job (fit), that of its last training, or of the first
    one of several classifiers."""
    from ulmfit.bundle import BUNDLE
    from ulmfit.fit_config import CLF, LM
    from ulmfit.model.pretrained import find_model
    from ulmfit.run.stored import CONFIG
    from ulmfit.training.job_files import read_json

    place = find_model(model).parent
    if (place / BUNDLE).is_file():  # the model is a member
        place = place.parent
    content = read_json(place / CONFIG)
    if isinstance(content, dict) and content.get("task") == "fit":
        return next((place / name for name in (CLF, LM) if (place / name / CONFIG).exists()), place)
    return place


def run_of(model: str) -> dict[str, Any]:
    """config.json of the run that a model lies in; empty if it lies in none."""
    from ulmfit.run.directory import read_stored

    with suppress(UserError):
        return read_stored(folder_of_run(model)) or {}
    return {}


def split_to_score(options: ScoringOptions, saved: Mapping[str, Any], model: str) -> tuple[str, Split]:
    """The name and rows of --split; by default test, else what is marked as validation, else all.

    `saved` is the config of `model`, which tells the classes of a classifier and the columns that it read.
    """
    from ulmfit.data.corpus import open_corpus, open_rows
    from ulmfit.data.fingerprint import SCHEME
    from ulmfit.data.label_sets import LabelSets
    from ulmfit.data.sources import SPLIT_NAMES, find

    several = LabelSets.of_model(saved, options.label_separator)
    label_names, trained_columns = saved.get("label_names"), saved.get("text_columns", ())
    access = options.access()
    found = find(options.data, access)
    marked = "valid" in found or ("train" in found and "is_valid" in found["train"].columns)
    name = options.split or ("test" if "test" in found else "valid" if marked or options.valid else "all")
    name = SPLIT_NAMES.get(name, name)
    if options.valid and name != "valid":
        raise UserError(f"--valid chooses rows of --split valid and not of {name}; leave it out")
    if name == "valid" and "train" in found and (options.valid or "valid" not in found):
        run = run_of(model)  # tells how its version drew the rows
        corpus = open_corpus(
            options.data,
            task="clf" if label_names else "lm",
            text_column=options.text_column,
            label_column=options.label_column or (",".join(several.columns) if several else None),
            label_separator=options.label_separator or (saved.get("label_separator") if several else None),
            valid=options.valid,
            seed=options.seed,
            group_column=run.get("options", {}).get("group_column"),
            label_names=label_names,
            unlabelled=options.unlabelled,
            trained_columns=trained_columns,
            access=replace(access, scheme=run.get("resolved", {}).get("scheme", SCHEME)),
        )
        if "valid" not in corpus.splits:
            raise UserError(f"training holds out no row of {options.data} (every class keeps one); give --split all")
        return name, corpus.splits["valid"]
    return name, open_rows(
        options.data,
        options.text_column,
        label_column=options.label_column,
        label_names=label_names,
        split=None if name == "all" else name,
        keep_unlabelled=label_names is None,
        skip_unseen=options.skip_unseen,
        streaming=False,
        unlabelled=options.unlabelled,
        trained_columns=trained_columns,
        several=several,
        access=access,
    )
