"""Word boundaries: spaCy's English tokenizer as passes of a Rust normalizer (see rules.py for how passes work)."""

from __future__ import annotations

from tokenizers import Regex, normalizers


def replace(pattern: str, content: str) -> normalizers.Normalizer:
    """A pass that replaces every match by `content`."""
    return normalizers.Replace(Regex(pattern), content)


# Character classes, without brackets. Quotes and punctuation at both ends of a word are separate tokens.
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
_ALPHA = r"\p{L}\p{M}"  # words of many scripts end in a combining mark, as do those of decomposed Unicode
_LOWER = r"\p{Ll}\p{Lo}\p{M}"
_UPPER = r"\p{Lu}\p{Lo}"
_HYPHEN = r"(?:-(?:--?)?|\u2013|\u2014(?:\u2014)?|~)"
_UNITS = (
    "km km\u00b2 km\u00b3 m m\u00b2 m\u00b3 dm cm cm\u00b2 cm\u00b3 mm ha \u00b5m nm yd in ft kg g mg "
    "\u00b5g t lb oz kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
)

# Emoticons with characters that would be separate tokens (those of letters only need no rule).
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


def either(words: list[str] | str) -> str:
    """A pattern that matches one of the words, the longest first."""
    words = words.split() if isinstance(words, str) else words
    return "(?:" + "|".join(_escape(w) for w in sorted(words, key=lambda w: (-len(w), w))) + ")"


def _titled(words: str) -> list[str]:
    return [w for word in words.split() for w in (word, word.title())]


_PRONOUN = "i you he she it we they"
_WH = "who what when where why how there"
_VERB = "ca could do does did had may might must need ought sha should wo would ai are is was were have has dare"
_MODAL = "could might must should would"
_DROPPED_G = "doin goin nothin nuthin ol somethin lovin havin"


_REST = rf"(?:[{_BOTH}.]|(?<=['\u2019])[sS]){{0,50}}(?:\s|\z)"  # punctuation only up to the end of the word


# What may precede a word in a table, so that it is not the inside of a longer word.
_START = r"(?:\s|\W[^\w\s\-.]|[^\w.]\.\.|[^\w.]\.\.\.)"

_WH_ALL = _WH + " that this these those"
_JOINED = {  # parts with an apostrophe between them
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


def contractions() -> list[normalizers.Normalizer]:
    """Splits `don't` before the n, and whole words such as `cannot` and `thats`."""
    passes = [
        replace(rf"n{q}t(?<={_START}{either(_titled(_VERB))}n{q}t)(?={_REST}|{q}ve{_REST})", f" n{q}t")
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
    return [*passes, replace(rf"""[ "(](?:{words}|[cC]'m(?=on{_REST})|(?:US|C|A)\$(?=\S))\K""", " ")]


def boundaries() -> normalizers.Normalizer:
    """Inserts a space between adjacent tokens: around punctuation, and between a number and its unit."""
    before = rf"(?<!\w)(?<=\s|\s[{_PREFIX}.]|\s[{_PREFIX}.]{{2}}|\s[{_PREFIX}.]{{3}}|\s[{_PREFIX}.]{{4}})"
    abbreviation = rf"(?<!(?<!\w)(?<!\w[^\w\s\-])(?<!\s-)(?:{either(_ABBREVIATIONS)}|[a-z\u00e4\u00f6\u00fc]))"
    host = rf"(?!-[\w-]{{1,60}}(?:\.[\w-]{{1,60}})?\.[a-z]{{2,63}}(?!\w){_REST})"
    link = rf"(?:{_HYPHEN}|[:<>=/])"
    smile = r"(?=[:;=<]\S|[(\[>\]][^\w\s]|\([8o]|\)[:\-]|''|\\\"|8-?\)|\._)"  # the start of an emoticon
    # Zero-width matches before punctuation. Not at \G, because a boundary was just inserted there.
    here = [
        r"(?<=\w)(?=[,;:!?)\"]\s)",  # the usual case, first
        rf"(?=[{_BOTH}]{_REST})(?!(?<={either(_titled(_DROPPED_G))})['\u2019])",
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
        *(rf"(?=['\u2019]{tail}{_REST})(?<={_START}{either(_titled(heads))})" for tail, heads in _JOINED.items()),
    ]
    # These match a token; the boundary is after it.
    behind = [
        rf"{smile}(?:8(?<![\w.,:]8)-?\)|{either(_EMOTICONS)})(?={_REST})",
        rf"{before}['\u2019](?:em|nuff|ll|[Cc]ause|[Cc][ou]s|[Cc][ou]z|bout|re|d|s|S)(?={_REST})",
        rf"{before}''|{before}(?:1[0-2]|[1-9])(?=[ap](?:m|\.m\.){_REST})",
        rf"(?:\.\.++|[\u2026{_ICON}])",
        rf"{before}(?:[{_PREFIX}]|\+(?![0-9]))",
        rf"{host}(?:(?<=[{_ALPHA}])|(?<=[0-9])(?!--)){link}(?=[{_ALPHA}])",
        rf"(?<=[{_ALPHA}]),(?=[{_ALPHA}])",
        rf"(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])",
        r"(?<=[0-9])[+\-*^](?=[0-9-])",
        rf"[0-9](?={either(_UNITS)}{_REST})",
    ]
    at = rf"(?=[{_PREFIX}.+\-~^/0-9])"
    return replace(rf"{at}(?:(?!\G)(?<=\S)(?:{'|'.join(here)})|(?:{'|'.join(behind)})\K)", " ")
