"""evaluate: loss and accuracy of a model on a corpus."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import UseAppendAction

from ulmfit.cli.common import tell_notes, tell_skipped
from ulmfit.cli.reading import ReadingOptions
from ulmfit.errors import UserError
from ulmfit.files import parse_json

if TYPE_CHECKING:
    import numpy as np

    from ulmfit.data.splits import Split
    from ulmfit.distributed.runtime import Runtime

LM_WINDOW = 70  # tokens at a time of a language model that does not tell its own
LM_ROWS = 64  # where neither the model nor its run tells


@dataclass(kw_only=True)
class EvaluateOptions(ReadingOptions):
    """Print loss and accuracy of a model on a corpus, as JSON."""

    model: UseAppendAction[list[str]]
    """Run directory, its model/, or OWNER/MODEL on the hub. Given several times, classifiers whose probabilities are
    averaged."""
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
    batch_size: int | None = None
    """Rows a language model is read in (default: those of its training; 64 where the model does not tell)."""
    skip_unseen: bool = False
    """Leave out rows of --data whose label the classifier does not know, and count them (default: an error)."""
    int8: bool = False
    """Matrix products of a classifier in 8 bits, on the CPU: faster, probabilities move by some 0.004."""


def evaluate(options: EvaluateOptions) -> None:
    """Score a model on a split, as its training does.

    A language model carries its state along each row, so the loss depends a little on the number of rows.
    """
    from ulmfit.bundle import members_of
    from ulmfit.cache_folder import cache_folder
    from ulmfit.config import ClassifierConfig
    from ulmfit.data.corpus import notes_of
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.hub import local_folder
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.int8 import quantize_encoder
    from ulmfit.model.pretrained import load_model
    from ulmfit.training.scores import score_classifier, score_labels, score_language_model
    from ulmfit.training.setup import tokenised

    options = replace(options, model=[local_folder(model) for model in options.model])
    path = options.model[0]
    with open_runtime(ClassifierConfig()) as (runtime, _):
        if len(options.model) > 1 or members_of(path):
            _evaluate_bundle(options, runtime)
            return
        net, tok, saved = load_model(path, device=runtime.device)
        is_classifier = isinstance(net, ClassifierNet)
        if options.int8:
            if not isinstance(net, ClassifierNet):
                raise UserError(f"--int8 is for classifiers and {path} is a language model; leave it out")
            quantize_encoder(net)
        own = None if options.data else _split_of_run(options, path, saved, runtime)
        name, split = own or runtime.main_first(lambda: _split_to_score(options, saved))
        store = tokenised(split, tok, cache_folder(), with_labels=is_classifier)
        runtime.barrier()
        if isinstance(net, ClassifierNet) and net.multi_label:
            metrics = score_labels(net, store, runtime, label_names=saved["label_names"], matrix=_matrix(split),
                                   thresholds=saved.get("thresholds") or [0.5] * net.num_classes,
                                   pad_id=tok.pad_id, backwards=saved["backwards"])  # fmt: skip
        elif isinstance(net, ClassifierNet):
            metrics = score_classifier(
                net,
                store,
                runtime,
                label_names=saved["label_names"],
                pad_id=tok.pad_id,
                backwards=saved["backwards"],
                temperature=saved.get("temperature"),
            )
        else:
            rows = options.batch_size or _trained_rows(path, saved)
            if rows is None:
                rows = LM_ROWS
                if runtime.is_main:
                    print(f"{path} does not tell the rows of its training; reading in {rows}", file=sys.stderr)
            bptt = saved.get("bptt", LM_WINDOW)
            metrics = {"rows": rows, "bptt": bptt} | score_language_model(
                net, store, runtime, num_rows=rows, bptt=bptt, backwards=saved["backwards"]
            )
        if runtime.is_main:
            tell_notes(notes_of([split]))
            tell_skipped(store.skipped)
            print(json.dumps({"split": name, "documents": store.num_documents, "tokens": store.num_tokens} | metrics))


def _matrix(split: Split) -> np.ndarray:
    """The labels of each class number of a split."""
    from ulmfit.data.label_sets import LabelSetSplit

    assert isinstance(split, LabelSetSplit), "rows for a model of several labels a text"
    return split.labels.matrix()


def _evaluate_bundle(options: EvaluateOptions, runtime: Runtime) -> None:
    """Score the mean of several classifiers."""
    from ulmfit.bundle import load_bundle, members_of
    from ulmfit.cache_folder import cache_folder
    from ulmfit.data.corpus import notes_of
    from ulmfit.training.scores import score_bundle
    from ulmfit.training.setup import tokenised

    bundle = load_bundle(options.model, device=runtime.device, int8=options.int8, backend="torch")
    first = (members_of(options.model[0]) or options.model)[0]
    own = None if options.data else _split_of_run(options, str(first), bundle.config, runtime)
    name, split = own or runtime.main_first(lambda: _split_to_score(options, bundle.config))
    stores = [tokenised(split, member.tokenizer, cache_folder(), with_labels=True) for member in bundle.members]
    runtime.barrier()
    metrics = score_bundle(bundle, stores, runtime, None if bundle.thresholds is None else _matrix(split))
    if runtime.is_main:
        tell_notes(notes_of([split]))
        tell_skipped(stores[0].skipped)
        counts = {"split": name, "documents": stores[0].num_documents, "tokens": stores[0].num_tokens}
        print(json.dumps(counts | {"models": len(bundle.members)} | metrics))


def _split_of_run(
    options: EvaluateOptions, model: str, saved: Mapping[str, Any], runtime: Runtime
) -> tuple[str, Split] | None:
    """The name and rows of a split of the run that the model lies in, divided as in its training (a collective).

    By default the test split, else the validation split. None if the model lies in no run.
    """
    from ulmfit.config import ClassifierConfig, LMConfig
    from ulmfit.data.in_memory import DESCRIBED
    from ulmfit.data.sources import SPLIT_NAMES
    from ulmfit.training.begun import read_begun
    from ulmfit.training.setup import corpus_of_run

    label_names = saved.get("label_names")
    config = (ClassifierConfig if label_names else LMConfig)(output_dir=str(_folder_of_run(model)))
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
    corpus = corpus_of_run(filled, begun, runtime, label_names)
    name = options.split or ("test" if "test" in corpus.splits else "valid")
    name = SPLIT_NAMES.get(name, name)
    if name not in corpus.splits:
        raise UserError(f"the data of {model} have no split {name}, only {', '.join(corpus.splits)}; give one "
                        "of these, or all")  # fmt: skip
    return name, corpus.splits[name]


def _trained_rows(model: str, saved: Mapping[str, Any]) -> int | None:
    """The rows in which training evaluated a language model.

    Models of earlier versions do not tell them, but the run that they lie in does.
    """
    from ulmfit.model.pretrained import find_model

    if "eval_rows" in saved:
        return int(saved["eval_rows"])
    with suppress(OSError, ValueError, KeyError, TypeError):
        run = parse_json((find_model(model).parent / "config.json").read_text(encoding="utf-8"))
        return int(run["resolved"]["batch_size"])
    return None


def _folder_of_run(model: str) -> Path:
    """The run directory that a model lies in; of the model of a job (fit), that of its last training."""
    from ulmfit.fit_config import CLF, LM
    from ulmfit.model.pretrained import find_model
    from ulmfit.run.stored import CONFIG
    from ulmfit.training.job_files import read_json

    place = find_model(model).parent
    content = read_json(place / CONFIG)
    if isinstance(content, dict) and content.get("task") == "fit":
        return next((place / name for name in (CLF, LM) if (place / name / CONFIG).exists()), place)
    return place


def _run_of(model: str) -> dict[str, Any]:
    """config.json of the run that a model lies in; empty if it lies in none."""
    from ulmfit.run.directory import read_stored

    with suppress(UserError):
        return read_stored(_folder_of_run(model)) or {}
    return {}


def _split_to_score(options: EvaluateOptions, saved: Mapping[str, Any]) -> tuple[str, Split]:
    """The name and rows of --split; by default test, else what is marked as validation, else all.

    `saved` is the model's config, which tells the classes of a classifier and the columns that it read.
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
        run = _run_of(options.model[0])  # tells how its version drew the rows
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
