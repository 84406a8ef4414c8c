"""train_classifier: a text classifier on a language model's encoder. Also the classifier's task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.documents import (
    TIME_STEP_OVERHEAD,
    DocumentBatch,
    DocumentBatches,
    assign_to_ranks,
    collate,
    places_after_gather,
)
from ulmfit.batches.order import permutation
from ulmfit.config import ClassifierConfig
from ulmfit.data.probabilities import SoftSplit
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.model.classifier import ClassifierNet
from ulmfit.option_types import path_text
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import setup
from ulmfit.training.begun import masks_of
from ulmfit.training.calibration import calibration
from ulmfit.training.default_encoder import chosen_encoder, default_encoder, given_encoder
from ulmfit.training.description import description, warnings_about_classes
from ulmfit.training.engine import Passes
from ulmfit.training.label_loss import LabelLoss, OneLabel, SeveralLabels, balanced_weights
from ulmfit.training.label_scores import DEFAULT
from ulmfit.training.loop import StepResult
from ulmfit.training.masks import DEFINITION, Masks
from ulmfit.training.pretrained_start import check_direction
from ulmfit.training.result import TrainingResult
from ulmfit.training.run_task import run, run_session
from ulmfit.training.scores import all_logits, score_classifier, score_labels
from ulmfit.training.session import Session
from ulmfit.training.stages import Recipe, lengthen_quick, recipe_for
from ulmfit.training.vocabulary import check_vocabulary, resolve_subword
from ulmfit.training.worst_errors import WorstErrors, WrongDocument, as_list

SHOWN_TOKENS = 150  # of a document among the worst errors
_LABELS = 2  # gives the draw of --labels another generator than the order of an epoch


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
    return run_session(train_with, config, stop)


def train_with(config: ClassifierConfig, session: Session) -> TrainingResult:
    """Train within an open session, as `run_session` calls it. `config` is the session's, with stored options filled in."""
    runtime = session.runtime
    pretrained = given_encoder(path_text(config.encoder))
    if pretrained is not None and pretrained.tokenizer is None:
        raise UserError(
            f"--encoder {config.encoder} has a vocabulary but no tokenizer; fine-tune it on your corpus "
            "first with train_lm.py --init, then give that run here"
        )
    if pretrained is not None:
        check_direction(pretrained, config, f"--encoder {config.encoder}")
    corpus = setup.corpus_of(session)
    pretrained = pretrained or default_encoder(session, corpus.judged, path_text(config.encoder))
    if pretrained is None:
        session.say("the encoder starts from random weights (train_lm.py makes a better one, see --encoder)")
    session, kind = resolve_subword(session, corpus.splits["train"])
    keep_best = setup.keeps_best(config, corpus)
    decides = keep_best or config.stop_after > 0
    metric = metric_of(config, several=corpus.label_sets is not None)
    if metric == "micro_f1" and not corpus.label_sets:
        raise UserError("--metric micro_f1 is for several labels a row; with one it is the accuracy")
    if config.metric is not None and not decides:
        raise UserError(f"--metric {config.metric} decides nothing here; give --keep-best or --stop-after too")
    recipe = recipe_for(config, pretrained=pretrained is not None)
    if config.micro_batches != "auto" and config.micro_batches > recipe.batch_size:
        raise UserError(
            f"--micro-batches {config.micro_batches} cannot each have one of the {recipe.batch_size} documents of a "
            f"step; give at most {recipe.batch_size}"
        )
    tokenizer = pretrained.tokenizer if pretrained else setup.tokenizer_of(session, corpus.splits["train"])
    label_names = corpus.label_names
    if config.calibrate and "valid" not in corpus.splits:
        raise UserError("--calibrate needs validation texts and there are none; name some with --valid")
    if config.calibrate and corpus.label_sets:
        raise UserError("--calibrate is for one label a text; with several, a threshold by label is chosen anyway")
    assert tokenizer is not None and label_names is not None
    check_vocabulary(session, corpus.judged, tokenizer)
    stores = {
        name: setup.store_of(session, split, tokenizer, with_labels=True) for name, split in corpus.splits.items()
    }
    if config.labels is not None:
        chosen = balanced_draw(_labels(stores["train"]), config.labels, seed=config.seed)
        stores["train"] = stores["train"].subset(chosen)
    sets = corpus.label_sets.matrix() if corpus.label_sets else None
    for line in description(corpus, stores, label_names, sets) + warnings_about_classes(stores, label_names, sets):
        session.say(line)
    train = corpus.splits["train"]
    targets = train.probabilities(stores["train"].rows) if isinstance(train, SoftSplit) else None
    recipe = lengthen_quick(recipe, config, -(-stores["train"].num_documents // recipe.batch_size))

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
            metric=metric if decides else None,
            time_step_overhead=overhead,
            vocab_size=None if pretrained else config.vocab_size or setup.largest_vocabulary(None),
            encoder=config.encoder or chosen_encoder(pretrained),
            subword=config.subword and (kind or "none"),
        ),
        fingerprints={
            "corpus": corpus.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "encoder": pretrained.fingerprint if pretrained else None,
        },
    )


def metric_of(config: ClassifierConfig, *, several: bool) -> str:
    """The score that decides which evaluation is the best. `several`: a row may have several labels."""
    return config.metric or ("micro_f1" if several else "accuracy")


def balanced_draw(labels: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    """Draw `number` documents, the classes as equally often as their sizes allow. Returns int64 indices, ascending.

    With the same labels and seed, a larger draw contains every smaller one.

    Raises:
        UserError: there are fewer than `number` documents.
    """
    if number > len(labels):
        raise UserError(f"--labels {number} is more than the {len(labels)} labelled documents for training; give fewer")
    order = permutation(len(labels), seed, 0, _LABELS)
    # The rank of each document within its class. Sorting by it takes the first of every class, then the second, ...
    turns = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turns[members] = np.arange(len(members))
    drawn = order[np.argsort(turns[order], kind="stable")]
    return np.sort(drawn[:number])


def _labels(store: TokenStore) -> np.ndarray:
    """The class of each document, int32 [documents]."""
    assert store.labels is not None, "a store that was built without labels"
    return store.labels


class _ScaleGradient(torch.autograd.Function):
    """Identity in the forward pass; multiplies the gradient by a factor in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


@dataclass
class ClassifierBatch:
    """One step: the labels of the global batch and this rank's documents.

    Attributes:
        indices: int64 [n], indices in the corpus of all documents of the global step.
        labels: int64 [n], their classes.
        targets: their class probabilities, or with several labels 0 and 1, float32 [n, C]; None if they have one label.
        parts: this rank's micro-batches.
        epoch, step_in_epoch: from 0.
        lr_scale: factor for the learning rate, as in LMBatch.
        gathered: int64 [n], where the encodings of the documents are after an all-gather of all ranks' rows; None if
            an all-reduce moves fewer bytes.
        most_rows: documents of the rank that has most of them.
    """

    indices: np.ndarray
    labels: Tensor
    parts: list[DocumentBatch]
    epoch: int
    step_in_epoch: int
    lr_scale: float = 1.0
    targets: Tensor | None = None
    gathered: Tensor | None = None
    most_rows: int = 0


class ClassifierTask:
    """The classifier's batches and steps, for the loop.

    BatchNorm and the loss need the whole global batch. The encoding of a document is small (3 x embedding size).
    So every rank gathers the encodings of all documents, runs the small head on the whole batch, and back-propagates
    into the encodings of its own documents. With several micro-batches, all encodings are first computed without
    gradient. Then each micro-batch is encoded again with gradient and replaces its rows.
    """

    name = "classifier"
    source_names = ()

    def __init__(
        self,
        net: ClassifierNet,
        train: TokenStore,
        valid: TokenStore | None,
        label_names: list[str],
        *,
        config: ClassifierConfig,
        recipe: Recipe,
        runtime: Runtime,
        pad_id: int,
        targets: np.ndarray | None = None,
        sets: np.ndarray | None = None,
        tokenizer: Tokenizer | None = None,
        masks: int = DEFINITION,
        overhead: float = TIME_STEP_OVERHEAD["cpu"],
    ) -> None:
        self.net, self.groups = net, net.layer_groups()
        if sets is not None:
            targets = sets[_labels(train)]
        self._targets = targets  # class probabilities or labels of the training documents, float32 [n, C]
        self._sets = sets  # float32 [sets, C], the labels of a store's class numbers
        self._thresholds: list[float] = [DEFAULT] * len(label_names)  # by label, chosen by `model_entries`
        self._train, self._valid, self._label_names = train, valid, label_names
        self._config, self._recipe, self._runtime, self._pad_id = config, recipe, runtime, pad_id
        self._batches = DocumentBatches(train.lengths, batch_size=recipe.batch_size, seed=config.seed)
        self._temperature: float | None = None
        self._tokenizer = tokenizer
        self._worst: list[WrongDocument] = []  # of the last evaluation of the validation split
        self._masks, self._overhead = masks, overhead
        self.micro_batches = 1 if config.micro_batches == "auto" else config.micro_batches
        self.most_micro_batches = recipe.batch_size
        class_weights = None
        if config.class_weights == "balanced":
            counts = (
                np.bincount(_labels(train), minlength=len(label_names))
                if targets is None
                else targets.sum(0, dtype=np.float64)
            )
            weights = balanced_weights(counts, train.num_documents, several=sets is not None)
            class_weights = torch.as_tensor(weights, dtype=next(net.parameters()).dtype, device=runtime.device)
        kind = OneLabel if sets is None else SeveralLabels
        self._loss: LabelLoss = kind(class_weights, config.label_smoothing)

    def steps_in_epoch(self, epoch: int) -> int:
        """ceil(documents / batch_size), the same in every epoch."""
        return self._batches.steps_per_epoch

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[ClassifierBatch, dict[str, Any]]]:
        """Endless batches from a position on (None: from the start), each with the position after it."""
        for indices, epoch, step, after in self._batches.batches(state):
            yield self._deal(indices, epoch, step), after

    def largest_batch(self) -> ClassifierBatch:
        """A batch of the longest documents, which needs most memory."""
        return self._deal(np.argsort(-self._train.lengths, kind="stable")[: self._recipe.batch_size], 0, 0)

    def mean_tokens(self) -> float:
        """Mean number of tokens of a global step."""
        return self._recipe.batch_size * float(self._train.lengths.mean())

    def trained_windows(self) -> list[list[tuple[int, int]]]:
        """For each micro-batch of the largest step: (rows, tokens a row) of each encoder call with gradient."""
        lengths = np.sort(self._train.lengths)[-self._recipe.batch_size :]
        return [self.net.trained_windows(lengths[part].tolist()) for part in self._assign(lengths)[self._runtime.rank]]

    def reset_hidden(self) -> None:
        """Does nothing: a classifier keeps no hidden state between steps."""

    def _assign(self, lengths: np.ndarray) -> list[list[np.ndarray]]:
        """Assign documents of these lengths: [rank][micro-batch] -> positions in the step."""
        return assign_to_ranks(
            lengths,
            num_ranks=self._runtime.world_size,
            micro_batches=self.micro_batches,
            backprop_tokens=self.net.backprop_tokens,
            overhead=self._overhead,
        )

    def _deal(self, indices: np.ndarray, epoch: int, step: int) -> ClassifierBatch:
        shares = self._assign(self._train.lengths[indices])
        parts = [self._collate(self._train, indices[share], share) for share in shares[self._runtime.rank]]
        labels = torch.from_numpy(_labels(self._train)[indices].astype(np.int64))
        targets = None if self._targets is None else torch.from_numpy(self._targets[indices])
        gathered, most_rows = places_after_gather([np.concatenate(share) for share in shares])
        return ClassifierBatch(
            indices, labels, parts, epoch, step, targets=targets, gathered=gathered, most_rows=most_rows
        )

    def global_position(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The position is the same on all ranks."""
        return state

    def _collate(self, store: TokenStore, indices: np.ndarray, positions: np.ndarray) -> DocumentBatch:
        return collate(store, indices, positions, pad_id=self._pad_id, backwards=self._config.backwards)

    def step(self, engine: Passes, batch: ClassifierBatch, number: int) -> StepResult:
        """Forward and backward pass of this rank's documents. The gradients are those of the global mean loss."""
        runtime, config, device = self._runtime, self._config, self._runtime.device
        size = len(batch.indices)
        labels = to_device(batch.labels, device)
        targets = None if batch.targets is None else to_device(batch.targets, device)
        everyone = Masks(
            self._config.seed, number, num_rows=size, rows=range(size), device=device, definition=self._masks
        )
        num_passes = len(batch.parts)
        cached = None
        if num_passes > 1:
            with torch.no_grad(), runtime.accelerator.autocast(), engine.full_weights():
                cached = self._gather(
                    batch,
                    torch.cat(
                        [
                            self.net.encode(
                                to_device(part.tokens, device), part.lengths, everyone.for_rows(part.positions)
                            ).pooled
                            for part in batch.parts
                        ]
                    ),
                )
        trained = np.minimum(self._train.lengths[batch.indices], self.net.backprop_tokens)
        width = self.net.config.embedding_size
        for index, part in enumerate(batch.parts):
            last = index == num_passes - 1
            with engine.accumulate(last=last):
                # Lengths as a list: DDP and FSDP copy tensor arguments to the device, and to read them there would
                # make the host wait.
                logits, ar_sum, tar_sum = engine.model(
                    to_device(part.tokens, device),
                    part.lengths.tolist(),
                    everyone.for_rows(part.positions),
                    combine=self._combiner(batch, part, cached),
                    head_masks=everyone,
                    update_statistics=last,
                )
                loss = self._loss.mean(logits, labels, targets)
                activation = config.alpha * ar_sum / (trained.sum() * width) + config.beta * tar_sum / (
                    max(1, (trained - 1).sum()) * width
                )
                # Each pass on each rank computes the head's complete gradient, so these are averaged. AR and TAR
                # are sums over the documents of this pass only, so these are added up.
                engine.backward(loss / num_passes + activation * runtime.world_size)
        with torch.no_grad():
            sums = self._loss.sums(logits, labels, targets)
        return StepResult(sums / runtime.world_size, size, int(self._train.lengths[batch.indices].sum()))

    def _combiner(
        self, batch: ClassifierBatch, part: DocumentBatch, cached: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """A function that inserts a micro-batch's encodings, with gradient, into those of the global step.

        Their gradient is multiplied by passes x ranks, because it is averaged over passes and ranks later although
        each encoding has a gradient in only one pass of one rank.
        """
        factor = float(len(batch.parts) * self._runtime.world_size)

        def combine(pooled: Tensor) -> Tensor:
            whole = cached if cached is not None else self._gather(batch, pooled)
            return whole.index_copy(0, to_device(part.positions, pooled.device), _ScaleGradient.apply(pooled, factor))

        return combine

    def _gather(self, batch: ClassifierBatch, own: Tensor) -> Tensor:
        """The encodings of all documents, [size, 3E] in the order of the step, without gradient (a collective).

        The ranks' rows are gathered, padded to those of the rank that has most. Where one rank has so many that this
        would move more bytes than a sum, each rank fills its own rows of the whole and leaves the others zero, so that
        the sum over ranks is exact.
        """
        if batch.gathered is not None:
            padded = own.new_zeros(batch.most_rows, own.shape[1])
            padded[: len(own)] = own.detach()
            return self._runtime.gather(padded).flatten(0, 1).index_select(0, to_device(batch.gathered, own.device))
        whole = own.new_zeros(len(batch.indices), own.shape[1])
        places = to_device(torch.cat([part.positions for part in batch.parts]), own.device)
        whole[places] = own.detach()
        return self._runtime.sum(whole)

    def evaluate(self, store: TokenStore | None = None) -> dict[str, Any] | None:
        """Loss (nats), accuracy, F1 and confusion matrix on a store (default: the validation split); None if there is
        none."""
        store = store or self._valid
        if store is None:
            return None
        worst = WorstErrors() if store is self._valid else None
        metrics = self._scores(store, worst)
        if worst is not None:
            self._worst = worst.merged(self._runtime)
        return metrics

    def _scores(self, store: TokenStore, worst: WorstErrors | None) -> dict[str, Any]:
        if self._sets is not None:
            return score_labels(
                self.net,
                store,
                self._runtime,
                label_names=self._label_names,
                matrix=self._sets,
                thresholds=None if store is self._valid else self._thresholds,
                pad_id=self._pad_id,
                backwards=self._config.backwards,
                worst=worst,
            )
        return score_classifier(
            self.net,
            store,
            self._runtime,
            label_names=self._label_names,
            pad_id=self._pad_id,
            backwards=self._config.backwards,
            temperature=self._temperature,
            worst=worst,
        )

    def calibrate(self) -> dict[str, float]:
        """With --calibrate, find the temperature on the validation split for the present weights (a collective).

        Evaluations use it from now on.

        Returns:
            As `calibration`; {} without --calibrate.
        """
        if not self._config.calibrate:
            return {}
        assert self._valid is not None, "refused at the start"
        logits = all_logits(self.net, self._valid, self._runtime, pad_id=self._pad_id, backwards=self._config.backwards)
        found = calibration(logits, torch.from_numpy(_labels(self._valid).astype(np.int64)))
        self._temperature = found["temperature"]
        return found

    def model_entries(self) -> dict[str, Any]:
        """With several labels, the thresholds that the validation documents give these weights (a collective)."""
        if self._sets is None:
            return {}
        if (metrics := self.evaluate()) is not None:
            self._thresholds = metrics["thresholds"]
        return {"thresholds": self._thresholds}

    def quality(self, metrics: dict[str, Any]) -> list[float]:
        """By --metric: a higher score is better, and at equal scores a lower loss."""
        name = metric_of(self._config, several=self._sets is not None)
        return [-metrics["loss"]] if name == "loss" else [metrics[name], -metrics["loss"]]

    def samples(self) -> list[tuple[str, str]]:
        """For TensorBoard, name and text in markdown: the worst errors of the last evaluation, with their texts. Not with
        --no-samples."""
        if not self._worst or self._tokenizer is None or self._valid is None:
            return []
        valid, decode = self._valid, self._tokenizer.decode
        return [
            (
                "errors/worst",
                as_list(
                    self._worst, self._label_names, lambda index: decode(valid.document(index)[:SHOWN_TOKENS].tolist())
                ),
            )
        ]

    def hidden_state(self) -> dict[str, Any]:
        """Empty: a classifier keeps no hidden state between steps."""
        return {}

    def load_hidden_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
