"""train_language_model: pretrain or fine-tune the AWD-LSTM language model on a corpus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ulmfit.batches.lm import CachedRows, StreamedRows
from ulmfit.batches.mixed_stream import MixedStreamedRows
from ulmfit.config import LMConfig, changed, check_kind, given
from ulmfit.data.mixed_corpus import MixedSplit
from ulmfit.data.splits import Split
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.model.initial_weights import init_language_model
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.option_types import flag, path_text
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import setup
from ulmfit.training.begun import masks_of
from ulmfit.training.default_encoder import chosen_encoder, default_encoder, given_encoder
from ulmfit.training.description import description, mixture_line, mixture_of
from ulmfit.training.lm_task import LanguageModelTask, Rows
from ulmfit.training.pretrained_start import check_direction
from ulmfit.training.result import TrainingResult
from ulmfit.training.run_task import run, run_session
from ulmfit.training.session import Session
from ulmfit.training.stages import Recipe, fit_length, narrow_quick, recipe_for
from ulmfit.training.vocabulary import check_vocabulary, resolve_subword

QUICK_SAMPLE = 4096


def train_language_model(config: LMConfig, stop: StopRequest | None = None) -> TrainingResult:
    """Train a language model from random weights, or fine-tune a pretrained one on the texts of a task.

    These are the first two steps of ULMFiT (Howard & Ruder 2018). The result is written to config.output_dir.
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
    check_kind(config, LMConfig, "train_language_model")
    return run_session(train_with, config, stop)


def train_with(config: LMConfig, session: Session) -> TrainingResult:
    """Train within an open session, as `run_session` calls it. `config` is the session's, with stored options filled in."""
    runtime = session.runtime
    asked_subword = config.subword
    pretrained = given_encoder(session)
    if pretrained is not None:
        check_direction(pretrained, config, f"--init {config.init}")
        if pretrained.kind != "language_model":
            what = {"encoder": "an encoder", "classifier": "a classifier, whose encoder is used"}[pretrained.kind]
            session.say(f"--init {config.init} holds {what}: the bias of the output layer starts at zero")
    corpus = setup.corpus_of(session, include_test=setup.reads_test(config))
    pretrained = pretrained or default_encoder(session, corpus.judged, path_text(config.init))
    session = resolve_subword(session, corpus.splits["train"])
    assert isinstance(session.config, LMConfig)
    config = session.config
    recipe = recipe_for(config, pretrained=pretrained is not None)
    micro_batches = 1 if config.micro_batches == "auto" else config.micro_batches
    _check_dealt(recipe.batch_size, runtime, micro_batches)

    base = None
    told = given(config) if session.begun is None else set()  # a begun run has the vocabulary that it began with
    if config.tokenizer:
        if unused := sorted({"min_freq", "rules", "vocab_size"} & told):
            raise UserError(
                f"--{flag(unused[0])} is for training a tokenizer and --tokenizer names a trained one; give one of them"
            )
        tokenizer = Tokenizer.from_file(config.tokenizer)
    else:
        if pretrained is not None:
            base = pretrained.tokenizer or Tokenizer.from_vocab(pretrained.vocab, rules=config.rules)
            if base.rules != config.rules and "rules" in told:
                raise UserError(
                    f"the model to start from brings the text rules {base.rules} and --rules names {config.rules}; leave out --rules"
                )
            if base.subword and (unused := sorted({"min_freq", "vocab_size"} & told)):
                raise UserError(
                    f"--init brings pieces of words, to which none are added; leave out --{flag(unused[0])}"
                )
        tokenizer = setup.tokenizer_of(session, corpus.splits["train"], base)

    check_vocabulary(session, corpus.judged, tokenizer)
    config = changed(config, sampled_softmax=_sampled_words(config, len(tokenizer), pretrained is not None, runtime))
    session = replace(session, config=config)
    if config.sampled_softmax is not None:
        session.say(
            f"--sampled-softmax {config.sampled_softmax}: each step learns from about {config.sampled_softmax:,} of "
            f"{len(tokenizer):,} words; loss and accuracy of training steps are among these and do not compare with the "
            "full softmax's, by which every evaluation goes"
        )

    rows = runtime.own_rows(recipe.batch_size)
    source: Rows
    if config.streaming:
        source = _streamed(corpus.splits["train"], tokenizer, config, recipe, rows)
    else:
        store = setup.store_of(session, corpus.splits["train"], tokenizer, with_labels=False)
        recipe = narrow_quick(recipe, config, store.num_tokens - 1)
        _check_dealt(recipe.batch_size, runtime, micro_batches)
        rows = runtime.own_rows(recipe.batch_size)
        source = cached = CachedRows(
            store,
            batch_size=recipe.batch_size,
            bptt=recipe.bptt,
            seed=config.seed,
            rows=rows,
            backwards=config.backwards,
            jitter=config.bptt_jitter,
        )
        recipe = fit_length(recipe, config, cached.steps_per_epoch(0))
    held_out = {
        name: setup.store_of(session, split, tokenizer, with_labels=False)
        for name, split in corpus.splits.items()
        if name != "train"
    }

    stores = {"train": source.store} | held_out if isinstance(source, CachedRows) else held_out
    for line in description(corpus, stores):
        session.say(line)
    mixture = mixture_of(source.store if isinstance(source, CachedRows) else source)
    if mixture:
        session.say(mixture_line(mixture))
    torch.manual_seed(config.seed)
    sizes = setup.architecture(config, len(tokenizer), pretrained.config if pretrained else None)
    sizes = sizes.with_dropouts("lm", recipe.drop_mult)
    net = LanguageModelNet(session.begun.architecture(sizes, config) if session.begun else sizes)
    if pretrained is not None:
        init_language_model(net, pretrained.state, pretrained.vocab, tokenizer.vocab)
        carried = len(set(tokenizer.vocab) & set(pretrained.vocab))
        session.say(
            f"{carried:,} of the {len(tokenizer):,} words of the vocabulary carry over their weights from the "
            f"{len(pretrained.vocab):,} of the pretrained model; the others start from the mean"
        )
    net = setup.to_precision(net, config, runtime)
    task = LanguageModelTask(
        net,
        source,
        held_out.get("valid"),
        tokenizer,
        config=config,
        recipe=recipe,
        runtime=runtime,
        rows=rows,
        masks=masks_of(session.begun),
    )
    return run(
        task,
        recipe,
        session,
        tokenizer=tokenizer,
        test=held_out.get("test") if config.score_test else None,
        saved={"backwards": config.backwards, "bptt": recipe.bptt, "eval_rows": recipe.batch_size},
        keep_best=setup.keeps_best(config, corpus),
        resolved=setup.resolved_data(
            session,
            corpus,
            vocab_size=None if config.tokenizer else config.vocab_size or setup.largest_vocabulary(base),
            init=config.init or chosen_encoder(pretrained),
            start_revision=pretrained.revision if pretrained else None,
            sampled_softmax=config.sampled_softmax or 0,
            subword=asked_subword and (config.subword or "none"),
            mixture=mixture or None,
        ),
        fingerprints={
            "corpus": corpus.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "init": pretrained.fingerprint if pretrained else None,
        },
    )


def _streamed(
    split: Split | MixedSplit, tokenizer: Tokenizer, config: LMConfig, recipe: Recipe, rows: range
) -> StreamedRows | MixedStreamedRows:
    """The rows of a corpus, or of several with weights, that is tokenised while it is read."""
    options: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "bptt": recipe.bptt,
        "seed": config.seed,
        "rows": rows,
        "backwards": config.backwards,
    }
    if not isinstance(split, MixedSplit):
        return StreamedRows(split, tokenizer, **options)
    sources = [(part.name, part.weight, part.split) for part in split.members if part.weight is not None]
    return MixedStreamedRows(sources, tokenizer, **options)


def _check_dealt(batch_size: int, runtime: Runtime, micro_batches: int) -> None:
    if batch_size % (runtime.world_size * micro_batches):
        raise UserError(
            f"--batch-size {batch_size} rows cannot be dealt evenly to {runtime.world_size} processes x "
            f"{micro_batches} micro-batches; give a multiple of {runtime.world_size * micro_batches}"
        )


def _sampled_words(config: LMConfig, vocab_size: int, pretrained: bool, runtime: Runtime) -> int | None:
    """Number of candidates of the sampled softmax in a step; None for the full softmax.

    On a CPU, fine-tuning with a pretrained vocabulary takes three times as long with the full softmax, and most words
    of that vocabulary do not occur in the corpus.

    Raises:
        UserError: the number is not smaller than the vocabulary.
    """
    asked = config.sampled_softmax
    if asked is None:
        on_cpu = runtime.device.type == "cpu"
        is_quick = config.recipe == "quick" and pretrained
        return QUICK_SAMPLE if is_quick and on_cpu and vocab_size >= 4 * QUICK_SAMPLE else None
    if asked >= vocab_size:
        raise UserError(
            f"--sampled-softmax {asked} has nothing to leave out of a vocabulary of {vocab_size} words; give "
            "--sampled-softmax 0, which is the full softmax"
        )
    return asked or None
