"""A linear classifier of words and word pairs (n-grams), with the interface of `ClassifierNet` in evaluation.

A document's features are its tokens and pairs of neighbouring tokens, weighted by TF-IDF with sublinear term frequency and
scaled to length 1 (Salton and Buckley 1988), as scikit-learn's TfidfVectorizer has them with sublinear_tf. It knows what the
network averages away, a rare word that decides, and the mean of both is better than either (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ulmfit.model.classifier import ClassifierOutput


@dataclass(frozen=True)
class NGramConfig:
    """Sizes: words of the vocabulary, and tokens and pairs that the classifier knows."""

    vocab_size: int
    features: int


class NGramNet(nn.Module):
    """Linear classifier on the TF-IDF of tokens and pairs of tokens.

    Attributes:
        keys: the n-gram of each feature, int64 [F], ascending: a (V + 1) for the token a, a (V + 1) + b + 1 for the pair
            (a, b), with V words in the vocabulary.
        idf: weight of each feature's frequency, float32 [F].
        weight, bias: float32 [C, F], [C].
    """

    multi_label = False
    rows_of_a_core = 32
    keys: Tensor
    idf: Tensor

    def __init__(self, config: NGramConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.register_buffer("keys", torch.zeros(config.features, dtype=torch.int64))
        self.register_buffer("idf", torch.ones(config.features))
        self.weight = nn.Parameter(torch.zeros(num_classes, config.features))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def check(self) -> None:
        """Check the keys of a model that was read from a file.

        Raises:
            ValueError: they are not ascending, or not of this vocabulary.
        """
        ascending = bool((self.keys[1:] > self.keys[:-1]).all())
        if not ascending or self.keys[0] < 0 or self.keys[-1] >= (self.config.vocab_size + 1) ** 2:
            raise ValueError("keys are not ascending n-grams of its vocabulary")

    def features(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The known n-grams of documents: row, place among the features, and TF-IDF of each, all [m].

        They are ordered by row and place. Arguments as of `forward`.
        """
        (rows, width), features = tokens.shape, self.config.features
        size = torch.as_tensor(lengths, device=tokens.device)[:, None]
        position = torch.arange(width, device=tokens.device)
        row = torch.arange(rows, device=tokens.device)[:, None].expand(rows, width)
        inside, pair = position < size, position[1:] < size
        row = torch.cat([row[inside], row[:, 1:][pair]])
        place, known = self._find(torch.cat([self._singles(tokens)[inside], self._pairs(tokens)[pair]]))
        found, count = torch.unique(row[known] * features + place[known], return_counts=True)
        row, place = found // features, found % features
        value = (1 + count.to(self.idf.dtype).log()) * self.idf[place]
        norm = torch.zeros(rows, dtype=value.dtype, device=value.device).index_add_(0, row, value * value).sqrt_()
        return row, place, value / norm[row]

    def _singles(self, tokens: Tensor) -> Tensor:
        return tokens * (self.config.vocab_size + 1)

    def _pairs(self, tokens: Tensor) -> Tensor:
        """Of each two neighbours in a row, [..., T - 1]."""
        return self._singles(tokens[..., :-1]) + tokens[..., 1:] + 1

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The places of keys, int64, and which of them are features, bool; the places of others tell nothing."""
        place = torch.searchsorted(self.keys, keys).clamp_(max=self.config.features - 1)
        return place, self.keys[place] == keys

    def forward(
        self, tokens: Tensor, lengths: Tensor | Sequence[int], *, window_tokens: int | None = None
    ) -> ClassifierOutput:
        """Logits [n, C] of documents. They do not depend on the other documents.

        Args:
            tokens: int64 [n, T]; those after a document's length are ignored.
            lengths: [n], each at least 1.
            window_tokens: without effect; `ClassifierNet` reads in windows.
        """
        row, place, value = self.features(tokens, lengths)
        logits = self.bias.repeat(len(tokens), 1).index_add_(0, row, value[:, None] * self.weight.T[place])
        nothing = logits.new_zeros(())
        return ClassifierOutput(logits, nothing, nothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, [n, C]; they sum to 1."""
        return logits.softmax(1)

    @torch.no_grad()
    def contributions(self, ids: Tensor, index: int, temperature: float = 1.0) -> Tensor:
        """What each token of a document adds to the log-odds of a class, float64 [tokens], in nats.

        An n-gram's share of the log-odds is its feature times the gradient, which for a linear model tells the whole
        but for the softmax of more than two classes. It is divided evenly among its occurrences and their tokens.

        Args:
            ids: int64 [tokens].
            index: of the class.
            temperature: divides the logits.
        """
        _, features, value = self.features(ids[None], [len(ids)])
        logits = self.forward(ids[None], [len(ids)]).logits[0].double() / temperature
        others = logits.index_fill(0, torch.tensor(index, device=ids.device), -torch.inf)
        slope = -others.softmax(0)
        slope[index] = 1.0
        added = torch.zeros(self.config.features, dtype=torch.float64, device=ids.device)
        added[features] = value.double() * (slope / temperature @ self.weight.double()[:, features])
        found = [self._find(self._singles(ids)), self._find(self._pairs(ids))]
        number = torch.bincount(torch.cat([place[known] for place, known in found]), minlength=len(added)).clamp_(min=1)
        result = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        for tokens, (place, known) in enumerate(found, 1):
            share = torch.where(known, added[place] / number[place] / tokens, 0.0)
            for shift in range(tokens):
                result[shift : shift + len(share)] += share
        return result
