"""train_language_model: pretrain or fine-tune the AWD-LSTM language model. Also the language model's task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.lm import MOST_JITTER, CachedRows, LMBatch, StreamedRows, merge_states
from ulmfit.batches.mixed_stream import MixedStreamedRows
from ulmfit.batches.mixture import MixedStore
from ulmfit.config import LMConfig
from ulmfit.data.mixed_corpus import MixedSplit
from ulmfit.data.splits import Split
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import init_language_model
from ulmfit.model.sampled_softmax import Candidates, inclusion_probabilities
from ulmfit.option_types import path_text
from ulmfit.run.board import verbatim
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import setup
from ulmfit.training.begun import masks_of
from ulmfit.training.default_encoder import chosen_encoder, default_encoder, given_encoder
from ulmfit.training.description import description, mixture_line, mixture_of
from ulmfit.training.engine import Passes
from ulmfit.training.loop import StepResult
from ulmfit.training.masks import DEFINITION, Masks, derive_seed, draw_words
from ulmfit.training.pretrained_start import check_direction
from ulmfit.training.result import TrainingResult
from ulmfit.training.run_task import run, run_session
from ulmfit.training.scores import score_language_model
from ulmfit.training.session import Session
from ulmfit.training.stages import Recipe, lengthen_quick, narrow_quick, recipe_for
from ulmfit.training.vocabulary import check_vocabulary, resolve_subword

Rows = CachedRows | StreamedRows | MixedStreamedRows

SAMPLE_WORDS = 40
PROMPT_WORDS = 6
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
    return run_session(train_with, config, stop)


def train_with(config: LMConfig, session: Session) -> TrainingResult:
    """Train within an open session, as `run_session` calls it. `config` is the session's, with stored options filled in."""
    runtime = session.runtime
    asked_subword = config.subword
    pretrained = given_encoder(path_text(config.init))
    if pretrained is not None:
        check_direction(pretrained, config, f"--init {config.init}")
        if pretrained.kind != "language_model":
            what = {"encoder": "an encoder", "classifier": "a classifier, whose encoder is used"}[pretrained.kind]
            session.say(f"--init {config.init} holds {what}: the bias of the output layer starts at zero")
    corpus = setup.corpus_of(session, include_test=setup.reads_test(config))
    pretrained = pretrained or default_encoder(session, corpus.judged, path_text(config.init))
    session, kind = resolve_subword(session, corpus.splits["train"])
    config = replace(config, subword=kind)
    recipe = recipe_for(config, pretrained=pretrained is not None)
    micro_batches = 1 if config.micro_batches == "auto" else config.micro_batches
    _check_dealt(recipe.batch_size, runtime, micro_batches)

    base = None
    if config.tokenizer:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    else:
        if pretrained is not None:
            base = pretrained.tokenizer or Tokenizer.from_vocab(pretrained.vocab, rules=config.rules)
        tokenizer = setup.tokenizer_of(session, corpus.splits["train"], base)

    check_vocabulary(session, corpus.judged, tokenizer)
    config = replace(config, sampled_softmax=_sampled_words(config, len(tokenizer), pretrained is not None, runtime))
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
        recipe = lengthen_quick(recipe, config, cached.steps_per_epoch(0))
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
        test=held_out.get("test"),
        saved={"backwards": config.backwards, "bptt": recipe.bptt, "eval_rows": recipe.batch_size},
        keep_best=setup.keeps_best(config, corpus),
        resolved=setup.resolved_data(
            session,
            corpus,
            vocab_size=None if config.tokenizer else config.vocab_size or setup.largest_vocabulary(base),
            init=config.init or chosen_encoder(pretrained),
            sampled_softmax=config.sampled_softmax or 0,
            subword=asked_subword and (kind or "none"),
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
            f"--sampled-softmax {asked} has nothing to leave out of a vocabulary of {vocab_size} words; leave the "
            "option out"
        )
    return asked or None


class LanguageModelTask:
    """The language model's batches, steps and hidden state, for the loop.

    A rank holds `rows` of the global batch and keeps their hidden state between steps. `--micro-batches` divides
    these rows further. Losses are summed and divided by the global number of targets, so the result does not depend
    on the number of ranks or micro-batches.
    """

    name = "language model"

    def __init__(
        self,
        net: LanguageModelNet,
        source: Rows,
        valid: TokenStore | None,
        tokenizer: Tokenizer,
        *,
        config: LMConfig,
        recipe: Recipe,
        runtime: Runtime,
        rows: range,
        masks: int = DEFINITION,
    ) -> None:
        self.net, self.groups = net, net.layer_groups()
        self._source, self._valid, self._tokenizer = source, valid, tokenizer
        self._config, self._recipe, self._runtime, self._rows = config, recipe, runtime, rows
        self._masks = masks
        self.micro_batches = 1 if config.micro_batches == "auto" else config.micro_batches
        self._inclusion: Tensor | None = None  # [V], probability that a word is a candidate of the sampled softmax
        if config.sampled_softmax is not None:
            self._inclusion = inclusion_probabilities(net.config.vocab_size, config.sampled_softmax)
            self._log_inclusion = self._inclusion.log().to(runtime.device, dtype=net.decoder_bias.dtype)
        self.reset_hidden()

    @property
    def source_names(self) -> Sequence[str]:
        """The sources of a mixture; empty for one corpus."""
        texts = self._source.store if isinstance(self._source, CachedRows) else self._source
        return texts.names if isinstance(texts, MixedStore | MixedStreamedRows) else ()

    @property
    def most_micro_batches(self) -> int:
        """The largest possible number of micro-batches: the largest power of two that divides this rank's rows."""
        return len(self._rows) & -len(self._rows)

    def largest_batch(self) -> LMBatch:
        """A batch of the size that needs most memory, with dummy tokens."""
        length = self._recipe.bptt + (MOST_JITTER if self._config.bptt_jitter else 0)
        tokens = torch.zeros(len(self._rows), length, dtype=torch.long)
        return LMBatch(tokens, tokens, tokens.numel(), True, 0, 0)

    def mean_tokens(self) -> float:
        """Tokens of a global step."""
        return self._recipe.batch_size * self._recipe.bptt

    def trained_windows(self) -> list[list[tuple[int, int]]]:
        """For each micro-batch of the largest step: (rows, tokens a row) of each encoder call with gradient."""
        return [[(-(-len(self._rows) // self.micro_batches), self._recipe.bptt)]]

    def reset_hidden(self) -> None:
        """Set the hidden state to zeros."""
        self._state = self.net.init_state(len(self._rows))

    def steps_in_epoch(self, epoch: int) -> int | None:
        """Steps of an epoch of the cached corpus; None for a stream."""
        return None if self._config.streaming else self._source.steps_per_epoch(epoch)

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """Endless batches from a position on (None: from the start), each with the position after it."""
        return self._source.batches(state)

    def global_position(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The position of all rows, merged from those of all ranks, on rank 0; None on the others (a collective)."""
        states = self._runtime.collect_objects(state)
        return None if states is None else merge_states(states)

    def step(self, engine: Passes, batch: LMBatch, number: int) -> StepResult:
        """Forward and backward pass of this rank's rows. The gradients are those of the global mean loss."""
        runtime, config, device = self._runtime, self._config, self._runtime.device
        tokens, targets = to_device(batch.tokens, device), to_device(batch.targets, device)
        if batch.reset:
            self.reset_hidden()
        cuts = torch.arange(len(self._rows)).chunk(self.micro_batches)
        candidates = None
        if self._inclusion is not None:
            words = draw_words(config.seed, number, self._inclusion)
            candidates = Candidates(to_device(words, device), self._log_inclusion)
        masks = Masks(
            config.seed,
            number,
            num_rows=self._recipe.batch_size,
            rows=self._rows,
            device=device,
            definition=self._masks,
        )
        pairs = max(1, batch.num_targets - self._recipe.batch_size)  # neighbouring targets, for TAR
        width = self.net.config.embedding_size
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        states = []
        for index, cut in enumerate(cuts):
            part = slice(int(cut[0]), int(cut[-1]) + 1)
            with engine.accumulate(last=index == len(cuts) - 1):
                out = engine.model(
                    tokens[part],
                    targets[part],
                    [(h[part], c[part]) for h, c in self._state],
                    masks.for_rows(self._rows[part]),
                    candidates,
                )
                loss = (
                    out.ce_sum / batch.num_targets
                    + config.alpha * out.ar_sum / (batch.num_targets * width)
                    + config.beta * out.tar_sum / (pairs * width)
                )
                # DDP averages gradients over ranks, but the loss is already divided by the global count.
                engine.backward(loss * runtime.world_size)
            states.append(out.state)
            sums += torch.stack([out.ce_sum.detach().double(), out.num_correct.double()])
        self._state = [
            (torch.cat([h for h, _ in layer]), torch.cat([c for _, c in layer])) for layer in zip(*states, strict=True)
        ]
        if batch.sources is not None:
            sums = torch.cat([sums, to_device(batch.sources, device).double()])
        return StepResult(sums, batch.num_targets, batch.num_targets)

    def evaluate(self, store: TokenStore | None = None) -> dict[str, Any] | None:
        """Loss (nats), perplexity and accuracy on a store (default: the validation split); None if there is none."""
        store = store or self._valid
        if store is None:
            return None
        return score_language_model(
            self.net,
            store,
            self._runtime,
            num_rows=self._recipe.batch_size,
            bptt=self._recipe.bptt,
            backwards=self._config.backwards,
        )

    def calibrate(self) -> dict[str, float]:
        """{}: a language model has no temperature of its own."""
        return {}

    def model_entries(self) -> dict[str, Any]:
        """Empty: nothing of a language model's config.json is found in training."""
        return {}

    def quality(self, metrics: dict[str, Any]) -> list[float]:
        """The negative loss: a lower loss is better."""
        return [-metrics["loss"]]

    def samples(self) -> list[tuple[str, str]]:
        """For TensorBoard, name and text in markdown: the beginning of a validation text with a generated continuation
        (rank 0). --no-samples turns it off, for private data."""
        if self._config.backwards:
            return []  # a backward model writes text in reverse, which nobody can read
        store = self._valid
        prompt = store.document(0)[: PROMPT_WORDS + 1].tolist() if store is not None else [self._tokenizer.bos_id]
        seed = derive_seed(self._config.seed, "sample")
        generator = torch.Generator(self._runtime.device).manual_seed(seed)
        try:
            ids = self.net.generate_ids(
                [prompt], max_new_tokens=SAMPLE_WORDS, banned=self._tokenizer.banned_ids, generator=generator
            )[0]
        except UserError:  # the training diverges, which the losses tell
            return []
        return [("samples", verbatim(self._tokenizer.decode(prompt + ids)))]

    def hidden_state(self) -> dict[str, Any]:
        """The hidden state of all rows of the global batch, on rank 0 and on its CPU (a collective).

        The other ranks get None in place of each tensor: with hundreds of ranks the whole takes gigabytes.
        """
        collect = self._runtime.collect
        return {"hidden": [[collect(h), collect(c)] for h, c in self._state]}

    def load_hidden_state(self, state: dict[str, Any]) -> None:
        """Load this rank's rows of a saved hidden state. The number of ranks may have changed since."""
        mine = slice(self._rows.start, self._rows.stop)
        self._state = [(h[mine].to(self._runtime.device), c[mine].to(self._runtime.device)) for h, c in state["hidden"]]
