"""Scores of a model on a whole split. Each token or document counts once, on any number of processes.

All of them raise EvaluationStopped on all ranks if one is asked to stop meanwhile (`Runtime.leaves_scoring`): on a large
vocabulary or a large split they take minutes, longer than a scheduler waits for a job that it has asked to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.documents import DocumentBatch, collate
from ulmfit.batches.lm import CachedRows, LMBatch
from ulmfit.batches.mixture import MixedStore
from ulmfit.bundle import SMALLEST, Bundle, tempered
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.inference import TextClassifier
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.ngrams import NGramNet
from ulmfit.parallel_inference import read_side_by_side, reading_batches
from ulmfit.training.calibration import BINS, bin_sums, bin_table, calibration, calibration_error
from ulmfit.training.class_scores import class_scores
from ulmfit.training.label_scores import label_metrics
from ulmfit.training.worst_errors import WorstErrors

Part = TypeVar("Part")


def rows_of(store: TokenStore, wanted: int, bptt: int) -> int:
    """The rows in which a store is scored: those that are wanted, or fewer if it is short."""
    return max(1, min(wanted, store.num_tokens // (4 * bptt)))


@torch.inference_mode()
def score_language_model(
    net: LanguageModelNet, store: TokenStore, runtime: Runtime, *, num_rows: int, bptt: int, backwards: bool = False
) -> dict[str, Any]:
    """Loss (nats per token), perplexity and next-token accuracy over a store, read in order.

    The store is divided into `num_rows` rows (fewer if it is short), independently of the world size, so that the
    scores do not depend on it. Of a mixture each source is scored by itself; the result is the mean by the weights (see
    `batches.mixture`), with the loss of each source as loss/NAME.
    """
    if isinstance(store, MixedStore):
        parts = [(name, weight, part) for name, weight, part in store.parts() if part.num_tokens > 1]
        scored = [
            (name, weight, score_language_model(net, part, runtime, num_rows=num_rows, bptt=bptt, backwards=backwards))
            for name, weight, part in parts
        ]
        total = sum(weight for _, weight, _ in scored)
        loss, correct = (
            sum(weight / total * scores[value] for _, weight, scores in scored) for value in ("loss", "accuracy")
        )
        losses = {f"loss/{name}": scores["loss"] for name, _, scores in scored}
        return {"loss": loss, "perplexity": _exp(loss), "accuracy": correct} | losses
    num_rows = rows_of(store, num_rows, bptt)
    rows = runtime.own_rows(num_rows)
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    training = net.training
    net.eval()
    batches: Iterable[LMBatch] = ()
    if len(rows):
        source = CachedRows(
            store, batch_size=num_rows, bptt=bptt, seed=0, rows=rows, shuffle=False, backwards=backwards
        )
        batches, state = source.epoch_batches(0), net.init_state(len(rows))
    try:
        for batch in _until_stopped(batches, runtime):
            tokens, targets = to_device(batch.tokens, runtime.device), to_device(batch.targets, runtime.device)
            with runtime.accelerator.autocast():
                out = net(tokens, targets, state)
            state = out.state
            sums += torch.stack([out.ce_sum.double(), out.num_correct.double(), (targets >= 0).sum().double()])
    finally:
        net.train(training)
    loss, correct, count = runtime.sum(sums).tolist()
    return {"loss": loss / count, "perplexity": _exp(loss / count), "accuracy": correct / count}


def _exp(loss: float) -> float:
    with np.errstate(over="ignore"):  # infinite, where training diverges
        return float(np.exp(loss))


@torch.inference_mode()
def score_classifier(
    net: ClassifierNet | NGramNet,
    store: TokenStore,
    runtime: Runtime,
    *,
    label_names: Sequence[str],
    pad_id: int,
    backwards: bool = False,
    temperature: float | None = None,
    worst: WorstErrors | None = None,
) -> dict[str, Any]:
    """Loss (nats), accuracy, macro F1, calibration error, confusion matrix (rows: true classes) and scores by class over
    a labelled store.

    Args:
        temperature: divides the logits. Then `ece_before` is the calibration error without it.
        worst: is given the documents of this rank.
    """
    classes = len(label_names)
    sums = _no_sums(classes, runtime.device)
    before = torch.zeros(3 * BINS, dtype=torch.float64, device=runtime.device)
    for indices, labels, logits in _logits(net, store, runtime, pad_id=pad_id, backwards=backwards):
        if temperature is not None:
            before += bin_sums(logits.softmax(1), labels)
            logits = logits / temperature
        if worst is not None:
            worst.add(indices, labels, logits)
        cells = labels * classes + logits.argmax(1)
        sums[: classes * classes] += torch.bincount(cells, minlength=classes * classes)
        sums[classes * classes] += F.cross_entropy(logits, labels, reduction="sum").double()
        sums[-3 * BINS :] += bin_sums(logits.softmax(1), labels)
    metrics = _metrics(runtime.sum(sums), label_names)
    if temperature is not None:
        metrics |= {"ece_before": calibration_error(runtime.sum(before)), "temperature": temperature}
    return metrics


@torch.inference_mode()
def all_logits(
    net: ClassifierNet | NGramNet, store: TokenStore, runtime: Runtime, *, pad_id: int, backwards: bool = False
) -> Tensor:
    """The logits of a labelled store's documents, float64 [n, C] on the CPU, equal on all ranks (a collective)."""
    result = torch.zeros(store.num_documents, net.num_classes, dtype=torch.float64, device=runtime.device)
    for indices, _, logits in _logits(net, store, runtime, pad_id=pad_id, backwards=backwards):
        result[to_device(indices, runtime.device)] = logits.double()
    return runtime.sum(result).cpu()  # each row is 0 on all ranks but one


def score_labels(
    net: ClassifierNet,
    store: TokenStore,
    runtime: Runtime,
    *,
    label_names: Sequence[str],
    matrix: np.ndarray,
    thresholds: Sequence[float] | None,
    pad_id: int,
    backwards: bool = False,
    worst: WorstErrors | None = None,
) -> dict[str, Any]:
    """The scores of `label_metrics` over a labelled store (a collective).

    Args:
        matrix: float32 [sets, labels], the labels of each class number of the store.
        thresholds: by label; None to choose them on this store.
        worst: is given all documents, on rank 0.
    """
    assert store.labels is not None, "a store with labels"
    logits = all_logits(net, store, runtime, pad_id=pad_id, backwards=backwards)
    probabilities, truth = logits.sigmoid().numpy(), matrix[store.labels]
    metrics = label_metrics(probabilities, truth, label_names, thresholds)
    if worst is not None and runtime.is_main:
        worst.add_sets(probabilities, truth, metrics["thresholds"])
    return metrics


def _logits(
    net: ClassifierNet | NGramNet, store: TokenStore, runtime: Runtime, *, pad_id: int, backwards: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This rank's documents in batches: their indices in the store (int64, on the CPU), classes, and logits [n, C]."""
    assert store.labels is not None, "a store with labels"
    training = net.training
    net.eval()
    # Documents are assigned to ranks first, because the batch size may differ: it depends on the rank's threads.
    own = np.argsort(-store.lengths, kind="stable")[runtime.rank :: runtime.world_size]
    try:
        for part, logits in _read(net, store, own, runtime, pad_id=pad_id, backwards=backwards):
            labels = torch.from_numpy(store.labels[part.indices.numpy()].astype(np.int64))
            yield part.indices, to_device(labels, runtime.device), logits
    finally:
        net.train(training)


def _read(
    net: ClassifierNet | NGramNet, store: TokenStore, own: np.ndarray, runtime: Runtime, *, pad_id: int, backwards: bool
) -> Iterator[tuple[DocumentBatch, Tensor]]:
    """The documents `own` in batches, with their logits [n, C] in fp32 or fp64. Positions are places in `own`.

    All ranks read to the end, or until it raises EvaluationStopped.
    """

    def read(places: np.ndarray) -> tuple[DocumentBatch, Tensor]:
        part = collate(store, own[places], places, pad_id=pad_id, backwards=backwards)
        with runtime.accelerator.autocast():
            logits = net(to_device(part.tokens, runtime.device), part.lengths).logits
        return part, logits.to(torch.promote_types(logits.dtype, torch.float32))

    batches = reading_batches(store.lengths[own], net, runtime.device)
    yield from _until_stopped(read_side_by_side(read, batches, runtime.device), runtime)


def _until_stopped(parts: Iterable[Part], runtime: Runtime) -> Iterator[Part]:
    """This rank's parts of an evaluation, until a rank is asked to stop (a collective at the end, of all ranks).

    Raises:
        EvaluationStopped: at the end, on all ranks, if one has left its parts unfinished.
    """
    stopped = False
    for part in parts:
        runtime.progress.now("evaluating")
        yield part
        if stopped := runtime.leaves_scoring():
            break
    runtime.end_scoring(stopped)


@torch.inference_mode()
def score_bundle(
    bundle: Bundle,
    stores: Sequence[TokenStore],
    runtime: Runtime,
    matrix: np.ndarray | None = None,
    *,
    calibrate: bool = False,
    known: Sequence[Tensor] = (),
) -> dict[str, Any]:
    """As `score_classifier` or `score_labels`, of the mean of several classifiers' probabilities.

    Args:
        stores: by member, the same labelled split under the member's tokenizer.
        matrix: where a text may have several labels, as of `score_labels`.
        calibrate: find `bundle.temperature` on this split first.
        known: the probabilities of the first members, as of `member_probabilities`.
    """
    classes, labels = len(bundle.label_names), stores[0].labels
    assert labels is not None, "a store with labels"
    own = _own(len(labels), runtime)
    parts = [*known, *member_probabilities(bundle, stores, runtime, first=len(known))]
    mean = torch.tensordot(torch.tensor(bundle.shares, dtype=torch.float64), torch.stack(parts), 1)
    truth = torch.from_numpy(np.asarray(labels).astype(np.int64))
    if bundle.thresholds is not None:
        assert matrix is not None
        probabilities = whole_rows(mean, len(labels), runtime).numpy()
        return label_metrics(probabilities, matrix[labels], bundle.label_names, bundle.thresholds.tolist())
    if calibrate:
        whole = whole_rows(mean, len(labels), runtime)
        bundle.config["temperature"] = calibration(whole.clamp_min(SMALLEST).log(), truth)["temperature"]
    more, truth = {}, truth[torch.from_numpy(own)]
    if bundle.temperature is not None:
        before = calibration_error(runtime.sum(bin_sums(mean, truth).to(runtime.device)))
        more = {"ece_before": before, "temperature": bundle.temperature}
        mean = torch.from_numpy(tempered(mean.numpy(), bundle.temperature)).double()
    sums = _no_sums(classes, torch.device("cpu"))
    sums[: classes * classes] += torch.bincount(truth * classes + mean.argmax(1), minlength=classes * classes)
    sums[classes * classes] = F.nll_loss(mean.clamp_min(SMALLEST).log(), truth, reduction="sum") if len(own) else 0.0
    sums[-3 * BINS :] += bin_sums(mean, truth)
    return _metrics(runtime.sum(sums.to(runtime.device)), bundle.label_names) | more


@torch.inference_mode()
def member_probabilities(
    bundle: Bundle, stores: Sequence[TokenStore], runtime: Runtime, first: int = 0
) -> list[Tensor]:
    """By member, from number `first` on, the probabilities of this rank's part of a labelled split, float64 [n, C] on
    the CPU, the classes in the order of the bundle. Arguments as of `score_bundle`."""
    own = _own(stores[0].num_documents, runtime)
    found = []
    for member, place, store in list(zip(bundle.members, bundle.places, stores, strict=True))[first:]:
        assert np.array_equal(store.rows, stores[0].rows), "the stores hold the same documents"
        found.append(_probabilities(member, store, own, runtime)[:, torch.from_numpy(place)])
    return found


def _own(number: int, runtime: Runtime) -> np.ndarray:
    """This rank's part of so many documents."""
    return np.arange(number)[runtime.rank :: runtime.world_size]


def whole_rows(rows: Tensor, number: int, runtime: Runtime) -> Tensor:
    """The rows of all ranks, float64 [number, C] on the CPU, from each rank's part (a collective)."""
    whole = torch.zeros(number, rows.shape[1], dtype=torch.float64)
    whole[torch.from_numpy(_own(number, runtime))] = rows
    return runtime.sum(whole.to(runtime.device)).cpu()


def _probabilities(member: TextClassifier, store: TokenStore, own: np.ndarray, runtime: Runtime) -> Tensor:
    """Class probabilities of the documents `own`, float64 [n, C], on the CPU."""
    net, config = member.net, member.config
    assert net is not None, "not an exported model"
    temperature = float(config.get("temperature", 1.0))
    result = torch.zeros(len(own), net.num_classes, dtype=torch.float64)
    pad_id, backwards = member.tokenizer.pad_id, bool(config.get("backwards"))
    for part, logits in _read(net, store, own, runtime, pad_id=pad_id, backwards=backwards):
        result[part.positions] = net.probabilities(logits.double() / temperature).cpu()
    return result


def _no_sums(classes: int, device: torch.device) -> Tensor:
    """Zeros for `_metrics`: the cells of the confusion matrix, the summed loss (nats), and `bin_sums`."""
    return torch.zeros(classes * classes + 1 + 3 * BINS, dtype=torch.float64, device=device)


def _metrics(sums: Tensor, label_names: Sequence[str]) -> dict[str, Any]:
    """The scores from sums as of `_no_sums` over all ranks."""
    classes = len(label_names)
    confusion = sums[: classes * classes].view(classes, classes)
    total = confusion.sum()
    return {
        "loss": (sums[classes * classes] / total).item(),
        "accuracy": (confusion.trace() / total).item(),
        "f1": macro_f1(confusion),
        "recall": (confusion.diag() / confusion.sum(1))[confusion.sum(1) > 0].mean().item(),
        "ece": calibration_error(sums[-3 * BINS :]),
        "bins": bin_table(sums[-3 * BINS :]),
        "confusion": confusion.long().tolist(),
        "labels": list(label_names),
        "by_class": class_scores(
            confusion.diag().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), label_names
        ),
    }


def macro_f1(confusion: Tensor) -> float:
    """The mean F1 of the classes, in [0, 1], as scikit-learn's `f1_score(average="macro")`.

    confusion is [C, C], its rows are true classes. Classes that are neither true nor predicted anywhere are left out.
    """
    occurrences = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * confusion.diag() / occurrences
    return f1[occurrences > 0].mean().item()
