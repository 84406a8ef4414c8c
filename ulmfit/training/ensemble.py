"""The classifiers of a job with --ensemble as one: their scores together, and the model folder of the job.

Each is a run of its own in OUTPUT/clf, OUTPUT/clf-2, ... What is here is made of finished runs, and again where it is
missing or damaged: OUTPUT/ensemble.json holds the scores, OUTPUT/model a bundle of copies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ulmfit import files
from ulmfit.bundle import BUNDLE, Bundle, write_index
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import EvaluationStopped, StoppedEarly, UserError
from ulmfit.fit_config import LM, NGRAMS, FitConfig
from ulmfit.inference import TextClassifier
from ulmfit.limits import LIMITS
from ulmfit.model.pretrained import TOKENIZER, fault_of
from ulmfit.model.stored_config import CONFIG, read_config
from ulmfit.model.stored_weights import WEIGHTS
from ulmfit.run.status import plain
from ulmfit.run_scores import ENSEMBLE, ensemble_scores, ngrams_of, temperature_of
from ulmfit.training import setup
from ulmfit.training.job_files import copy_file, start_and_length
from ulmfit.training.ngram_member import NO_NGRAMS, Chosen, Ngrams, join, obstacle, shares_with
from ulmfit.training.result import TrainingResult
from ulmfit.training.scores import member_probabilities, score_bundle
from ulmfit.training.session import open_session

_FILES = (CONFIG, WEIGHTS, TOKENIZER)
_USUAL = 3
_FEW = 10_000  # labelled texts


def usual_number(job: Path, config: FitConfig, rows: int) -> int:
    """How many classifiers a job trains whose options do not say.

    On few texts, three cost minutes and are right on one text more in a hundred (benchmarks/RESULTS.md). That was measured
    with the recipe quick on a pretrained language model.

    Args:
        job: the directory of the job, whose language model is done.
        rows: labelled texts to train on.
    """
    pretrained = start_and_length(job, config, (LM,))["init"]
    if config.recipe != "quick" or not pretrained or rows > _FEW:
        return 1
    seed = config.clf.get("seed", config.seed)
    return int(min(_USUAL, LIMITS["seed"].most - seed + 1))  # each has the seed behind that of the one before


class Together(NamedTuple):
    """What the model of a job is the mean of, and how good it is.

    Attributes:
        scores: by split, as of `score_bundle`; none of one classifier alone, which its run tells.
        ngrams: of n-grams in the mean their share, strength, gain and `taught` (`ngram_member.Chosen`); None without them.
    """

    scores: dict[str, dict[str, Any]]
    ngrams: dict[str, float] | None = None


def score_together(
    job: Path,
    members: Sequence[TrainingResult],
    language_model: LMConfig,
    config: ClassifierConfig,
    stop: StopRequest,
    ngrams: Ngrams = "never",
) -> Together:
    """Score the mean of the members' probabilities, to which n-grams are joined where they pay (a collective). With
    --calibrate its temperature is found on the validation split, and stands in the scores.

    It is read from the job's ensemble.json if that has the scores of these weights, else it is written.

    Args:
        members: finished classifiers, on the same rows.
        language_model, config: the options of the job's language model and of the first classifier.
        ngrams: whether n-grams may join the mean.

    Raises:
        UserError: a model is damaged, the corpus cannot be read, or n-grams that are asked for cannot be had.
        StoppedEarly: a stop was requested while the corpus was read or scored.
    """
    with open_session(config, stop) as session:
        runtime = session.runtime
        kept = runtime.on_main(lambda: _kept(job, members, ngrams))
        if kept is not None and (
            config.calibrate == (temperature_of(kept.scores) is not None) or len(members) == 1 and not kept.ngrams
        ):
            return kept
        models = [
            TextClassifier.from_pretrained(member.model_dir, device=runtime.device, backend="torch")
            for member in members
        ]
        bundle = Bundle(models, [str(member.run_dir) for member in members])
        # The trainings have told what there is to tell of the corpus.
        silent = replace(session, silent=True)
        corpus = setup.corpus_of(silent, label_names=bundle.label_names)
        matrix = corpus.label_sets.matrix() if corpus.label_sets else None
        # The members have the tokenizer of their language model, so that one store is that of all.
        stores = {
            name: setup.store_of(silent, corpus.splits[name], bundle.tokenizer, with_labels=True)
            for name in ("valid", "test")
            if name in corpus.splits
        }
        runtime.stop_scoring = session.stop.ends_evaluations
        chosen: Chosen | None = None
        try:
            parts = {}
            reason = obstacle(config, corpus)
            if ngrams == "always" and reason:
                raise UserError(NO_NGRAMS.format(reason))
            if ngrams != "never" and reason is None:
                parts["valid"] = member_probabilities(bundle, [stores["valid"]] * len(members), runtime)
                bundle, chosen = join(
                    job, bundle, parts["valid"], stores, corpus, language_model, silent, always=ngrams == "always"
                )
            scores = {}
            for name, store in stores.items() if len(bundle.members) > 1 else ():
                found = score_bundle(
                    bundle,
                    [store] * len(bundle.members),
                    runtime,
                    matrix,
                    calibrate=config.calibrate and name == "valid",
                    known=parts.get(name, ()),
                )
                scores[name] = plain(found)
        except EvaluationStopped:
            raise StoppedEarly(session.stop.reason or "asked of another rank") from None
        told = None if chosen is None else chosen.told()
        if runtime.is_main:
            content: dict[str, Any] = {"weights": _weights(job, members, told is not None), "metrics": scores}
            content |= {} if ngrams == "never" else {"ngrams": told}
            files.write_text(job / ENSEMBLE, json.dumps(content, indent=2) + "\n")
        return Together(scores, told)


def _weights(job: Path, members: Sequence[TrainingResult], with_ngrams: bool) -> dict[str, str]:
    """Fingerprints of the weights in the mean, by folder."""
    models = {member.run_dir.name: member.model_dir for member in members}
    models |= {NGRAMS: job / NGRAMS} if with_ngrams else {}
    return {name: files.fingerprint(model / WEIGHTS) for name, model in models.items()}


def _kept(job: Path, members: Sequence[TrainingResult], ngrams: Ngrams) -> Together | None:
    """What ensemble.json tells, if it is of these weights and of n-grams as they are wanted."""
    found = ngrams_of(job)
    with suppress(OSError, UserError):  # the folder of the n-grams is gone, or is damaged
        scores = ensemble_scores(job, _weights(job, members, bool(found)))
        if found and fault_of(job / NGRAMS):
            return None
        asked = found is not None
        if scores is not None and asked == (ngrams != "never") and (found or ngrams != "always"):
            return Together(scores, found or None)
    return None


def write_model(
    folder: Path, sources: Sequence[Path], temperature: float | None = None, ngrams: float | None = None
) -> None:
    """Make the model folder of a job: a copy of one model, or a bundle of copies of several and the temperature of their
    mean.

    Args:
        ngrams: share of n-grams, which are the last source; None without them.

    The folder may hold the other form, or a bundle of more or fewer. A reader finds a whole model at any time: copies
    come first, then what tells of them, and what nothing tells of any more is removed last.
    """
    several = len(sources) > 1
    names = [
        NGRAMS if ngrams is not None and source is sources[-1] else str(number)
        for number, source in enumerate(sources, 1)
    ]
    targets = [folder / name for name in names] if several else [folder]
    for source, target in zip(sources, targets, strict=True):
        for name in _FILES:
            copy_file(source / name, target / name)
    if several:
        shares = None if ngrams is None else shares_with(ngrams, len(sources) - 1)
        write_index(folder, read_config(sources[0])["label_names"], names, temperature, shares)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
    else:
        (folder / BUNDLE).unlink(missing_ok=True)
    for left in [*folder.glob("[1-9]*"), folder / NGRAMS]:
        if (left.name.isdigit() or left.name == NGRAMS) and left not in targets and (left / WEIGHTS).is_file():
            shutil.rmtree(left)
