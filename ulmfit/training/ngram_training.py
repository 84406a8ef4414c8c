"""Trains the linear classifier of words and word pairs (`model.ngrams`): in seconds, or with many texts or classes in minutes.

A logistic regression on the TF-IDF of n-grams, each scaled for each class by its log-count ratio: how much more often
documents of the class have it than others (NB-SVM; Wang and Manning, ACL 2012, equation 1). On held-out texts of four tasks
the scaling was better than TF-IDF alone, and TF-IDF better than the paper's zeros and ones (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ulmfit.model.ngrams import NGramConfig, NGramNet

MOST_FEATURES = 200_000  # those of the most documents; 1.6 MB of keys, and as much for each two classes
MOST_WEIGHTS = 8_000_000  # of all classes together: the optimizer remembers 20 times as many numbers of 8 bytes
STRENGTHS = (3.0, 10.0, 30.0, 100.0)  # C of scikit-learn's LogisticRegression: the larger, the less regularised
_ITERATIONS = 100
_HISTORY = 10


@dataclass(frozen=True)
class Counted:
    """The n-grams of the training documents.

    Attributes:
        keys, idf: as of `NGramNet`, int64 and float64 [F].
        row, place, value: the n-grams of the documents, ordered by row: number of the document, place among the keys,
            and TF-IDF; int64, int64 and float64 [m].
        documents: their number.
    """

    keys: np.ndarray
    idf: np.ndarray
    row: np.ndarray
    place: np.ndarray
    value: np.ndarray
    documents: int

    def first(self, documents: int) -> Counted:
        """Of so many documents alone, with the n-grams and their weights of all."""
        end = int(np.searchsorted(self.row, documents))
        return replace(self, row=self.row[:end], place=self.place[:end], value=self.value[:end], documents=documents)


def count(ids: np.ndarray, lengths: np.ndarray, vocab_size: int, num_classes: int) -> Counted:
    """Count the tokens and pairs of neighbouring tokens of documents.

    Args:
        ids: of all documents, one behind the other, int [tokens].
        lengths: tokens of each, int [n].
        num_classes: with very many, fewer n-grams are kept.
    """
    ids, documents = ids.astype(np.int64), len(lengths)
    row = np.repeat(np.arange(documents), lengths)
    same = row[:-1] == row[1:]
    base = ids * (vocab_size + 1)  # the keys of NGramNet
    keys = np.concatenate([base, (base[:-1] + ids[1:] + 1)[same]])
    row = np.concatenate([row, row[1:][same]])
    names, place = np.unique(keys, return_inverse=True)
    found, number = np.unique(row * len(names) + place, return_counts=True)
    row, place = np.divmod(found, len(names))
    frequency = np.bincount(place, minlength=len(names))
    most = max(1, min(MOST_FEATURES, MOST_WEIGHTS // num_classes))
    if len(names) > most:
        kept = np.sort(np.argsort(-frequency, kind="stable")[:most])
        new = np.full(len(names), -1)
        new[kept] = np.arange(len(kept))
        names, frequency = names[kept], frequency[kept]
        inside = new[place] >= 0
        row, place, number = row[inside], new[place[inside]], number[inside]
    idf = np.log((1 + documents) / (1 + frequency)) + 1  # scikit-learn's, smooth
    value = (1 + np.log(number)) * idf[place]
    norm = np.sqrt(np.bincount(row, weights=value * value, minlength=documents))
    return Counted(names, idf, row, place, value / norm[row], documents)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class numbers, int [n], as probabilities, float64 [n, C]."""
    found = np.zeros((len(labels), num_classes))
    found[np.arange(len(labels)), labels] = 1.0
    return found


def log_count_ratios(counted: Counted, wanted: np.ndarray) -> np.ndarray:
    """By class and n-gram log(p / q), float64 [C, F]: p and q are the shares that it has of all n-grams in documents of
    the class and in the others, each n-gram of a document counted once, and one of each added. A document that is of a
    class with a probability is counted so far for it.

    Arguments as of `trained`.
    """
    features = len(counted.keys)
    within = np.stack([np.bincount(counted.place, weights=one[counted.row], minlength=features) for one in wanted.T])
    p, q = within + 1.0, within.sum(0) - within + 1.0
    return np.asarray(np.log(p / p.sum(1, keepdims=True)) - np.log(q / q.sum(1, keepdims=True)))


def trained(
    counted: Counted,
    wanted: np.ndarray,
    vocab_size: int,
    strengths: Sequence[float] = STRENGTHS,
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[tuple[float, NGramNet]]:
    """Yield a strength and the logistic regression trained with it, for each strength in turn.

    Each starts from the one before. The loss is the cross-entropy summed over the documents, and |weight|^2 / (2 strength)
    with the weights of the scaled features.

    Args:
        wanted: each document's probability of each class, float64 [n, C].
        before_each: called before each evaluation of the loss; may raise.
    """
    num_classes = wanted.shape[1]
    size = (num_classes, len(counted.keys) + 1)  # the bias is the last column
    weights, ratios = torch.zeros(size, dtype=torch.float64), log_count_ratios(counted, wanted)
    for strength in strengths:
        decay = 1 / (strength * counted.documents)
        # scikit-learn's has one column of weights for two classes, which are the difference of these two.
        decay *= 2 if num_classes == 2 else 1
        optimizer = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, history_size=_HISTORY, tolerance_grad=1e-6,
                                      tolerance_change=1e-10, line_search_fn="strong_wolfe")  # fmt: skip

        def closure(decay: float = decay) -> torch.Tensor:
            before_each()
            loss, weights.grad = _loss(counted, ratios, weights.numpy(), wanted.T, decay)
            return loss

        optimizer.step(closure)
        keys, idf = torch.from_numpy(counted.keys), torch.from_numpy(counted.idf).float()
        scaled = (weights[:, :-1] * torch.from_numpy(ratios)).float()
        yield strength, _net(vocab_size, keys, idf, scaled, weights[:, -1].float())


def averaged(nets: Sequence[NGramNet]) -> NGramNet:
    """A classifier whose logits are the mean of those of several on the same n-grams."""
    first = nets[0]
    weight, bias = (torch.stack([getattr(one, name).data for one in nets]).mean(0) for name in ("weight", "bias"))
    return _net(first.config.vocab_size, first.keys, first.idf, weight, bias)


def _net(vocab_size: int, keys: torch.Tensor, idf: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> NGramNet:
    net = NGramNet(NGramConfig(vocab_size, len(keys)), len(bias))
    net.keys, net.idf, net.weight.data, net.bias.data = keys, idf, weight, bias
    return net.eval()


def _loss(
    counted: Counted, ratios: np.ndarray, weights: np.ndarray, wanted: np.ndarray, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss by document, and its gradient. By numpy, whose sums do not depend on the number of threads."""
    logits = np.stack([
        np.bincount(counted.row, weights=counted.value * one[counted.place], minlength=counted.documents)
        for one in ratios * weights[:, :-1]
    ]) + weights[:, -1:]  # fmt: skip
    logits -= logits.max(0)
    powers = np.exp(logits)
    total = powers.sum(0)
    loss = (np.log(total) - (logits * wanted).sum(0)).mean() + decay / 2 * np.square(weights[:, :-1]).sum()
    residual = (powers / total - wanted) / counted.documents
    gradient = np.empty_like(weights)
    for one, new in zip(residual, gradient, strict=True):
        new[:-1] = np.bincount(counted.place, weights=counted.value * one[counted.row], minlength=len(counted.keys))
        new[-1] = one.sum()
    gradient[:, :-1] = ratios * gradient[:, :-1] + decay * weights[:, :-1]
    return torch.tensor(loss, dtype=torch.float64), torch.from_numpy(gradient)
