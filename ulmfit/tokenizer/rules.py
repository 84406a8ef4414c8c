"""fastai's text rules and an English word splitter, as one chain of Rust normalizers.

Everything here builds patterns; none of it sees a document. The chain turns a raw text into tokens that
are separated by spaces, with xxmaj, xxup, xxrep and xxwrep written out and the rest lower-cased, so that the
pre-tokenizer only has to cut at spaces.

`fastai1` follows fastai 1.0 (text/transform.py), `fastai2` fastai 2 (text/core.py). The word boundaries are
those of spaCy's English tokenizer (spacy_rules.py).

A replacement in `tokenizers` is a literal: a pass cannot copy what it matched. Hence three devices:
 * a boundary is inserted at a zero-width match: `X\\K` matches X and replaces nothing after it;
 * a repeat is counted in unary: all but the last element of a run become the mark ONE, then ten ONEs become a
   TEN and so on, and nine passes turn runs of marks into decimal digits;
 * `\\G` (where the last match ended) chains the elements of a run, so that a run is entered only at its head.
All repeats are bounded or possessive: Oniguruma gives up (and `tokenizers` panics) after 10 million retries.

What a pass costs in microseconds per KB of text: 1.5 to 3 if every match holds one literal, which is searched for
fast; from 6 on where a match begins with one of several ASCII characters or strings; 20 to 30 where it may begin with
anything, which any class with a character beyond ASCII counts as (so `\\n|\\u00a0` and not `[\\n\\u00a0]`); and 0.3
for a match. So a rare mark is left where several passes have to look, replacements with the same content share a
pass, and a search for what may begin anywhere walks from word to word within one match.
"""

from __future__ import annotations

from tokenizers import normalizers, pre_tokenizers

from ulmfit.tokenizer.spacy_rules import boundaries, contractions, either, replace

# Marks that the passes leave for each other: noncharacters of Unicode, which are for internal use. A text that holds
# one nevertheless has it replaced (`clean`): it would be taken for a mark, and a long run of them for a count, in
# quadratic time.
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
}


def _clean_up(rules: str) -> list[normalizers.Normalizer]:
    """fix_html of both versions; where one replacement makes another's match, the order is theirs."""
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


_WALK = 1000  # words in one match: few enough for Oniguruma's limit on retries


def _repeats(rules: str) -> list[normalizers.Normalizer]:
    """`cccc` -> ` xxrep 4 c ` and `word word word word ` -> ` xxwrep 4 word `, counts up to 999."""
    if rules == "fastai1":  # four or more
        chars = [(r"(\S)(?=\1\1\1)", ONE), (rf"{ONE}\K(\S)\1(?=\1)", ONE + ONE)]
        # A unit is a word and what follows it; fastai counts the white space, so `ha-ha-ha-ha-` counts 2.
        words = [
            (
                r"""[ \n"(\-]\K(\w++\W++)(?=\1{3})(?:(?<=\s)|\1{2,500}(?=\1))"""
                r"|\G(?!\A)(\w++\W++)(?=\2)",
                ONE,
            )
        ]
    else:  # three or more
        chars = [(r"(\S)(?=\1\1)", ONE), (rf"{ONE}\K(\S)(?=\1)", ONE)]
        words = [
            (rf"[^\s]*+(?>(?:[\s]++(?!([\w]++)[\s]++\1(?!\w))[^\s]*+){{0,{_WALK}}})(?:\s(?=\s))*+\K", AGAIN),
            (rf"(?:\G(?!\A)|(?={AGAIN}\s(\w++)\s*+{AGAIN}\s\1(?!\w))){AGAIN}\s\w++\s*+", ONE),
        ]
    passes = [
        *chars,
        (rf"{ONE}++[^{ONE}]\K", " "),
        (rf"(?<!{ONE}){ONE}", f" xxrep {ONE}"),
        # In fastai2 AGAIN marks the words that come again. The search for them walks from word to word, which is
        # cheaper than one that starts anew at each character; where it rests it leaves a mark that means nothing.
        *words,
        (rf"(?<!{ONE}|xxrep |xxrep{AGAIN} ){ONE}", f" xxwrep {ONE}"),
        (rf"{ONE}++\K", f"{ONE}{AGAIN} "),
        (ONE + "{10}", TEN),
        (TEN + "{10}", HUNDRED),
        (f"{HUNDRED}{{10,}}{TEN}*{ONE}*", HUNDRED * 9 + TEN * 9 + ONE * 9),
        # The decimal places, all in ONEs, with PLACE between them: an empty one is a zero.
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


def _strip() -> list[normalizers.Normalizer]:
    """White space at both ends goes, but for spaces, which are no tokens; the normalizer Strip costs 30 us a KB."""
    others = [chr(code) for code in range(0x3001) if chr(code).isspace() and not 0x1B < code <= 0x20]
    return [replace(r"\A \K\s++", ""), replace(rf"{either(others)}\s*+\z", "")]


def _spaces(rules: str) -> list[normalizers.Normalizer]:
    """Spaces around some characters; then white space other than one space becomes a token of its own.

    In such a token a space is written U+2581, as fastai 2 does, because spaces separate the tokens.
    """
    passes = [("/", " / "), ("#", " # ")]
    if rules == "fastai1":  # a line break counts as if spaces stood around it
        passes.append(("\n\\K *+|\u00a0\\K(?: ++|(?=\n))|\u0085\\K(?: ++|(?=\n|\u00a0))", "\u2581"))
        line = "(?=\n)(?<!\n\u2581)|(?=[\t\r])(?<=[^\\s\u2581])"
    else:
        passes.append((r"\\", r" \ "))
        passes.append(("(?:\n|\u00a0)\\K ++|\u0085\\K(?: ++|(?=\u00a0))", "\u2581"))
        line = "(?=[\n\t\r])(?<=[^\\s\u2581])"
    # Not at \G: there a boundary has just been set.
    before = rf"(?:{line}|(?=\u00a0|\u0085))(?!\G)"
    behind = "(?:[\n\t\r]\u2581*+(?=[^\\s\u2581])|\u00a0\u2581?|\u0085\u2581?)\\K"
    passes.append((f"{before}|{behind}", " "))
    return [replace(*p) for p in passes]


# -------------------------------------------------------------------------------------------------- case

_END = r"(?:\s|\z)"


def _case_of_tokens() -> list[normalizers.Normalizer]:
    """fastai 1: xxup before a token without a lower-case letter, xxmaj before a capitalised one."""
    return [
        replace(rf" \K(?=[^\s\p{{Ll}}]{{2}}[^\s\p{{Ll}}]*+{_END})(?=[^\s\p{{Lu}}]*+\p{{Lu}})", "xxup "),
        replace(rf" \K(?=\p{{Lu}}[^\s\p{{Lu}}\p{{Ll}}]*+\p{{Ll}}[^\s\p{{Lu}}]*+{_END})", "xxmaj "),
        normalizers.Lowercase(),
    ]


def _case_of_words() -> list[normalizers.Normalizer]:
    """fastai 2: the same for what stands between white space, before words are split; A to Z only."""
    return [
        replace(rf" \K(?=[A-Z][^a-z\s]++{_END})", "xxup "),
        replace(rf" \K(?=[A-Z][^A-Za-z\s]*+[a-z][^A-Z\s]*+{_END})", "xxmaj "),
        normalizers.Lowercase(),
    ]


# ---------------------------------------------------------------------------------------------- pipeline


def clean(rules: str, marks: str = MARKS) -> list[normalizers.Normalizer]:
    """Clean-up and repeats. The space in front keeps insertions off offset 0, where they would panic.

    `marks` are the characters that the passes use for themselves: a text's own become U+FFFD.
    """
    # One of several literals: a class of these characters would cost four times as much.
    foreign = replace("|".join(marks), "\ufffd")
    return [normalizers.Prepend(" "), foreign, *_clean_up(rules), *_repeats(rules)]


def case(rules: str) -> list[normalizers.Normalizer]:
    """Marks for capitals, and lower case."""
    return _case_of_tokens() if rules == "fastai1" else _case_of_words()


def normalizer(rules: str) -> normalizers.Normalizer:
    """The whole chain for words: afterwards spaces separate the tokens."""
    words = [*contractions(), boundaries()]
    if rules == "fastai1":
        return normalizers.Sequence([*clean(rules), *_spaces(rules), *words, *case(rules)])
    return normalizers.Sequence([*clean(rules), *_strip(), *_spaces(rules), *case(rules), *words])


def surface(token: str, rules: str) -> str:
    """A token as fastai writes it: in white space fastai 1 keeps the spaces."""
    return token.replace("\u2581", " ") if rules == "fastai1" and token[0].isspace() else token


def padding(length: int, vocab_size: int) -> list[str]:
    """Names of the entries that fill a vocabulary up to a multiple of 8; as fastai 1, none at the limit."""
    return [f"xxfake{i}" for i in range(1, -length % 8 + 1)] if length < vocab_size else []


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cuts at spaces."""
    return pre_tokenizers.CharDelimiterSplit(" ")
