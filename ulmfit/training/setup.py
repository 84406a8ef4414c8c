"""Set-up of both tasks between the start and the first step: corpus, tokenizer, token cache, sizes of the model."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ulmfit.batches.cache import TokenStore, Waiting
from ulmfit.batches.documents import TIME_STEP_OVERHEAD
from ulmfit.batches.local_copy import copied_to_node, local_folder
from ulmfit.batches.mixture import MixedStore
from ulmfit.batches.shared_build import build_together
from ulmfit.cache_folder import cache_folder, tidy, writing
from ulmfit.config import ClassifierConfig, LMConfig, TrainConfig
from ulmfit.console import say
from ulmfit.data.corpus import Corpus, Split
from ulmfit.data.duplicates import duplicate_notes
from ulmfit.data.fingerprint import Access, Revision
from ulmfit.data.mixed_corpus import MixedSplit, open_any_corpus
from ulmfit.data.sources import unread_beside
from ulmfit.data.tables import ReadOtherwise
from ulmfit.distributed.launch import uses_gpu
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.files import sealed, unsealed, write_text
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.option_types import path_text
from ulmfit.run.meter import Meter, metered_texts
from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer import subword as text_subword
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.begun import Begun, masks_of, scheme_of
from ulmfit.training.session import Session

VOCAB_SIZE = 60_000  # fastai's
ROOM_FOR_WORDS = 10_000  # for new words of the task, if the pretrained vocabulary is as large as fastai's
STREAM_TOKENIZER_DOCUMENTS = 100_000  # a stream may be endless: the tokenizer is trained on its first documents

Net = TypeVar("Net", bound=nn.Module)


def access_of(config: TrainConfig, begun: Begun | None, runtime: Runtime) -> Access:
    """How a training reads its sources; `begun` is the earlier run in its directory."""
    return Access(
        cache_dir=cache_folder(config.cache_dir),
        revision=begun.revision(config) if begun else None,
        scheme=scheme_of(begun),
        beat=runtime.progress.beat,
        separator=config.separator,
        encoding=config.encoding,
        header=config.header,
        by_content=not config.streaming,  # what is streamed may be too large to be read for its fingerprint
    )


def opened_corpus(
    config: TrainConfig, access: Access, *, include_test: bool = False, label_names: list[str] | None = None
) -> Corpus:
    """The corpus that the options of a training name. Raises as `open_any_corpus`."""
    return open_any_corpus(
        config.data,
        task=config.task,
        text_column=config.text_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        valid=path_text(config.valid),
        group_column=config.group_column,
        seed=config.seed_of_draws,
        streaming=config.streaming,
        include_test=include_test,
        label_names=label_names,
        unlabelled=getattr(config, "unlabelled", None),
        probability_columns=probability_columns(config),
        access=access,
    )


def corpus_of(session: Session, *, include_test: bool = False, label_names: list[str] | None = None) -> Corpus:
    """Open the corpus on every rank. Rank 0 is first, so that it fills the caches and reports a mistake once.

    Raises:
        UserError: the corpus cannot be read, or a rank has different data.
    """
    config, runtime = session.config, session.runtime
    access = access_of(config, session.begun, runtime)

    def read(access: Access) -> Corpus:
        try:
            return opened_by(access)
        except ReadOtherwise as error:
            assert session.begun is not None, "a new run reads as this version does"
            raise session.begun.refused(error.reason) from None

    def opened_by(access: Access) -> Corpus:
        return opened_corpus(config, access, include_test=include_test, label_names=label_names)

    opened: list[Corpus] = []

    def read_first() -> Revision:
        assert access.cache_dir is not None
        tidy(access.cache_dir)
        with session.stop.interruptible(), Meter("reading the files of the corpus") as meter:
            opened.append(read(replace(access, hashed=meter.count)))
        if not config.streaming:
            opened[0].notes += duplicate_notes(opened[0], access.cache_dir, access.beat)
        opened[0].notes += unread_beside(config.data, path_text(config.valid))
        return opened[0].revision

    revision = runtime.on_main(read_first)
    with session.stop.interruptible():
        corpus = opened[0] if opened else read(replace(access, revision=revision))
    refuse_other_data(runtime, corpus)
    for note in corpus.notes:
        session.say(note)
    if "valid" not in corpus.splits:
        units = "equal texts and groups" if config.group_column else "equal texts"
        kept = (
            "every class keeps a row for training, and " if config.task == "clf" else "one is left for training, and "
        )
        session.say(f"no validation: {kept}{units} stay together, which leaves none; --valid PATH names some")
    return corpus


def corpus_of_run(config: TrainConfig, begun: Begun, runtime: Runtime, label_names: list[str] | None) -> Corpus:
    """The corpus of an earlier run, divided as in its training (a collective).

    Args:
        config: the options of the run, as `Begun.fill` gives them.
        label_names: the classes of its model.

    Raises:
        UserError: as `corpus_of`.
    """
    session = Session(config, runtime, StopRequest(), time.monotonic(), begun, silent=True)
    return corpus_of(session, include_test=reads_test(config), label_names=label_names)


def reads_test(config: TrainConfig) -> bool:
    """Whether the language model reads the texts of the test split too."""
    if not isinstance(config, LMConfig):
        return False
    return config.recipe == "blog" if config.lm_on_test is None else config.lm_on_test


def probability_columns(config: TrainConfig) -> list[str]:
    """The columns with the probabilities of the classes, in the order of the classes; empty without."""
    given = config.probability_columns if isinstance(config, ClassifierConfig) else None
    return [name.strip() for name in given.split(",")] if given else []


def refuse_other_data(runtime: Runtime, corpus: Corpus) -> None:
    """Check that all ranks have the same corpus (a collective). It may be on disks of different machines.

    Raises:
        UserError: a rank's corpus differs from rank 0's; raised on all ranks.
    """
    mine = {name: split.fingerprint for name, split in sorted(corpus.splits.items())}
    (first, found), *others = runtime.gather_objects([(socket.gethostname(), mine)])
    for rank, (host, theirs) in enumerate(others, 1):
        names = [name for name in sorted(found.keys() | theirs.keys()) if found.get(name) != theirs.get(name)]
        if names:
            raise UserError(
                f"the data of rank {rank} (host {host}) differ from those of rank 0 (host {first}) in the split "
                f"{' and '.join(names)}; copy the same files to every node",
                rank=rank,
            )


def tokenizer_of(session: Session, split: Split, base: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer for these options. It is trained once on the training split and kept in the cache.

    With `base` (the pretrained model's tokenizer), the split's frequent words are appended to the vocabulary of `base`.
    """
    config = session.config
    assert isinstance(config, LMConfig | ClassifierConfig)
    vocab_size = config.vocab_size or largest_vocabulary(base)
    if session.begun is not None and session.begun.tokenizer is not None:
        return Tokenizer.from_str(session.begun.tokenizer)

    def learn(texts: Iterator[str]) -> Tokenizer:
        if base is not None:
            return base.extended(texts, vocab_size=vocab_size, min_freq=config.min_freq)
        return Tokenizer.train(
            texts, rules=config.rules, vocab_size=vocab_size, min_freq=config.min_freq, subword=config.subword
        )

    def train() -> str:
        # The rules are part of the key: a tokenizer cached by an earlier version may have other rules.
        normalizer = (text_subword if config.subword else text_rules).normalizer(config.rules)
        rules = base.fingerprint if base else normalizer.__getstate__()
        # So are the documents that it is trained on: a stream of the same files reads its first ones only.
        most = STREAM_TOKENIZER_DOCUMENTS if config.streaming else None
        key = (split.fingerprint, rules, vocab_size, config.min_freq, config.subword, most)
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        file = cache_folder(config.cache_dir) / "tokenizers" / f"{name}.sealed.json"
        if kept := _cached_tokenizer(file):
            return kept
        with session.stop.interruptible():
            tokenizer = learn(metered_texts(split, "training the vocabulary", most=most))
        with writing(cache_folder(config.cache_dir)):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, sealed({"tokenizer": tokenizer.to_str()}))
        return tokenizer.to_str()

    return Tokenizer.from_str(session.runtime.on_main(train))


def _cached_tokenizer(file: Path) -> str | None:
    """A tokenizer from the cache; None if it is missing or damaged, and is to be trained again."""
    with suppress(OSError, ValueError, KeyError, UserError):
        return Tokenizer.from_str(unsealed(file.read_text(encoding="utf-8"))["tokenizer"]).to_str()
    return None


def largest_vocabulary(base: Tokenizer | None) -> int:
    """Default of --vocab-size: fastai's; with `base`, large enough for its words and the task's."""
    return max(VOCAB_SIZE, len(base) + ROOM_FOR_WORDS if base else 0)


def overhead_of(session: Session) -> float:
    """The fixed cost of a time step by which documents are dealt to ranks and micro-batches (a collective).

    It is that of rank 0's device, or the stored one of a begun run: the sums of a step are made in the order of the
    deal, so that a resumed run ends with the same bits only with the same cost.
    """
    if session.begun is not None:
        return session.begun.time_step_overhead
    runtime = session.runtime
    return runtime.broadcast(TIME_STEP_OVERHEAD.get(runtime.device.type, TIME_STEP_OVERHEAD["cpu"]))


def resolved_data(session: Session, corpus: Corpus, **more: Any) -> dict[str, Any]:
    """For config.json: the values used for the corpus options, and the entries of `more` that are not None."""
    found = {
        "scheme": scheme_of(session.begun),
        "masks": masks_of(session.begun),
        "text_column": ",".join(corpus.text_columns) or None,  # the sources of a mixture may have different ones
        "label_column": corpus.label_column,
        "valid": corpus.fraction,
        "valid_rows": corpus.valid,
        "revision": corpus.revision,
    }
    return {name: value for name, value in (found | more).items() if value is not None}


def store_of(session: Session, split: Split | MixedSplit, tokenizer: Tokenizer, *, with_labels: bool) -> TokenStore:
    """The split as token ids. The ranks tokenise a large one together, a small one is tokenised by the first rank of a
    machine; the others open the cache."""
    if isinstance(split, MixedSplit):
        return _mixed(split, lambda part: store_of(session, part, tokenizer, with_labels=with_labels))
    cache_dir, waiting = cache_folder(session.config.cache_dir), session.stop.interruptible
    runtime = session.runtime
    store = tokenised(
        split,
        tokenizer,
        cache_dir,
        with_labels=with_labels,
        waiting=waiting,
        builders=runtime.world_size,
        tells=runtime.is_main,
    )
    runtime.barrier()
    split.report(store.num_documents + sum(store.skipped.values()), store.skipped)
    if session.config.local_cache is not None:
        folder = local_folder(path_text(session.config.local_cache))
        store = copied_to_node(store, folder, notice=say, waiting=waiting)
    return store


def tokenised(
    split: Split | MixedSplit,
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    with_labels: bool,
    waiting: Waiting = nullcontext,
    builders: int = 1,
    tells: bool = True,
) -> TokenStore:
    """The token cache of a split (see `build_together`). A progress meter is shown while it is built.

    Args:
        builders, tells: as of `build_together`.
    """
    if isinstance(split, MixedSplit):
        return _mixed(
            split, lambda part: tokenised(part, tokenizer, cache_dir, with_labels=with_labels, waiting=waiting)
        )
    with Meter(f"tokenising the {split.name} split", total=split.expected_rows()) as meter:
        return build_together(
            split,
            tokenizer,
            cache_dir,
            with_labels=with_labels,
            builders=builders,
            tells=tells,
            progress=meter.add,
            waiting=waiting,
        )


def _mixed(split: MixedSplit, store: Callable[[Split], TokenStore]) -> MixedStore:
    return MixedStore([(part.name, part.weight, store(part.split)) for part in split.members])


def keeps_best(config: TrainConfig, corpus: Corpus) -> bool:
    """Whether to export the weights of the best evaluation: the option if given, else with --stop-after, or only for
    recipe `quick`.

    The default is False where validation uses the test labels. It is False with --labels too: validation labels would
    be used in addition to the requested number.

    Raises:
        UserError: --stop-after without validation rows.
    """
    if config.stop_after and "valid" not in corpus.splits:
        raise UserError("--stop-after needs validation rows and no row could be held out; give them by --valid")
    if config.keep_best is not None:
        return config.keep_best and "valid" in corpus.splits
    if config.stop_after:
        return True
    few_labels = isinstance(config, ClassifierConfig) and config.labels is not None
    return config.recipe == "quick" and "valid" in corpus.splits and corpus.valid_split != "test" and not few_labels


def architecture(config: TrainConfig, vocab_size: int, pretrained: AWDLSTMConfig | None) -> AWDLSTMConfig:
    """The encoder's sizes: the pretrained model's if there is one, else those of --preset.

    Raises:
        UserError: --preset does not match the sizes of the pretrained model.
    """
    preset = config.preset or ("tiny" if config.data is None else "base" if uses_gpu() else "small")
    if pretrained is None:
        return AWDLSTMConfig(vocab_size, **PRESETS[preset])
    sizes = {name: getattr(pretrained, name) for name in PRESETS[preset]}
    if config.preset is not None and sizes != PRESETS[preset]:
        asked, got = ("/".join(map(str, values.values())) for values in (PRESETS[preset], sizes))
        raise UserError(f"--preset {preset} is {asked} but the pretrained model is {got}; leave out --preset")
    return AWDLSTMConfig(vocab_size, **sizes)


def to_precision(net: Net, config: TrainConfig, runtime: Runtime) -> Net:
    """Move the model to its device, as fp64 if requested. In mixed precision the weights stay fp32."""
    return net.to(runtime.device, dtype=torch.float64 if config.precision == "fp64" else torch.float32)
