"""The loss of each row of a labelled split, and the rows with the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ulmfit.batches.cache import TokenStore
from ulmfit.cache_folder import cache_folder
from ulmfit.data.label_sets import LabelSetSplit
from ulmfit.data.splits import Split
from ulmfit.distributed.runtime import Runtime
from ulmfit.inference import TextClassifier
from ulmfit.training.scores import all_logits
from ulmfit.training.setup import tokenised

_SMALLEST = 1e-12  # a probability of 0 has this one's loss


class ScoredSplit(NamedTuple):
    """A split with the probabilities that a classifier gives its rows. Arrays have the order of the store.

    Attributes:
        store: the rows under the tokenizer of the (first) classifier.
        probabilities: float64 [n, C].
        truth: bool [n, C]; with one label a text, True at one place of each row.
        predicted: bool [n, C].
        losses: float64 [n], nats: the cross-entropy, with several labels its mean over the labels.
    """

    split: Split
    store: TokenStore
    probabilities: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray

    def worst(self, number: int) -> list[int]:
        """The places of the rows with the largest losses, the largest first."""
        return np.argsort(-self.losses, kind="stable")[:number].tolist()

    def texts(self, places: Sequence[int]) -> dict[int, str]:
        """The texts of some rows, by place. The split is read again, as the store holds no text."""
        rows = self.store.rows
        wanted = {int(rows[place]): place for place in places}
        found: dict[int, str] = {}
        for batch in self.split.batches():
            found |= {wanted[row]: text for row, text in zip(batch.rows, batch.texts, strict=True) if row in wanted}
            if len(found) == len(wanted):
                break
        return found


def scored_split(model: TextClassifier, split: Split, runtime: Runtime) -> ScoredSplit:
    """Score each row of a labelled split (a collective), by torch. Raises UserError as `build_or_open`.

    Args:
        model: a classifier or a bundle, with nets.
    """
    from ulmfit.bundle import Bundle, tempered

    members, places, shares = [model], [np.arange(len(model.label_names))], [1.0]
    if isinstance(model, Bundle):
        members, places, shares = model.members, model.places, model.shares
    stores, mean = [], np.zeros((1, len(model.label_names)))
    for member, place, share in zip(members, places, shares, strict=True):
        stores.append(tokenised(split, member.tokenizer, cache_folder(), with_labels=True))
        runtime.barrier()
        net, config = member.net, member.config
        assert net is not None, "not an exported model"
        pad_id, backwards = member.tokenizer.pad_id, bool(config.get("backwards"))
        logits = all_logits(net, stores[-1], runtime, pad_id=pad_id, backwards=backwards)
        logits = logits / float(config.get("temperature", 1.0))
        mean = mean + share * net.probabilities(logits).numpy()[:, place]
    store, mean = stores[0], tempered(mean, getattr(model, "temperature", None))
    assert store.labels is not None
    labels, classes = np.asarray(store.labels), np.arange(mean.shape[1])
    if isinstance(split, LabelSetSplit):
        assert model.thresholds is not None
        truth, predicted = split.labels.matrix()[labels] > 0.5, mean >= model.thresholds
        clipped = mean.clip(_SMALLEST, 1 - _SMALLEST)
        losses = -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean(1)
    else:
        truth, predicted = labels[:, None] == classes, mean.argmax(1)[:, None] == classes
        losses = -np.log(mean[truth].clip(_SMALLEST))
    return ScoredSplit(split, store, mean, truth, predicted, losses)
