"""evaluate: loss and accuracy of a model on a corpus."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tyro.conf import UseAppendAction

from ulmfit.cli.common import tell_notes, tell_skipped
from ulmfit.cli.scored import ScoringOptions, run_of, split_of_run, split_to_score
from ulmfit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ulmfit.data.splits import Split
    from ulmfit.distributed.runtime import Runtime

LM_WINDOW = 70  # tokens at a time of a language model that does not tell its own
LM_ROWS = 64  # where neither the model nor its run tells


@dataclass(kw_only=True)
class EvaluateOptions(ScoringOptions):
    """Print loss and accuracy of a model on a corpus, as JSON."""

    model: UseAppendAction[list[str]]
    """Run directory, its model/, or OWNER/MODEL on the hub. Given several times, classifiers whose probabilities are
    averaged."""
    batch_size: int | None = None
    """Rows a language model is read in (default: those of its training; 64 where the model does not tell)."""
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
    from ulmfit.model.ngrams import NGramNet
    from ulmfit.model.pretrained import load_model
    from ulmfit.training.scores import rows_of, score_classifier, score_labels, score_language_model
    from ulmfit.training.setup import tokenised

    options = replace(options, model=[local_folder(model) for model in options.model])
    path = options.model[0]
    with open_runtime(ClassifierConfig()) as (runtime, _):
        if len(options.model) > 1 or members_of(path):
            _evaluate_bundle(options, runtime)
            return
        net, tok, saved = load_model(path, device=runtime.device)
        is_classifier = isinstance(net, ClassifierNet | NGramNet)
        if options.int8 and not is_classifier:
            raise UserError(f"--int8 is for classifiers and {path} is a language model; leave it out")
        if options.int8 and isinstance(net, ClassifierNet):
            quantize_encoder(net)
        own = None if options.data else split_of_run(options, path, saved, runtime)
        name, split = own or runtime.main_first(lambda: split_to_score(options, saved, path))
        store = tokenised(split, tok, cache_folder(), with_labels=is_classifier)
        runtime.barrier()
        if isinstance(net, ClassifierNet) and net.multi_label:
            metrics = score_labels(net, store, runtime, label_names=saved["label_names"], matrix=_matrix(split),
                                   thresholds=saved.get("thresholds") or [0.5] * net.num_classes,
                                   pad_id=tok.pad_id, backwards=saved["backwards"])  # fmt: skip
        elif isinstance(net, ClassifierNet | NGramNet):
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
            metrics = {"rows": rows_of(store, rows, bptt), "bptt": bptt} | score_language_model(
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
    own = None if options.data else split_of_run(options, str(first), bundle.config, runtime)
    name, split = own or runtime.main_first(lambda: split_to_score(options, bundle.config, str(first)))
    stores = [tokenised(split, member.tokenizer, cache_folder(), with_labels=True) for member in bundle.members]
    runtime.barrier()
    metrics = score_bundle(bundle, stores, runtime, None if bundle.thresholds is None else _matrix(split))
    if runtime.is_main:
        tell_notes(notes_of([split]))
        tell_skipped(stores[0].skipped)
        counts = {"split": name, "documents": stores[0].num_documents, "tokens": stores[0].num_tokens}
        print(json.dumps(counts | {"models": len(bundle.members)} | metrics))


def _trained_rows(model: str, saved: Mapping[str, Any]) -> int | None:
    """The rows in which training evaluated a language model.

    Models of earlier versions do not tell them, but the run that they lie in does.
    """
    if "eval_rows" in saved:
        return int(saved["eval_rows"])
    found = run_of(model).get("resolved", {}).get("batch_size")
    return found if type(found) is int else None
