"""train_classifier: from a corpus and an encoder to a trained classifier."""

from __future__ import annotations

import numpy as np
import torch

from ulmfit.batches.order import Draw, permutation
from ulmfit.config import ClassifierConfig, check_kind
from ulmfit.data.corpus import Corpus
from ulmfit.data.probabilities import SoftSplit
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.model.classifier import ClassifierNet
from ulmfit.option_types import path_text
from ulmfit.training import setup
from ulmfit.training.begun import masks_of
from ulmfit.training.clf_task import ClassifierTask, classes_of, metric_of
from ulmfit.training.default_encoder import chosen_encoder, default_encoder, given_encoder
from ulmfit.training.description import description, warnings_about_classes
from ulmfit.training.pretrained_start import check_direction
from ulmfit.training.result import TrainingResult
from ulmfit.training.run_task import run, run_session
from ulmfit.training.session import Session
from ulmfit.training.stages import fit_length, recipe_for
from ulmfit.training.vocabulary import check_vocabulary, resolve_subword


def train_classifier(config: ClassifierConfig, stop: StopRequest | None = None) -> TrainingResult:
    """Train a text classifier on a language model's encoder.

    This is the last step of ULMFiT (Howard & Ruder 2018). The result is written to config.output_dir.
    A second call with the same configuration resumes from the newest checkpoint. One process may train several
    models, one after another. Under `accelerate launch`, torchrun or `notebook_launcher` every process must call it.

    Args:
        config: the options; not modified.
        stop: the stop request of a script that handles signals itself. Without it, Ctrl-C (in the main thread) stops
            after the current step, with a checkpoint, and a second Ctrl-C stops at once.

    Raises:
        UserError: an option, file, column or model is wrong. Nothing was written or overwritten. It is raised on all
            processes of a launch, even if only one of them found it.
        TrainingInterrupted: stopped by Ctrl-C; a checkpoint was written.
    """
    check_kind(config, ClassifierConfig, "train_classifier")
    return run_session(train_with, config, stop)


def check_options(config: ClassifierConfig, corpus: Corpus) -> None:
    """Check the options that depend on the corpus.

    Raises:
        UserError: one does not fit it.
    """
    metric = metric_of(config, several=corpus.label_sets is not None)
    if metric == "micro_f1" and not corpus.label_sets:
        raise UserError("--metric micro_f1 is for several labels a row; with one it is the accuracy")
    if config.metric is not None and not (setup.keeps_best(config, corpus) or config.stop_after):
        raise UserError(f"--metric {config.metric} decides nothing here; give --keep-best or --stop-after too")
    if config.calibrate and "valid" not in corpus.splits:
        raise UserError("--calibrate needs validation texts and there are none; name some with --valid")
    if config.calibrate and corpus.label_sets:
        raise UserError("--calibrate is for one label a text; with several, a threshold by label is chosen anyway")


def train_with(config: ClassifierConfig, session: Session) -> TrainingResult:
    """Train within an open session, as `run_session` calls it. `config` is the session's, with stored options filled in."""
    runtime = session.runtime
    pretrained = given_encoder(session)
    if pretrained is not None and pretrained.tokenizer is None:
        raise UserError(
            f"--encoder {config.encoder} has a vocabulary but no tokenizer; fine-tune it on your corpus "
            "first with train_lm.py --init, then give that run here"
        )
    if pretrained is not None:
        check_direction(pretrained, config, f"--encoder {config.encoder}")
    corpus = setup.corpus_of(session)
    pretrained = pretrained or default_encoder(session, corpus.judged, path_text(config.encoder))
    if pretrained is None and (config.encoder is not None or config.data is None):  # else a line has said so
        session.say("the encoder starts from random weights (train_lm.py makes a better one, see --encoder)")
    asked_subword = config.subword
    session = resolve_subword(session, corpus.splits["train"])
    assert isinstance(session.config, ClassifierConfig)
    config = session.config
    keep_best = setup.keeps_best(config, corpus)
    check_options(config, corpus)
    metric = metric_of(config, several=corpus.label_sets is not None)
    recipe = recipe_for(config, pretrained=pretrained is not None)
    if config.micro_batches != "auto" and config.micro_batches > recipe.batch_size:
        raise UserError(
            f"--micro-batches {config.micro_batches} cannot each have one of the {recipe.batch_size} documents of a "
            f"step; give at most {recipe.batch_size}"
        )
    tokenizer = pretrained.tokenizer if pretrained else setup.tokenizer_of(session, corpus.splits["train"])
    label_names = corpus.label_names
    assert tokenizer is not None and label_names is not None
    check_vocabulary(session, corpus.judged, tokenizer)
    stores = {
        name: setup.store_of(session, split, tokenizer, with_labels=True) for name, split in corpus.splits.items()
    }
    if config.labels is not None:
        chosen = balanced_draw(classes_of(stores["train"]), config.labels, seed=config.seed_of_draws)
        stores["train"] = stores["train"].subset(chosen)
    sets = corpus.label_sets.matrix() if corpus.label_sets else None
    for line in description(corpus, stores, label_names, sets) + warnings_about_classes(stores, label_names, sets):
        session.say(line)
    train = corpus.splits["train"]
    targets = train.probabilities(stores["train"].rows) if isinstance(train, SoftSplit) else None
    recipe = fit_length(recipe, config, -(-stores["train"].num_documents // recipe.batch_size))

    torch.manual_seed(config.seed)
    sizes = setup.architecture(config, len(tokenizer), pretrained.config if pretrained else None)
    sizes = sizes.with_dropouts("clf", recipe.drop_mult)
    net = ClassifierNet(
        session.begun.architecture(sizes, config) if session.begun else sizes,
        len(label_names),
        bptt=recipe.bptt,
        max_len=config.max_len,
        head_hidden=config.head_size,
        gradient_window=config.gradient_window,
        multi_label=sets is not None,
    )
    if pretrained is not None:
        net.encoder.load_state_dict(pretrained.encoder_state())
    net = setup.to_precision(net, config, runtime)
    overhead = setup.overhead_of(session)
    task = ClassifierTask(
        net,
        stores["train"],
        stores.get("valid"),
        label_names,
        config=config,
        recipe=recipe,
        runtime=runtime,
        pad_id=tokenizer.pad_id,
        targets=targets,
        sets=sets,
        tokenizer=tokenizer,
        masks=masks_of(session.begun),
        overhead=overhead,
    )
    return run(
        task,
        recipe,
        session,
        tokenizer=tokenizer,
        test=stores.get("test"),
        saved={"label_names": label_names, "backwards": config.backwards, "text_columns": corpus.text_columns}
        | (corpus.label_sets.saved() if corpus.label_sets else {}),
        keep_best=keep_best,
        resolved=setup.resolved_data(
            session,
            corpus,
            metric=metric if keep_best or config.stop_after else None,
            time_step_overhead=overhead,
            vocab_size=None if pretrained else config.vocab_size or setup.largest_vocabulary(None),
            encoder=config.encoder or chosen_encoder(pretrained),
            start_revision=pretrained.revision if pretrained else None,
            subword=asked_subword and (config.subword or "none"),
        ),
        fingerprints={
            "corpus": corpus.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "encoder": pretrained.fingerprint if pretrained else None,
        },
    )


def balanced_draw(labels: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    """Draw `number` documents, the classes as equally often as their sizes allow. Returns int64 indices, ascending.

    With the same labels and seed, a larger draw contains every smaller one.

    Raises:
        UserError: there are fewer than `number` documents.
    """
    if number > len(labels):
        raise UserError(f"--labels {number} is more than the {len(labels)} labelled documents for training; give fewer")
    order = permutation(len(labels), seed, 0, Draw.LABELS)
    # The rank of each document within its class. Sorting by it takes the first of every class, then the second, ...
    turns = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turns[members] = np.arange(len(members))
    drawn = order[np.argsort(turns[order], kind="stable")]
    return np.sort(drawn[:number])
