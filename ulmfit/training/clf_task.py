"""The task of the classifier: its batches and steps, for the loop."""

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
from ulmfit.config import ClassifierConfig
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.classifier import ClassifierNet
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.calibration import calibration
from ulmfit.training.engine import Passes
from ulmfit.training.label_loss import LabelLoss, OneLabel, SeveralLabels, balanced_weights
from ulmfit.training.label_scores import DEFAULT
from ulmfit.training.masks import DEFINITION, Masks
from ulmfit.training.scores import all_logits, score_classifier, score_labels
from ulmfit.training.stages import Recipe
from ulmfit.training.task import StepResult
from ulmfit.training.worst_errors import WorstErrors, WrongDocument, as_list

SHOWN_TOKENS = 150  # of a document among the worst errors


def metric_of(config: ClassifierConfig, *, several: bool) -> str:
    """The score that decides which evaluation is the best. `several`: a row may have several labels."""
    return config.metric or ("micro_f1" if several else "accuracy")


def classes_of(store: TokenStore) -> np.ndarray:
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
            targets = sets[classes_of(train)]
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
                np.bincount(classes_of(train), minlength=len(label_names))
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
        labels = torch.from_numpy(classes_of(self._train)[indices].astype(np.int64))
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
        # Places in what all ranks have gathered mean nothing where this rank is alone (`Runtime.alone`).
        if batch.gathered is not None and self._runtime.world_size > 1:
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
        found = calibration(logits, torch.from_numpy(classes_of(self._valid).astype(np.int64)))
        self._temperature = found["temperature"]
        return found

    def model_entries(self) -> dict[str, Any]:
        """With several labels, the thresholds that the validation documents give these weights (a collective)."""
        if self._sets is None:
            return {}
        if (metrics := self.evaluate()) is not None:
            self._thresholds = metrics["thresholds"]
        return {"thresholds": self._thresholds}

    @property
    def judged(self) -> int:
        """Number of validation texts of which the score of `quality` is a share, or nearly so; 0 for the loss."""
        by_loss = metric_of(self._config, several=self._sets is not None) == "loss"
        return 0 if by_loss or self._valid is None else self._valid.num_documents

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
