"""Which words of a text speak for a class, and which against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed_values
from ulmfit.tokenizer.spans import LAYOUT

if TYPE_CHECKING:
    from ulmfit.inference import TextClassifier

TRIED = 5  # words that are left out one at a time


@dataclass(frozen=True)
class Word:
    """A word of a text, or punctuation.

    Attributes:
        text: as the user has written it.
        start, end: its place in `Explanation.text`, in characters.
        contribution: what it adds to the log-odds of the class, in nats, by gradient times input. Positive words speak
            for the class.
        without: the probability of the class for the text without this word; None where that was not tried.
    """

    text: str
    start: int
    end: int
    contribution: float
    without: float | None = None


@dataclass(frozen=True)
class Explanation:
    """What decided about a class of a text. In a notebook it is shown as the text in colours.

    Attributes:
        text: what the words' places are in: the text that was given, but for characters that no encoding has.
        label, index: the class that is explained.
        probability: of this class.
        predicted: the class of the prediction; "" where a text may have several labels and has none.
        words: in the order of the text. Line breaks and spaces are none.
        label_names: of all classes.
        probabilities: of all classes, float32 [C].
    """

    text: str
    label: str
    index: int
    probability: float
    predicted: str
    words: tuple[Word, ...]
    label_names: tuple[str, ...] = ()
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def strongest(self, number: int | None = None) -> list[Word]:
        """The words with the largest contributions, of either sign; all without a number."""
        return sorted(self.words, key=lambda word: -abs(word.contribution))[:number]

    def without(self, words: Sequence[Word]) -> str:
        """The text without these words."""
        kept, place = [], 0
        for word in sorted(words, key=lambda word: word.start):
            kept.append(self.text[place : word.start])
            place = word.end
        return "".join([*kept, self.text[place:]])

    def pieces(self) -> Iterator[tuple[str, Word | None]]:
        """The text in pieces: words, and what stands between them. Line breaks of HTML are line breaks."""
        place = 0
        for word in self.words:
            if between := self.text[place : word.start]:
                yield LAYOUT.sub("\n", between), None
            yield word.text, word
            place = word.end
        if rest := self.text[place:]:
            yield LAYOUT.sub("\n", rest), None

    def html(self) -> str:
        """A page of its own with the text in colours, as `ulmfit explain --html` writes it."""
        from ulmfit.coloured import page

        return page([self])

    def _repr_html_(self) -> str:
        from ulmfit.coloured import fragment

        return fragment(self)

    def __str__(self) -> str:
        from ulmfit.coloured import lines

        return "\n".join(lines(self, colour=False))


def explain(model: TextClassifier, text: str, label: str | None = None, *, tried: int = TRIED) -> Explanation:
    """What each word of a text adds to the log-odds of a class. See `TextClassifier.explain`."""
    if not isinstance(text, str):
        raise UserError(f"a text to explain is a str and not of type {type(text).__name__}; give one text at a time")
    members, shares = getattr(model, "members", [model]), getattr(model, "shares", [1.0])
    if not text.strip():
        raise UserError("there is no word in the text to explain; give one with words")
    if any(member.net is None for member in members):
        raise UserError("an exported model has no gradients; explain by the run that it was exported from")
    if any(member.bits == 8 for member in members):
        raise UserError("a model in 8 bits has no gradients; load it without int8")
    prediction = model.prediction_of(model.probabilities([text])[0])
    index = _index(model, label, prediction.index, prediction.probabilities)
    read, words = _contributions(model, members[0], text, index, shares[0])
    for member, share in zip(members[1:], shares[1:], strict=True):
        # Each may cut the text into other words, so its words are those of the first member.
        _, others = _contributions(model, member, text, index, share)
        words = _added(words, others)
    found = Explanation(read, model.label_names[index], index, float(prediction.probabilities[index]), prediction.label,
                        words, tuple(model.label_names), prediction.probabilities)  # fmt: skip
    return _tried(model, found, tried)


def _index(model: TextClassifier, label: str | None, predicted: int, probabilities: np.ndarray) -> int:
    if label is None:
        return predicted if predicted >= 0 else int(probabilities.argmax())
    if label not in model.label_names:
        raise UserError(
            f"the classifier has no class {excerpt(label)}, only {listed_values(model.label_names)}; give one of these"
        )
    return model.label_names.index(label)


def _contributions(
    model: TextClassifier, member: TextClassifier, text: str, index: int, share: float
) -> tuple[str, tuple[Word, ...]]:
    """The text as it was read, and its words with what they add by one classifier.

    Args:
        index: of the class among those of `model`.
        share: of the classifier in the mean.
    """
    from ulmfit.model.saliency import token_contributions

    assert member.net is not None
    read, ids, spans, places = member.tokenizer.encode_words(text)
    by_token = token_contributions(
        member.net,
        ids,
        member.label_names.index(model.label_names[index]),
        backwards=bool(member.config.get("backwards")),
        temperature=member.config.get("temperature"),
    )
    inside = places >= 0
    share /= model.config.get("temperature") or 1.0 if model is not member else 1.0  # that of a mean
    sums = share * np.bincount(places[inside], weights=by_token[inside], minlength=len(spans))
    words = tuple(
        Word(read[start:end], start, end, float(value)) for (start, end), value in zip(spans, sums, strict=True)
    )
    return read, words


def _added(words: tuple[Word, ...], others: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words with the contributions of others added: each to the word that it overlaps most of."""
    starts = np.array([word.start for word in words])
    sums = np.array([word.contribution for word in words])
    for other in others:
        first = max(0, int(np.searchsorted(starts, other.start, side="right")) - 1)
        last = max(first, int(np.searchsorted(starts, other.end, side="left")) - 1)
        shares = [max(0, min(word.end, other.end) - max(word.start, other.start)) for word in words[first : last + 1]]
        if sum(shares):
            sums[first : last + 1] += other.contribution * np.array(shares) / sum(shares)
    return tuple(replace(word, contribution=float(value)) for word, value in zip(words, sums, strict=True))


def _tried(model: TextClassifier, found: Explanation, number: int) -> Explanation:
    """With the probabilities of the text without each of the strongest words."""
    words = [word for word in found.strongest(number) if found.without([word]).strip()]
    if not words:
        return found
    rows = model.probabilities([found.without([word]) for word in words])
    without = {word.start: float(row[found.index]) for word, row in zip(words, rows, strict=True)}
    return replace(found, words=tuple(replace(word, without=without.get(word.start)) for word in found.words))
