"""Scores of a model on a whole split. Each token or document counts once, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.documents import collate
from ulmfit.batches.lm import CachedRows
from ulmfit.bundle import Bundle
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.inference import TextClassifier
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.parallel_inference import read_side_by_side, reading_batches
from ulmfit.training.class_scores import class_scores


@torch.inference_mode()
def score_language_model(
    net: LanguageModelNet, store: TokenStore, runtime: Runtime, *, num_rows: int, bptt: int, backwards: bool = False
) -> dict[str, Any]:
    """Loss (nats per token), perplexity and next-token accuracy over a store, read in order.

    The store is divided into `num_rows` rows (fewer if it is short), independently of the world size, so that the
    scores do not depend on it.
    """
    num_rows = max(1, min(num_rows, store.num_tokens // (4 * bptt)))
    rows = runtime.own_rows(num_rows)
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    training = net.training
    net.eval()
    if len(rows):
        source = CachedRows(
            store, batch_size=num_rows, bptt=bptt, seed=0, rows=rows, shuffle=False, backwards=backwards
        )
        state = net.init_state(len(rows))
        for batch in source.epoch_batches(0):
            runtime.progress.now("evaluating")
            tokens, targets = to_device(batch.tokens, runtime.device), to_device(batch.targets, runtime.device)
            with runtime.accelerator.autocast():
                out = net(tokens, targets, state)
            state = out.state
            sums += torch.stack([out.ce_sum.double(), out.num_correct.double(), (targets >= 0).sum().double()])
    net.train(training)
    loss, correct, count = runtime.sum(sums).tolist()
    return {"loss": loss / count, "perplexity": float(np.exp(loss / count)), "accuracy": correct / count}


@torch.inference_mode()
def score_classifier(
    net: ClassifierNet,
    store: TokenStore,
    runtime: Runtime,
    *,
    label_names: Sequence[str],
    pad_id: int,
    backwards: bool = False,
) -> dict[str, Any]:
    """Loss (nats), accuracy, macro F1, confusion matrix (rows: true classes) and scores by class over a labelled
    store."""
    device, classes = runtime.device, len(label_names)
    all_labels = store.labels
    assert all_labels is not None, "a store with labels"
    sums = torch.zeros(classes * classes + 1, dtype=torch.float64, device=device)
    training = net.training
    net.eval()
    # Documents are assigned to ranks first, because the batch size may differ: it depends on the rank's threads.
    own = np.argsort(-store.lengths, kind="stable")[runtime.rank :: runtime.world_size]
    batches = [own[places] for places in reading_batches(store.lengths[own], net, device)]

    def read(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        part = collate(store, indices, np.arange(len(indices)), pad_id=pad_id, backwards=backwards)
        labels = to_device(torch.from_numpy(all_labels[part.indices.numpy()].astype(np.int64)), device)
        with runtime.accelerator.autocast():
            logits = net(to_device(part.tokens, device), part.lengths).logits
        return labels, logits.to(torch.promote_types(logits.dtype, torch.float32))

    for labels, logits in read_side_by_side(read, batches, device):
        runtime.progress.now("evaluating")
        cells = labels * classes + logits.argmax(1)
        sums[:-1] += torch.bincount(cells, minlength=classes * classes)
        sums[-1] += F.cross_entropy(logits, labels, reduction="sum").double()
    net.train(training)
    return _metrics(runtime.sum(sums), label_names)


@torch.inference_mode()
def score_bundle(bundle: Bundle, stores: Sequence[TokenStore], runtime: Runtime) -> dict[str, Any]:
    """As `score_classifier`, of the mean of several classifiers' probabilities.

    Args:
        stores: by member, the same labelled split under the member's tokenizer.
    """
    classes, labels = len(bundle.label_names), stores[0].labels
    assert labels is not None, "a store with labels"
    own = np.arange(len(labels))[runtime.rank :: runtime.world_size]
    total = torch.zeros(len(own), classes, dtype=torch.float64)
    for member, place, store in zip(bundle.members, bundle.places, stores, strict=True):
        assert np.array_equal(store.rows, stores[0].rows), "the stores hold the same documents"
        total += _probabilities(member, store, own, runtime)[:, torch.from_numpy(place)]
    mean, truth = total / len(bundle.members), torch.from_numpy(np.asarray(labels)[own].astype(np.int64))
    sums = torch.zeros(classes * classes + 1, dtype=torch.float64)
    sums[:-1] += torch.bincount(truth * classes + mean.argmax(1), minlength=classes * classes)
    sums[-1] = F.nll_loss(mean.log(), truth, reduction="sum") if len(own) else 0.0
    return _metrics(runtime.sum(sums.to(runtime.device)), bundle.label_names)


def _probabilities(member: TextClassifier, store: TokenStore, own: np.ndarray, runtime: Runtime) -> Tensor:
    """Class probabilities of the documents `own`, float64 [n, C], on the CPU."""
    net, device = member.net, runtime.device
    assert net is not None, "not an exported model"
    result = torch.zeros(len(own), net.num_classes, dtype=torch.float64)
    batches = reading_batches(store.lengths[own], net, device)

    def read(places: np.ndarray) -> tuple[np.ndarray, Tensor]:
        part = collate(store, own[places], places, pad_id=member.tokenizer.pad_id,
                       backwards=bool(member.config.get("backwards")))  # fmt: skip
        with runtime.accelerator.autocast():
            logits = net(to_device(part.tokens, device), part.lengths).logits
        return part.positions.numpy(), logits.double().softmax(1).cpu()

    for places, rows in read_side_by_side(read, batches, device):
        runtime.progress.now("evaluating")
        result[places] = rows
    return result


def _metrics(sums: Tensor, label_names: Sequence[str]) -> dict[str, Any]:
    """The scores from the cells of the confusion matrix and, last, the summed loss (nats), over all ranks."""
    classes = len(label_names)
    confusion = sums[:-1].view(classes, classes)
    total = confusion.sum()
    return {
        "loss": (sums[-1] / total).item(),
        "accuracy": (confusion.trace() / total).item(),
        "f1": macro_f1(confusion),
        "recall": (confusion.diag() / confusion.sum(1))[confusion.sum(1) > 0].mean().item(),
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
