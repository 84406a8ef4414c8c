"""Converts tokens to readable text: it resolves marks and joins punctuation and contractions.

Tokenizing loses the positions of spaces. So the result has the probable spelling, not always the original one:
`well - known` becomes `well-known`, `10 km` is unchanged. Capitals, repeats, quotes, brackets, contractions and
paragraphs are restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ulmfit.tokenizer.scripts import without_spaces

_MARKS = frozenset("xxmaj xxup xxrep xxwrep xxfld xxbos xxeos xxpad xxunk".split())
_DROPPED = frozenset({"xxpad", "xxeos"})
_CLOSING = frozenset(".,!?;:)]}%\u2026\u201d\u2019\u3002\uff0c\uff01\uff1f\u3001")
_CLOSING |= frozenset("\u0964\u060c\u061b\u061f\u06d4\u066a\uff1b\uff1a\u300d\u300f\uff09\u3011\u300b\u3009\u3015")
_OPENING = frozenset("([{$#\u00a3\u20ac\u201c\u2018\u00bf\u00a1\u201e\u201a")
_OPENING |= frozenset("\u300c\u300e\uff08\u3010\u300a\u3008\u3014")
_LOW = {"\u201e": "\u201c", "\u201a": "\u2018"}
_TAIL = re.compile(r"n['\u2019]t|['\u2019](?:s|ll|re|ve|m|d|y|em)|nt|\.\.+", re.IGNORECASE)
_COMPOUNDS = frozenset({("can", "not"), ("gon", "na"), ("got", "ta"), ("c'm", "on"), ("y'", "all"), ("i", "m")})
_LONGEST = 10_000  # maximum number of characters or words restored from one repeat mark


def detokenize(tokens: list[str], *, subword: bool = False, exact: bool = False, english: bool = False) -> str:
    """Readable text of tokens.

    xxbos becomes an empty line, except at the start. A field mark `xxfld 2` becomes a new line. Padding is removed.
    xxunk is kept, because the word is not known. With `subword` the tokens are pieces in which U+2581 is a space, so
    spaces are known and only marks must be resolved.

    Args:
        exact: the spaces around repeat marks are known too (see `subword.keeps_spaces`).
        english: the word i is a pronoun, and gets its capital.
    """
    tokens = [token.replace("\0", "\ufffd") if "\0" in token else token for token in tokens]  # has a meaning below
    if subword:
        tokens = _words_of_pieces(tokens)
    words = _undo_marks(tokens, english=english, exact=exact)
    text = _join(words, spaced=subword)
    return re.sub(r" *\n *", "\n", text).strip(" ")


def _words_of_pieces(pieces: list[str]) -> list[str]:
    """The words and marks. A word that is joined to the previous one starts with a NUL character."""
    text: list[str] = []
    state, run = "", False
    # "case", "count", "element", "spaced" or "behind": the place relative to the last mark
    for piece in pieces:
        if piece in _MARKS:
            text.append(f" {piece} ")
            state = {"xxmaj": "case", "xxup": "case", "xxrep": "count", "xxwrep": "count"}.get(piece, "")
            run = piece == "xxrep"
            continue
        if state == "element" and piece.isdecimal():  # a count of several pieces
            state = "count"
        joined = piece[:1] not in ("\u2581", "\n")
        place, state = state, ""
        if place == "count":
            state = "element" if piece.strip("\u2581") else "count"
            text.append(piece.replace("\u2581", " "))
            continue
        if place in ("element", "spaced"):
            state = "spaced" if not piece.strip("\u2581") else "behind" if run else ""
        if joined and place and place != "spaced":
            text.append(" \0")
        text.append(piece.replace("\u2581", " "))
    return re.findall(r"\n+|[^\s]+", "".join(text))


def _count(tokens: list[str], place: int) -> int | None:
    token = tokens[place] if place < len(tokens) else ""
    return min(int(token), _LONGEST) if re.fullmatch(r"[0-9]{1,6}", token) else None


def _undo_marks(tokens: list[str], *, english: bool, exact: bool) -> list[str]:
    """The words without marks. A word that is joined to the previous one starts with a NUL character."""
    words: list[str] = []
    case: Callable[[str], str] = str
    copies, stretch = 1, 1
    stretched = False  # the previous word was repeated characters
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token in ("xxmaj", "xxup"):
            case = _upper if token == "xxup" else _capitalise
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
            # fastai has no mark for a single capital letter, but the pronoun I is always one. `im` is a word of German.
            if token == "i" and english and case is str and tokens[place : place + 1] != ["m"]:
                case = _capitalise
            glue, token = ("\0", token[1:]) if token.startswith("\0") else ("", token)
            if words and not exact:
                joins = _continues(words[-1], token) if stretch > 1 else stretched and _unspaced(words[-1], token)
                glue = "\0" if joins else glue
            word = (token if token == "xxunk" else case(token)) * stretch
            words += [glue + word, *[word] * (copies - 1)]
            stretched = stretch > 1
        case, copies, stretch = str, 1, 1
    return words


def _capitalise(word: str) -> str:
    # The lower case of the Turkish capital I with a dot is two characters.
    return "\u0130" + word[2:] if word.startswith("i\u0307") else word[:1].upper() + word[1:]


def _upper(word: str) -> str:
    return word.upper().replace("I\u0307", "\u0130")


def _continues(left: str, char: str) -> bool:
    """Whether repeated characters belong to the previous word: so + oooo, 1 + 0000, wow + !!!!."""
    if char in _CLOSING:
        return True
    same = str.isalpha if char.isalpha() else str.isdigit if char.isdigit() else None
    return same is not None and same(left[-1:])


def _unspaced(left: str, right: str) -> bool:
    """Whether there is no space between two words, because both are of a script without spaces."""
    return without_spaces(left[-1:]) and without_spaces(right[:1])


def _join(words: list[str], *, spaced: bool) -> str:
    text: list[str] = []
    quotes = {'"': False, "'": False}  # True: a quotation is open
    low: dict[str, bool] = {}  # closing marks of the open quotations that began with a low mark
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
            after = False
        elif word in quotes:
            if quotes[word] or (word == "'" and not _opens(words, place)):
                glued_on, quotes[word] = True, False
            else:
                after, quotes[word] = True, True
        elif word in ("-", "/"):
            glued_on = after = bool(previous) and previous[-1:].isalnum() and following.lstrip("\0")[:1].isalnum()
        elif low.get(word):  # German and others: what opens a quotation in English closes it
            glued_on, low[word] = True, False
        elif word[0] in _OPENING and len(set(word)) == 1:
            after = True
            if word in _LOW:
                low[_LOW[word]] = True
        elif (word[0] in _CLOSING and len(set(word)) == 1) or _TAIL.fullmatch(word):
            glued_on = True
        elif (previous.lower(), word.lower()) in _COMPOUNDS or _one_emoji(previous, word):
            glued_on = True
        text.append(word if glue or glued_on else " " + word)
        glue, previous = after, word
    return "".join(text)


def _one_emoji(left: str, right: str) -> bool:
    """Whether two parts are of one emoji: with a joiner, a variation selector, a skin tone, or two halves of a flag."""
    if left[-1:] == "\u200d" or right[:1] in ("\u200d", "\ufe0f"):
        return True
    flag = all(len(half) == 1 and "\U0001f1e6" <= half <= "\U0001f1ff" for half in (left, right))
    return flag or "\U0001f3fb" <= right[:1] <= "\U0001f3ff"


def _opens(words: list[str], place: int) -> bool:
    """Whether an apostrophe at `place` opens a quotation: then another one follows in the same paragraph."""
    for word in words[place + 1 : place + 60]:
        if word.startswith("\n"):
            return False
        if word == "'":
            return True
    return False
