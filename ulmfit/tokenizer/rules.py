"""fastai's text rules and an English word splitter, as one chain of Rust normalizers.

The functions here only build patterns; they process no text. The chain converts a raw text to lower-case tokens
separated by spaces, with the marks xxmaj, xxup, xxrep and xxwrep. So the pre-tokenizer only has to split at spaces.

`fastai1` follows fastai 1.0 (text/transform.py), `fastai2` fastai 2 (text/core.py). The word boundaries are
those of spaCy's English tokenizer (spacy_rules.py).

A replacement in `tokenizers` is a literal string, so a pass cannot copy its match. Therefore:
 * a boundary is inserted at a zero-width match: `X\\K` matches X but replaces only the empty string after it;
 * repeats are counted in unary: each element of a run except the last becomes the mark ONE, ten ONEs become a
   TEN and so on, and nine passes convert runs of marks to decimal digits;
 * `\\G` (the end of the last match) links the elements of a run, so that a run is matched from its start only.
All repeats are bounded or possessive, because after 10 million retries Oniguruma stops and `tokenizers` panics.

The cost of a pass in microseconds per KB of text is: 1.5 to 3 if every match contains one literal, which is searched
for fast; 6 or more if a match starts with one of several ASCII characters or strings; 20 to 30 if it may start with
anything, and every class with a non-ASCII character has this cost (so use `\\n|\\u00a0`, not `[\\n\\u00a0]`). A match
costs 0.3. So positions needed by several passes get a rare mark, replacements with the same content share a pass, and
a search for a match that may start anywhere goes from word to word within one match.
"""

from __future__ import annotations

import json

from tokenizers import normalizers, pre_tokenizers

from ulmfit.tokenizer.spacy_rules import boundaries, contractions, either, replace

# Marks for later passes: Unicode noncharacters, which are reserved for internal use. If a text contains one, `clean`
# replaces it. Otherwise it would be treated as a mark, and a long run as a count, in quadratic time.
ONE, TEN, HUNDRED, PLACE, AGAIN, ENTITY = "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4", "\ufdd5", "\ufdd6"
MARKS = ONE + TEN + HUNDRED + PLACE + AGAIN + ENTITY

SPECIALS = {
    "fastai1": "xxunk xxpad xxbos xxeos xxfld xxmaj xxup xxrep xxwrep".split(),
    "fastai2": "xxunk xxpad xxbos xxeos xxfld xxrep xxwrep xxup xxmaj".split(),
}


# ---------------------------------------------------------------------------------------------- clean-up

ENTITIES = {
    "<": "lt",
    ">": "gt",
    "\u2013": "ndash|#150|#8211",
    "\u2014": "mdash|#151|#8212",
    "\u2019": "rsquo|#8217",
    "\u201c": "ldquo|#147|#8220",
    "\u201d": "rdquo|#148|#8221",
    "\u2026": "hellip|#133|#8230",
    "\u00e9": "eacute|#233",
    "'": "apos|#0+39|#[xX]0*27",
}


def _clean_up(rules: str) -> list[normalizers.Normalizer]:
    """fastai's fix_html, of both versions, with the entities that texts have most: each other one would be a pass more.

    The order is fastai's where a replacement can create a match of another.
    """
    v1 = rules == "fastai1"
    passes = [
        ("#(?:39|146);|quot;", "'"),
        ("amp;", "&"),
        ("nbsp;", " "),
        ("#36;", "$"),
        (r"<br />|\\n", "\n"),
        (r'\\"', '"'),
        ("<unk>", "xxunk"),
        (r" @\.@ ", "."),
        (" @-@ ", "-"),
    ]
    passes += [(" @,@ ", ","), (r"\\", r" \ ")] if v1 else [(r"\.\.\.", " \u2026")]
    passes.append((f"&(?=(?:{'|'.join(ENTITIES.values())});)", ENTITY))
    passes += [(f"{ENTITY}(?:{names});", char) for char, names in ENTITIES.items()]
    return [replace(*p) for p in passes]


# ----------------------------------------------------------------------------------------------- repeats


_WALK = 1000  # words in one match; more could reach Oniguruma's limit on retries


def repeats(rules: str) -> list[normalizers.Normalizer]:
    """`cccc` -> ` xxrep 4 c ` and `word word word word ` -> ` xxwrep 4 word `, counts up to 999."""
    if rules == "fastai1":  # counts four or more
        chars = [(r"(\S)(?=\1\1\1)", ONE), (rf"{ONE}\K(\S)\1(?=\1)", ONE + ONE)]
        # A unit is a word and the characters after it. fastai counts the white space, so the count of `ha-ha-ha-ha-`
        # is 2.
        words = [
            (
                r"""[ \n"(\-]\K(\w++\W++)(?=\1{3})(?:(?<=\s)|\1{2,500}(?=\1))"""
                r"|\G(?!\A)(\w++\W++)(?=\2)",
                ONE,
            )
        ]
    else:  # counts three or more
        chars = [(r"(\S)(?=\1\1)", ONE), (rf"{ONE}\K(\S)(?=\1)", ONE)]
        words = [
            (rf"[^\s]*+(?>(?:[\s]++(?!([\w]++)[\s]++\1(?!\w))[^\s]*+){{0,{_WALK}}})(?:\s(?=\s))*+\K", AGAIN),
            (rf"(?:\G(?!\A)|(?={AGAIN}\s(\w++)\s*+{AGAIN}\s\1(?!\w))){AGAIN}\s\w++\s*+", ONE),
        ]
    passes = [
        *chars,
        (rf"{ONE}++[^{ONE}]\K", " "),
        (rf"(?<!{ONE}){ONE}", f" xxrep {ONE}"),
        # In fastai2 AGAIN marks repeated words. The search goes from word to word, because a new search at each
        # character is slower. After `_WALK` words it leaves a mark without meaning.
        *words,
        (rf"(?<!{ONE}|xxrep |xxrep{AGAIN} ){ONE}", f" xxwrep {ONE}"),
        (rf"{ONE}++\K", f"{ONE}{AGAIN} "),
        (ONE + "{10}", TEN),
        (TEN + "{10}", HUNDRED),
        (f"{HUNDRED}{{10,}}{TEN}*{ONE}*", HUNDRED * 9 + TEN * 9 + ONE * 9),
        # The decimal digits, each as a run of ONEs, separated by PLACE. An empty run is a zero.
        (rf"{HUNDRED}\K(?=[{ONE}{AGAIN}])", PLACE),
        (rf"{HUNDRED}\K(?!{HUNDRED})", PLACE),
        (HUNDRED, ONE),
        (rf"{TEN}\K(?!{TEN})", PLACE),
        (TEN, ONE),
        (rf"{PLACE}(?!{ONE})", "0"),
    ]
    passes += [(f"{ONE}{{{digit}}}", str(digit)) for digit in range(9, 0, -1)]
    passes += [(PLACE, ""), (AGAIN, "")]
    return [replace(*p) for p in passes]


_OTHER_SPACE = either([chr(code) for code in range(0x3001) if chr(code).isspace() and not 0x1B < code <= 0x20])
# A run of white space that is not at the end is matched as a whole too, and nothing of it replaced: a search that goes
# on inside of it would take quadratic time.
_SPACE_AT_END = rf"{_OTHER_SPACE}\s*+(?:\z|\K)"
ANY_SPACE_AT_END = r"(?<!\s)\s++\z"
# Patterns in tokenizers of version 0.2.0 that take quadratic time for runs of white space, and their equals.
_SLOW = {rf"{_OTHER_SPACE}\s*+\z": _SPACE_AT_END, r"\s+\z": ANY_SPACE_AT_END}


def without_slow_passes(json_text: str) -> str:
    """A tokenizer (the JSON that `tokenizers` writes) with the passes that take quadratic time replaced by equal ones."""
    for slow, fast in _SLOW.items():
        old, new = (f'"Regex":{json.dumps(pattern, ensure_ascii=False)}' for pattern in (slow, fast))
        json_text = json_text.replace(old + "}", new + "}")
    return json_text


def _strip() -> list[normalizers.Normalizer]:
    """Remove white space at both ends, except spaces, which are not tokens. The normalizer Strip costs 30 us per KB."""
    return [replace(r"\A \K\s++", ""), replace(_SPACE_AT_END, "")]


def _spaces(rules: str) -> list[normalizers.Normalizer]:
    """Insert spaces around some characters. Then white space other than a single space becomes a token.

    In such a token a space is written as U+2581, as in fastai 2, because spaces separate tokens.
    """
    passes = [("/", " / "), ("#", " # ")]
    if rules == "fastai1":  # a line break is treated as if it had spaces around it
        passes.append(("\n\\K *+|\u00a0\\K(?: ++|(?=\n))|\u0085\\K(?: ++|(?=\n|\u00a0))", "\u2581"))
        line = "(?=\n)(?<!\n\u2581)|(?=[\t\r])(?<=[^\\s\u2581])"
    else:
        passes.append((r"\\", r" \ "))
        passes.append(("(?:\n|\u00a0)\\K ++|\u0085\\K(?: ++|(?=\u00a0))", "\u2581"))
        line = "(?=[\n\t\r])(?<=[^\\s\u2581])"
    # Not at \G, because a boundary was just inserted there.
    before = rf"(?:{line}|(?=\u00a0|\u0085))(?!\G)"
    behind = "(?:[\n\t\r]\u2581*+(?=[^\\s\u2581])|\u00a0\u2581?|\u0085\u2581?)\\K"
    passes.append((f"{before}|{behind}", " "))
    return [replace(*p) for p in passes]


# -------------------------------------------------------------------------------------------------- case

_END = r"(?:\s|\z)"
# For both versions, what follows xxup and xxmaj. In fastai 1 a token without lower-case letters and a capitalised one;
# in fastai 2 the same before words are split, for strings between white space, and for A to Z only.
_CAPITALS = {
    "fastai1": (
        rf"(?=[^\s\p{{Ll}}]{{2}}[^\s\p{{Ll}}]*+{_END})(?=[^\s\p{{Lu}}]*+\p{{Lu}})",
        rf"(?=\p{{Lu}}[^\s\p{{Lu}}\p{{Ll}}]*+\p{{Ll}}[^\s\p{{Lu}}]*+{_END})",
    ),
    "fastai2": (rf"(?=[A-Z][^a-z\s]++{_END})", rf"(?=[A-Z][^A-Za-z\s]*+[a-z][^A-Z\s]*+{_END})"),
}


# ---------------------------------------------------------------------------------------------- pipeline


# White space of rare kinds, as of PDF files and French typography. It separates words and is no token of its own.
_BLANKS = "\v\f\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def clean(rules: str, marks: str = MARKS) -> list[normalizers.Normalizer]:
    """Clean-up. A space is prepended, because `tokenizers` panics if a pass inserts at offset 0.

    `marks` are the characters that passes use internally. In a text they become U+FFFD. White space of rare kinds
    becomes a space.
    """
    # Alternatives, because a class of these characters would cost four times as much.
    foreign, blanks = replace("|".join(marks), "\ufffd"), replace("|".join(_BLANKS), " ")
    return [normalizers.Prepend(" "), foreign, blanks, *_clean_up(rules)]


def case(rules: str, *, behind: str = " ", space: str = " ") -> list[normalizers.Normalizer]:
    """Marks for capitals at the beginning of tokens.

    Args:
        behind: a pattern; tokens begin behind it.
        space: what is inserted around a mark that has none yet.
    """
    before = "" if behind == " " else space
    up, maj = _CAPITALS[rules]
    return [replace(rf"{behind}\K{up}", f"{before}xxup{space}"), replace(rf"{behind}\K{maj}", f"{before}xxmaj{space}")]


def lower() -> list[normalizers.Normalizer]:
    """Lower case, as Python's: the Greek sigma has a form of its own at the end of a word."""
    return [replace(r"\u03a3(?<=\p{L}\u03a3)(?!\p{L})", "\u03c2"), normalizers.Lowercase()]


def normalizer(rules: str) -> normalizers.Normalizer:
    """The complete chain for words. In its output spaces separate the tokens."""
    words = [*contractions(), boundaries()]
    cleaned = [*clean(rules), *repeats(rules)]
    if rules == "fastai1":
        return normalizers.Sequence([*cleaned, *_spaces(rules), *words, *case(rules), *lower()])
    return normalizers.Sequence([*cleaned, *_strip(), *_spaces(rules), *case(rules), *lower(), *words])


def surface(token: str, rules: str) -> str:
    """A token as written by fastai: fastai 1 keeps spaces in tokens of white space."""
    return token.replace("\u2581", " ") if rules == "fastai1" and token[0].isspace() else token


def padding(length: int, vocab_size: int) -> list[str]:
    """Names of the entries that pad a vocabulary to a multiple of 8, or to the limit. As in fastai 1, none at the limit."""
    return [f"xxfake{i}" for i in range(1, min(-length % 8, vocab_size - length) + 1)]


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits at spaces."""
    return pre_tokenizers.CharDelimiterSplit(" ")
