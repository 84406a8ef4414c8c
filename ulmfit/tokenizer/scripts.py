"""Scripts that are written without spaces between words.

A word tokenizer takes a whole clause in such a script as one word, so nearly every token is unknown. Python's
`unicodedata` has no script property, and the category does not tell these scripts apart: letters of Korean, Hindi,
Amharic and Hebrew, which are written with spaces, are of category Lo too. So the ranges are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Letters, vowel signs and marks of each script (Unicode 16, property Script).
_IDEOGRAPHIC = {
    "Chinese": "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af"  # Han
    "\u3105-\u312f\u31a0-\u31bf",  # Bopomofo
    "Japanese": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f",  # kana
    "Yi": "\ua000-\ua48c",
}
_PHONETIC = {
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Lao": "\u0e81-\u0ece\u0edc-\u0edf",
    "Tibetan": "\u0f00\u0f0b\u0f40-\u0fbc",
    "Burmese": "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f",
    "Khmer": "\u1780-\u17d3\u17d7\u17dc\u17dd",
    "Tai": "\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7c\uaa80-\uaac2\uaadb-\uaadd",  # Tai Le, New Tai Lue, Tham, Viet
    "Balinese or Javanese": "\u1b00-\u1b4b\ua980-\ua9c0",
}
_NAMES = {name: re.compile(f"[{ranges}]") for name, ranges in (_IDEOGRAPHIC | _PHONETIC).items()}
_LETTER = re.compile(f"[{''.join((_IDEOGRAPHIC | _PHONETIC).values())}]")


class _Kind(NamedTuple):
    """Scripts whose words have about the same length.

    Attributes:
        letter: one of their letters.
        cut: a space that ends a word: behind a letter, before another one or punctuation.
        word: mean length of a word, in characters.
        longest: the largest mean length for which spaces are taken as ends of words and not of clauses.
    """

    letter: re.Pattern[str]
    cut: re.Pattern[str]
    word: float
    longest: float


def _kind(scripts: dict[str, str], word: float, longest: float) -> _Kind:
    ranges = "".join(scripts.values())
    return _Kind(
        re.compile(f"[{ranges}]"), re.compile(rf"[{ranges}][ \t\u00a0\u3000]+(?=[{ranges}]|[^\w\s])"), word, longest
    )


_KINDS = (_kind(_IDEOGRAPHIC, 2, 4), _kind(_PHONETIC, 5, 10))
_OTHER_WORD = 5  # mean length of a word in other scripts


def without_spaces(char: str) -> bool:
    """Whether a character is of a script that is written without spaces between words; False for ""."""
    return _LETTER.match(char) is not None


def unspaced_script(texts: Iterable[str]) -> str | None:
    """The script without spaces that has most of the words of these texts, e.g. "Thai"; None if there is none.

    None too if the author has cut the texts into words by spaces.
    """
    texts = list(texts)
    words = [sum(len(kind.letter.findall(text)) for text in texts) / kind.word for kind in _KINDS]
    others = sum(char.isalpha() for text in texts for char in _LETTER.sub("", text)) / _OTHER_WORD
    if sum(words) <= others or _is_cut(texts, _KINDS[words.index(max(words))]):
        return None
    counts = {name: sum(len(pattern.findall(text)) for text in texts) for name, pattern in _NAMES.items()}
    counts["Japanese"] *= 5  # its texts have Chinese characters too, but Chinese ones have no kana
    return max(counts, key=lambda name: counts[name])


def _is_cut(texts: list[str], kind: _Kind) -> bool:
    letters = sum(len(kind.letter.findall(text)) for text in texts)
    cuts = [len(kind.cut.findall(text)) for text in texts]
    words = sum(number + 1 for number in cuts if number)  # a text without a cut says nothing
    return letters <= kind.longest * words
