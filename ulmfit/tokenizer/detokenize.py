"""Converts tokens to readable text: it resolves marks and joins punctuation and contractions.

Tokenizing loses the positions of spaces. So the result has the probable spelling, not always the original one:
`well - known` becomes `well-known`, `10 km` is unchanged. Capitals, repeats, quotes, brackets, contractions and
paragraphs are restored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_DROPPED = frozenset({"xxpad", "xxeos"})
_CLOSING = frozenset(".,!?;:)]}%\u2026\u201d\u2019\u3002\uff0c\uff01\uff1f\u3001")
_OPENING = frozenset("([{$#\u00a3\u20ac\u201c\u2018\u00bf\u00a1")
_TAIL = re.compile(r"n['\u2019]t|['\u2019](?:s|ll|re|ve|m|d|y|em)|nt|\.\.+", re.IGNORECASE)
_COMPOUNDS = frozenset({("can", "not"), ("gon", "na"), ("got", "ta"), ("c'm", "on"), ("y'", "all"), ("i", "m")})
_LONGEST = 10_000  # maximum number of characters or words restored from one repeat mark


def detokenize(tokens: list[str], *, subword: bool = False) -> str:
    """Readable text of tokens.

    xxbos becomes an empty line, except at the start. A field mark `xxfld 2` becomes a new line. Padding is removed.
    xxunk is kept, because the word is not known. With `subword` the tokens are pieces in which U+2581 is a space, so
    spaces are known and only marks must be resolved.
    """
    if subword:
        marks = "xxmaj xxup xxrep xxwrep xxfld xxbos xxeos xxpad xxunk".split()
        text = "".join(f" {t} " if t in marks else t.replace("\u2581", " ") for t in tokens)
        tokens = re.findall(r"\n+|[^\s]+", text)
    words = _undo_marks(tokens, english=not subword)
    text = _join(words, spaced=subword)
    return re.sub(r" *\n *", "\n", text).strip(" ")


def _count(tokens: list[str], place: int) -> int | None:
    token = tokens[place] if place < len(tokens) else ""
    return min(int(token), _LONGEST) if re.fullmatch(r"[0-9]{1,6}", token) else None


def _undo_marks(tokens: list[str], *, english: bool) -> list[str]:
    """The words without marks. A word that is joined to the previous one starts with a NUL character."""
    words: list[str] = []
    case: Callable[[str], str] = str
    copies, stretch = 1, 1
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token in ("xxmaj", "xxup"):
            case = str.upper if token == "xxup" else _capitalise
            continue
        if token in ("xxrep", "xxwrep"):
            number = _count(tokens, place)
            if number is not None:
                place += 1
                copies, stretch = (1, number) if token == "xxrep" else (number, 1)
            continue
        if token == "xxfld":
            place += _count(tokens, place) is not None
            words += ["\n"] if words else []
        elif token == "xxbos":
            words += ["\n\n"] if words else []
        elif token in _DROPPED or re.fullmatch("xxfake[0-9]+", token):
            pass
        elif not token.strip(" \u2581\t\r\n\f\v\u00a0"):
            words += ["\n" * token.count("\n")] if "\n" in token else []
        else:
            if token == "i" and english and case is str:
                case = _capitalise  # fastai has no mark for a single capital letter, but the pronoun I is always one
            word = (token if token == "xxunk" else case(token)) * stretch
            if stretch > 1 and words and _continues(words[-1], token):
                word = "\0" + word
            words += [word] * copies
        case, copies, stretch = str, 1, 1
    return words


def _capitalise(word: str) -> str:
    return word[:1].upper() + word[1:]


def _continues(left: str, char: str) -> bool:
    """Whether repeated characters belong to the previous word: so + oooo, 1 + 0000."""
    same = str.isalpha if char.isalpha() else str.isdigit if char.isdigit() else None
    return same is not None and same(left[-1:])


def _join(words: list[str], *, spaced: bool) -> str:
    text: list[str] = []
    quotes = {'"': False, "'": False}  # True: a quotation is open
    glue = True  # no space before the next word
    previous = ""
    for place, word in enumerate(words):
        if word.startswith("\n"):
            text.append(word)
            glue, previous = True, ""
            quotes = dict.fromkeys(quotes, False)
            continue
        glued_on = word.startswith("\0")
        word = word.lstrip("\0")
        following = words[place + 1] if place + 1 < len(words) else ""
        after = False  # no space after this word
        if spaced:
            glued_on = glued_on or _without_spaces(previous) and _without_spaces(word)
        elif word in quotes:
            if quotes[word] or (word == "'" and not _opens(words, place)):
                glued_on, quotes[word] = True, False
            else:
                after, quotes[word] = True, True
        elif word in ("-", "/"):
            glued_on = after = bool(previous) and previous[-1:].isalnum() and following.lstrip("\0")[:1].isalnum()
        elif word[0] in _OPENING and len(set(word)) == 1:
            after = True
        elif (word[0] in _CLOSING and len(set(word)) == 1) or _TAIL.fullmatch(word):
            glued_on = True
        elif (previous.lower(), word.lower()) in _COMPOUNDS:
            glued_on = True
        text.append(word if glue or glued_on else " " + word)
        glue, previous = after, word
    return "".join(text)


def _opens(words: list[str], place: int) -> bool:
    """Whether an apostrophe at `place` opens a quotation: then another one follows in the same paragraph."""
    for word in words[place + 1 : place + 60]:
        if word.startswith("\n"):
            return False
        if word == "'":
            return True
    return False


def _without_spaces(word: str) -> bool:
    """Whether a word ends in a script that is written without spaces (Chinese, Japanese, Thai ...)."""
    return bool(word) and unicodedata.category(word[-1]) == "Lo" and not "\u0590" <= word[-1] <= "\u08ff"
