"""The classifiers of a job with --ensemble as one: their scores together, and the model folder of the job.

Each is a run of its own in OUTPUT/clf, OUTPUT/clf-2, ... What is here is made of finished runs, and again where it is
missing or damaged: OUTPUT/ensemble.json holds the scores, OUTPUT/model a bundle of copies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.bundle import BUNDLE, Bundle, write_index
from ulmfit.config import ClassifierConfig
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import EvaluationStopped, StoppedEarly
from ulmfit.fit_config import LM, FitConfig
from ulmfit.inference import TextClassifier
from ulmfit.limits import LIMITS
from ulmfit.model.pretrained import CONFIG, TOKENIZER, WEIGHTS, read_config
from ulmfit.run.status import plain
from ulmfit.run_scores import ENSEMBLE, ensemble_scores, temperature_of
from ulmfit.training import setup
from ulmfit.training.job_files import copy_file, start_and_length
from ulmfit.training.result import TrainingResult
from ulmfit.training.scores import score_bundle
from ulmfit.training.session import SilentSession, open_session

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


def score_together(
    job: Path, members: Sequence[TrainingResult], config: ClassifierConfig, stop: StopRequest
) -> dict[str, dict[str, Any]]:
    """The scores of the mean of the members' probabilities, by split as of `score_bundle` (a collective). With --calibrate
    its temperature is found on the validation split, and stands in them.

    They are read from the job's ensemble.json if that has those of these weights, else it is written.

    Args:
        members: finished classifiers, on the same rows.
        config: the options of the first one.

    Raises:
        UserError: a model is damaged, or the corpus cannot be read.
        StoppedEarly: a stop was requested while the corpus was read or scored.
    """
    with open_session(config, stop) as session:
        runtime = session.runtime
        weights, kept = runtime.on_main(lambda: _kept(job, members))
        if kept is not None and config.calibrate == (temperature_of(kept) is not None):
            return kept
        models = [
            TextClassifier.from_pretrained(member.model_dir, device=runtime.device, backend="torch")
            for member in members
        ]
        bundle = Bundle(models, [str(member.run_dir) for member in members])
        # The trainings have told what there is to tell of the corpus.
        silent = SilentSession(
            session.config, runtime, session.stop, session.started, session.begun, session.early_stop
        )
        corpus = setup.corpus_of(silent, label_names=bundle.label_names)
        matrix = corpus.label_sets.matrix() if corpus.label_sets else None
        runtime.stop_scoring = session.stop.ends_evaluations
        scores = {}
        for name in ("valid", "test"):
            if name in corpus.splits:
                # The members have the tokenizer of their language model, so that one store is that of all.
                store = setup.store_of(silent, corpus.splits[name], bundle.tokenizer, with_labels=True)
                try:
                    found = score_bundle(
                        bundle, [store] * len(members), runtime, matrix, calibrate=config.calibrate and name == "valid"
                    )
                except EvaluationStopped:
                    raise StoppedEarly(session.stop.reason or "asked of another rank") from None
                scores[name] = plain(found)
        if runtime.is_main:
            content = {"weights": weights, "metrics": scores}
            files.write_text(job / ENSEMBLE, json.dumps(content, indent=2) + "\n")
        return scores


def _kept(job: Path, members: Sequence[TrainingResult]) -> tuple[dict[str, str], dict[str, dict[str, Any]] | None]:
    """Fingerprints of the members' weights by folder, and the scores in ensemble.json if they are of these."""
    weights = {member.run_dir.name: files.fingerprint(member.model_dir / WEIGHTS) for member in members}
    return weights, ensemble_scores(job, weights)


def write_model(folder: Path, sources: Sequence[Path], temperature: float | None = None) -> None:
    """Make the model folder of a job: a copy of one model, or a bundle of copies of several and the temperature of their
    mean.

    The folder may hold the other form, or a bundle of more or fewer. A reader finds a whole model at any time: copies
    come first, then what tells of them, and what nothing tells of any more is removed last.
    """
    several = len(sources) > 1
    targets = [folder / str(number) for number in range(1, len(sources) + 1)] if several else [folder]
    for source, target in zip(sources, targets, strict=True):
        for name in _FILES:
            copy_file(source / name, target / name)
    if several:
        write_index(folder, read_config(sources[0])["label_names"], len(sources), temperature)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
    else:
        (folder / BUNDLE).unlink(missing_ok=True)
    for left in folder.glob("[1-9]*"):
        if left.name.isdigit() and left not in targets and (left / WEIGHTS).is_file():
            shutil.rmtree(left)
