"""Words of a text as its reader sees them, and which of them each token comes from.

Tokens are not what a user has written: they are in lower case, with marks such as xxmaj, and parts of words. An
explanation shows the user's own words, so each token is traced back to its place in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ulmfit.tokenizer.scripts import without_spaces

Span = tuple[int, int]  # the first character, and the one behind the last

#: What is no word: line breaks of HTML, and the marks between the columns of a row.
LAYOUT = re.compile(r"<br\s*/?>|\bxxfld \d+", re.IGNORECASE)
_ENTITY = r"&#?\w{1,8};"
_CHUNK = re.compile(
    rf"(?P<layout>{LAYOUT.pattern})|(?P<entity>{_ENTITY})|(?:(?!{LAYOUT.pattern}|{_ENTITY})\S)+", re.IGNORECASE
)
_MARKS = frozenset({"xxmaj", "xxup", "xxrep", "xxwrep"})  # they stand before the word that they belong to


def words_of(text: str, tokens: Sequence[str], spans: Sequence[Span]) -> tuple[list[Span], np.ndarray]:
    """The words of a text, and the word that each token belongs to.

    A word is what stands between spaces; punctuation at its ends is a word of its own. Where a script has no spaces
    between words, the tokens cut it. Neighbouring words that share a token, such as repeats, are one word.

    Args:
        tokens: with xxbos, as in the vocabulary.
        spans: by token, its place in the text; empty for what was inserted.

    Returns:
        The places of the words, ascending, and int64 [tokens]: the index of a word, -1 for xxbos and line breaks.
    """
    words = _cut_at_tokens(text, _words(text), {start for start, _ in spans})
    starts = np.array([start for start, _ in words], dtype=np.int64)
    ends = np.array([end for _, end in words], dtype=np.int64)
    low, high = np.full(len(tokens), -1), np.full(len(tokens), -1)  # by token, its first and last word
    waiting: list[int] = []  # marks before the next word
    repeats, behind = False, 0
    for place, (token, (start, end)) in enumerate(zip(tokens, spans, strict=True)):
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left")) - 1
        if token in _MARKS or (waiting and first > last):
            waiting.append(place)
            repeats = repeats or token == "xxwrep"
            continue
        if start == end or first > last:
            continue
        if repeats:  # the words before, which the mark counts, have no token of their own
            first = min(first, int(np.searchsorted(ends, behind, side="right")))
        low[[*waiting, place]], high[[*waiting, place]] = first, last
        waiting, repeats, behind = [], False, end
    return _joined(words, low, high)


def _words(text: str) -> list[Span]:
    found: list[Span] = []
    for match in _CHUNK.finditer(text):
        start, end = match.span()
        if match["layout"]:
            continue
        letters = [place for place in range(start, end) if unicodedata.category(text[place])[0] in "LN"]
        if match["entity"] or not letters:
            found.append((start, end))
            continue
        first, last = letters[0], letters[-1] + 1
        while last < end and unicodedata.category(text[last])[0] == "M":
            last += 1
        found += [span for span in ((start, first), (first, last), (last, end)) if span[0] < span[1]]
    return found


def _cut_at_tokens(text: str, words: list[Span], starts: set[int]) -> list[Span]:
    """The words, those in a script without spaces cut where a token starts."""
    found: list[Span] = []
    for start, end in words:
        begun = start
        for place in range(start + 1, end):
            if place in starts and not _repeats(text, place) and any(map(without_spaces, text[place - 1 : place + 1])):
                found.append((begun, place))
                begun = place
        found.append((begun, end))
    return found


def _repeats(text: str, place: int) -> bool:
    """Whether a place is between two of three equal characters or more, whose repeat mark has a token of its own."""
    char = text[place]
    return text[place - 1] == char and char in (text[place + 1 : place + 2], text[max(place - 2, 0) : place - 1])


def _joined(words: list[Span], low: np.ndarray, high: np.ndarray) -> tuple[list[Span], np.ndarray]:
    """Words that have a token in common as one, and by token the index of its word."""
    inside = np.zeros(len(words) + 1, dtype=np.int64)  # how many tokens reach from a word to the next one
    known = low >= 0
    np.add.at(inside, low[known], 1)
    np.add.at(inside, high[known], -1)
    reaches = np.cumsum(inside)[: len(words)] > 0
    number = np.cumsum(np.concatenate([[0], ~reaches[:-1]])) if len(words) else np.zeros(0, np.int64)
    spans: list[Span] = []
    for index, (start, end) in zip(number.tolist(), words, strict=True):
        if index == len(spans):
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
    places = np.full(len(low), -1, dtype=np.int64)
    places[known] = number[low[known]]
    return spans, places
