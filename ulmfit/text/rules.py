"""fastai's text rules and an English word splitter, as one chain of Rust normalizers.

Everything here builds patterns; none of it sees a document. The chain turns a raw text into tokens that
are separated by spaces, with xxmaj, xxup, xxrep and xxwrep written out and the rest lower-cased, so that the
pre-tokenizer only has to cut at spaces.

`fastai1` follows fastai 1.0 (text/transform.py), `fastai2` fastai 2 (text/core.py). The word boundaries are
those of spaCy's English tokenizer.

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

from tokenizers import Regex, normalizers, pre_tokenizers

# Marks that the passes leave for each other: noncharacters of Unicode, which no text may contain.
ONE, TEN, HUNDRED, PLACE, AGAIN, ENTITY = "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4", "\ufdd5", "\ufdd6"

SPECIALS = {
    "fastai1": "xxunk xxpad xxbos xxeos xxfld xxmaj xxup xxrep xxwrep".split(),
    "fastai2": "xxunk xxpad xxbos xxeos xxfld xxrep xxwrep xxup xxmaj".split(),
}


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), content)


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
    return [_replace(*p) for p in passes]


# ----------------------------------------------------------------------------------------------- repeats


_WALK = 1000  # words in one match: few enough for Oniguruma's limit on retries


def _repeats(rules: str) -> list[normalizers.Normalizer]:
    """`cccc` -> ` xxrep 4 c ` and `word word word word ` -> ` xxwrep 4 word `, counts up to 999."""
    if rules == "fastai1":  # four or more
        chars = [(r"(\S)(?=\1\1\1)", ONE), (rf"{ONE}\K(\S)\1(?=\1)", ONE + ONE)]
        # A unit is a word and what follows it; fastai counts the white space, so `ha-ha-ha-ha-` counts 2.
        unit, head = rf"\w++[^\w{AGAIN}]++", r'(?<=[ \n"(\-])'
        words = [
            (rf"[\w]*+[^\w]*+(?>(?:([\w]++[^\w]++)(?!\1)){{0,{_WALK}}})\K", AGAIN),
            (
                rf"(?:\G(?!\A)|{head}(?={AGAIN}({unit}){AGAIN}\1{AGAIN})){AGAIN}{unit}(?<=\s)"
                rf"|{head}{AGAIN}({unit})(?<!\s)(?:{AGAIN}?\2){{2,500}}(?={AGAIN}?\2)",
                ONE,
            ),
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
        # AGAIN marks the words that come again. The search for them walks from word to word, which is cheaper than
        # one that starts anew at each character; where it rests it leaves a mark that means nothing.
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
    return [_replace(*p) for p in passes]


def _strip() -> list[normalizers.Normalizer]:
    """White space at both ends goes, but for spaces, which are no tokens; the normalizer Strip costs 30 us a KB."""
    others = [chr(code) for code in range(0x3001) if chr(code).isspace() and not 0x1b < code <= 0x20]
    return [_replace(r"\A \K\s++", ""), _replace(rf"{_either(others)}\s*+\z", "")]


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
    return [_replace(*p) for p in passes]


# ------------------------------------------------------------------------------------------------- words

# Character classes, to be put between brackets. Quotes and punctuation stand alone at both ends of a word.
_QUOTES = (
    r"'\"\u201d\u201c`\u2018\u00b4\u2019\u201a,\u201e\u00bb\u00ab\u300c\u300d\u300e\u300f\uff08\uff09"
    r"\u3014\u3015\u3010\u3011\u300a\u300b\u3008\u3009\u27e6\u27e7"
)
_PUNCT = (
    r"\u2026,:;!?\u00bf\u061f\u00a1()\[\]{}<>_#*&\u3002\uff1f\uff01\uff0c\u3001\uff1b\uff1a\uff5e\u00b7"
    r"\u0964\u060c\u06d4\u061b\u066a"
)
_ICON = (
    r"\u00a6\u00a9\u00ae\u00b0\u2100-\u214f\u2190-\u23ff\u2440-\u2580\u2582-\u27bf\u2900-\u2bff"
    r"\x{1f000}-\x{1faff}"
)
_BOTH = _PUNCT + _QUOTES + r"\u2014\u2013" + _ICON
_PREFIX = _BOTH + r"\u00a7%=\p{Sc}"
_ALPHA = r"\p{L}"
_LOWER = r"\p{Ll}\p{Lo}"
_UPPER = r"\p{Lu}\p{Lo}"
_HYPHEN = r"(?:-(?:--?)?|\u2013|\u2014(?:\u2014)?|~)"
_UNITS = (
    "km km\u00b2 km\u00b3 m m\u00b2 m\u00b3 dm cm cm\u00b2 cm\u00b3 mm ha \u00b5m nm yd in ft kg g mg "
    "\u00b5g t lb oz kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
)

# Emoticons made of characters that are tokens by themselves (those of letters only need no rule).
_EMOTICONS = r""":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} (-8 ;) ;-)
(; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :| :-| =| ]= =[ :1 :P :-P :p :-p :O :-O :o
:-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D 8-D >.< >.> <.< ._. ;_; <3 <33
<333 (^_^) (-_-) (._.) (>_<) (*_*) '' \")""".split()

_ABBREVIATIONS = """Mt Ak Ala Apr Ariz Ark Aug Calif Colo Conn Dec Del Feb Fla Ga Ia Id Ill Ind Jan Jul Jun
Kan Kans Ky La Mar Mass Mich Minn Miss N.C N.D N.H N.J N.M N.Y Neb Nebr Nev Nov Oct Okla Ore Pa S.C Sep Sept
Tenn Va Wash Wis a.m Adm Bros co Co Corp D.C Dr e.g E.g E.G Gen Gov i.e I.e I.E Inc Jr Ltd Md Messrs Mo Mont
Mr Mrs Ms p.m Ph.D Prof Rep Rev Sen St vs v.s""".split()


def _escape(text: str) -> str:
    return "".join("\\" + c if c in r".^$*+?{}[]\|()-" else c for c in text)


def _either(words: list[str] | str) -> str:
    words = words.split() if isinstance(words, str) else words
    return "(?:" + "|".join(_escape(w) for w in sorted(words, key=lambda w: (-len(w), w))) + ")"


def _titled(words: str) -> list[str]:
    return [w for word in words.split() for w in (word, word.title())]


_PRONOUN = "i you he she it we they"
_WH = "who what when where why how there"
_VERB = (
    "ca could do does did had may might must need ought sha should wo would ai are is was were have has dare"
)
_MODAL = "could might must should would"


_DROPPED_G = "doin goin nothin nuthin ol somethin lovin havin"


_REST = rf"(?:[{_BOTH}.]|(?<=['\u2019])[sS]){{0,50}}(?:\s|\z)"  # punctuation only up to the end of the word


# What may stand before a word that is looked up: not the inside of a longer one.
_START = r"(?:\s|\W[^\w\s\-.]|[^\w.]\.\.|[^\w.]\.\.\.)"

_WH_ALL = _WH + " that this these those"
_JOINED = {  # with an apostrophe between the parts
    "(?:ll|d)(?:['\u2019]ve)?": f"{_PRONOUN} {_WH_ALL}",
    "ve": f"i you we they {_WH_ALL} {_MODAL} not",
    "re": f"you we they {_WH} these those",
    "m": "i",
}
_RUN_TOGETHER = {
    "nt": _VERB,
    "not": "can",
    "na": "gon",
    "ta": "got",
    "all": "y",
    "m": "i",
    "s": f"he she {_WH} that this",
    "ll": f"you it they {_WH_ALL}",
    "d": f"i you he it we they {_WH_ALL}",
    "ve": f"i you we they {_MODAL}",
    "re": "you they",
}


def _contractions() -> list[normalizers.Normalizer]:
    """Cuts `don't` before the n and words such as `cannot` and `thats`, where they are whole words."""
    passes = [
        _replace(rf"n{q}t(?<={_START}{_either(_titled(_VERB))}n{q}t)(?={_REST}|{q}ve{_REST})", f" n{q}t")
        for q in ("'", "\u2019")
    ]
    tails: dict[str, list[str]] = {}
    for tail, words in _RUN_TOGETHER.items():
        for word in words.split():
            tails.setdefault(word, []).append(tail)
    by_letter: dict[str, list[str]] = {}
    for word, ends in tails.items():
        by_letter.setdefault(word[0], []).append(f"{word[1:]}(?=(?:{'|'.join(ends)})(?!\\w){_REST})")
    words = "|".join(f"[{c}{c.upper()}](?:{'|'.join(rests)})" for c, rests in by_letter.items())
    return [*passes, _replace(rf"""[ "(](?:{words}|[cC]'m(?=on{_REST})|(?:US|C|A)\$(?=\S))\K""", " ")]


def _boundaries() -> normalizers.Normalizer:
    """Inserts a space between tokens that touch: around punctuation, and between a number and its unit."""
    before = rf"(?<!\w)(?<=\s|\s[{_PREFIX}.]|\s[{_PREFIX}.]{{2}}|\s[{_PREFIX}.]{{3}}|\s[{_PREFIX}.]{{4}})"
    abbreviation = (
        rf"(?<!(?<!\w)(?<!\w[^\w\s\-])(?<!\s-)(?:{_either(_ABBREVIATIONS)}|[a-z\u00e4\u00f6\u00fc]))"
    )
    host = rf"(?!-[\w-]{{1,60}}(?:\.[\w-]{{1,60}})?\.[a-z]{{2,63}}(?!\w){_REST})"
    link = rf"(?:{_HYPHEN}|[:<>=/])"
    smile = r"(?=[:;=<]\S|[(\[>\]][^\w\s]|\([8o]|\)[:\-]|''|\\\"|8-?\)|\._)"  # what an emoticon starts with
    # Zero-width, before the punctuation at hand. Not at \G: there a boundary has just been set.
    here = [
        r"(?<=\w)(?=[,;:!?)\"]\s)",  # the usual case, first
        rf"(?=[{_BOTH}]{_REST})(?!(?<={_either(_titled(_DROPPED_G))})['\u2019])",
        rf"(?=['\u2019][sS]{_REST})",
        r"(?=\.\.)(?<!\.)",
        rf"(?=\.(?!\.){_REST})(?:(?<=[0-9{_LOWER}%\u00b2+\-{_PUNCT}{_QUOTES}])|(?<=[{_UPPER}]{{2}}))"
        rf"{abbreviation}",
        rf"(?<=[0-9])(?=[%+\p{{Sc}}]{_REST}|[+\-*^][0-9-])",
        rf"(?=[\u2026{_ICON}])",
        rf"(?={link}[{_ALPHA}])(?:(?<=[{_ALPHA}])|(?<=[0-9])(?!--)){host}",
        rf"(?<=[{_ALPHA}])(?=,[{_ALPHA}])",
        rf"(?<=[{_LOWER}{_QUOTES}])(?=\.[{_UPPER}{_QUOTES}]){abbreviation}",
        rf"(?<=n't|'ll|'d)(?='ve{_REST})",
        *(
            rf"(?=['\u2019]{tail}{_REST})(?<={_START}{_either(_titled(heads))})"
            for tail, heads in _JOINED.items()
        ),
    ]
    # These consume a token; the boundary is behind it.
    behind = [
        rf"{smile}(?:8(?<![\w.,:]8)-?\)|{_either(_EMOTICONS)})(?={_REST})",
        rf"{before}['\u2019](?:em|nuff|ll|[Cc]ause|[Cc][ou]s|[Cc][ou]z|bout|re|d|s|S)(?={_REST})",
        rf"{before}''|{before}(?:1[0-2]|[1-9])(?=[ap](?:m|\.m\.){_REST})",
        rf"(?:\.\.++|[\u2026{_ICON}])",
        rf"{before}(?:[{_PREFIX}]|\+(?![0-9]))",
        rf"{host}(?:(?<=[{_ALPHA}])|(?<=[0-9])(?!--)){link}(?=[{_ALPHA}])",
        rf"(?<=[{_ALPHA}]),(?=[{_ALPHA}])",
        rf"(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])",
        r"(?<=[0-9])[+\-*^](?=[0-9-])",
        rf"[0-9](?={_either(_UNITS)}{_REST})",
    ]
    at = rf"(?=[{_PREFIX}.+\-~^/0-9])"
    return _replace(rf"{at}(?:(?!\G)(?<=\S)(?:{'|'.join(here)})|(?:{'|'.join(behind)})\K)", " ")


# -------------------------------------------------------------------------------------------------- case

_END = r"(?:\s|\z)"


def _case_of_tokens() -> list[normalizers.Normalizer]:
    """fastai 1: xxup before a token without a lower-case letter, xxmaj before a capitalised one."""
    return [
        _replace(rf" \K(?=[^\s\p{{Ll}}]{{2}}[^\s\p{{Ll}}]*+{_END})(?=[^\s\p{{Lu}}]*+\p{{Lu}})", "xxup "),
        _replace(rf" \K(?=\p{{Lu}}[^\s\p{{Lu}}\p{{Ll}}]*+\p{{Ll}}[^\s\p{{Lu}}]*+{_END})", "xxmaj "),
        normalizers.Lowercase(),
    ]


def _case_of_words() -> list[normalizers.Normalizer]:
    """fastai 2: the same for what stands between white space, before words are split; A to Z only."""
    return [
        _replace(rf" \K(?=[A-Z][^a-z\s]++{_END})", "xxup "),
        _replace(rf" \K(?=[A-Z][^A-Za-z\s]*+[a-z][^A-Z\s]*+{_END})", "xxmaj "),
        normalizers.Lowercase(),
    ]


# ---------------------------------------------------------------------------------------------- pipeline


def clean(rules: str) -> list[normalizers.Normalizer]:
    """Clean-up and repeats. The space in front keeps insertions off offset 0, where they would panic."""
    return [normalizers.Prepend(" "), *_clean_up(rules), *_repeats(rules)]


def case(rules: str) -> list[normalizers.Normalizer]:
    """Marks for capitals, and lower case."""
    return _case_of_tokens() if rules == "fastai1" else _case_of_words()


def normalizer(rules: str) -> normalizers.Normalizer:
    """The whole chain for words: afterwards spaces separate the tokens."""
    words = [*_contractions(), _boundaries()]
    if rules == "fastai1":
        return normalizers.Sequence([*clean(rules), *_spaces(rules), *words, *case(rules)])
    return normalizers.Sequence(
        [*clean(rules), *_strip(), *_spaces(rules), *case(rules), *words]
    )


def surface(token: str, rules: str) -> str:
    """A token as fastai writes it: in white space fastai 1 keeps the spaces."""
    return token.replace("\u2581", " ") if rules == "fastai1" and token[0].isspace() else token


def padding(length: int, vocab_size: int) -> list[str]:
    """Names of the entries that fill a vocabulary up to a multiple of 8; as fastai 1, none at the limit."""
    return [f"xxfake{i}" for i in range(1, -length % 8 + 1)] if length < vocab_size else []


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cuts at spaces."""
    return pre_tokenizers.CharDelimiterSplit(" ")
