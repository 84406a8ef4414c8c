"""An explanation on a terminal and in HTML. Whatever a text holds, it can neither command a terminal nor be markup."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence

from ulmfit.errors import one_line
from ulmfit.excerpts import cut
from ulmfit.explanation import Explanation, Word

FADED = 0.05  # words below this share of the strongest are not coloured
_STEPS = (0.2, 0.5)  # shares from which a colour is stronger
_FOR, _AGAINST = (153, 117, 75), (223, 216, 209)  # of the 256 colours, weak to strong: blues, and oranges
_BLACK, _END = 16, "\x1b[0m"
_TABLE = 10  # words in the table
_SPACE = re.compile(r"\r\n?|[^\S\n]")
_KEPT = "\n\u200c\u200d"  # line breaks, and what joins letters and parts of an emoji


def visible(text: str) -> str:
    """A text without characters that command a terminal, hide or reorder what follows; they are shown as escapes."""
    text = _SPACE.sub(lambda match: "\n" if match[0][0] == "\r" else " ", text)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in _KEPT else repr(sign)[1:-1] for sign in text)


def step(word: Word, strongest: float) -> int:
    """How strongly a word is coloured: 0 not at all, 1 to 3 for the class, -1 to -3 against it."""
    share = abs(word.contribution) / strongest if strongest else 0.0
    if share < FADED:
        return 0
    size = 1 + sum(share >= limit for limit in _STEPS)
    return size if word.contribution > 0 else -size


def lines(found: Explanation, *, colour: bool, named: Callable[[Word], str] | None = None) -> list[str]:
    """An explanation for a terminal: the class, the text, and a table of the words that decided most.

    Args:
        colour: of words; without, the text is plain.
        named: how a word is called; then the text itself is not shown, for it may be private.
    """
    strongest = max((abs(word.contribution) for word in found.words), default=0.0)
    shown = [summary(found)]
    if named is None:
        text = "".join(
            visible(piece) if word is None or not colour else _painted(visible(piece), step(word, strongest))
            for piece, word in found.pieces()
        )
        shown += ["", *text.strip("\n").split("\n"), ""]
    rows = [
        (cut(visible(word.text).replace("\n", " ")) if named is None else named(word), word)
        for word in found.strongest(_TABLE)
    ]
    width = max([*(len(name) for name, _ in rows), len("word")])
    shown.append(f"{'word':{width}}  contribution  {one_line(found.label)} without it")
    for name, word in rows:
        tried = "" if word.without is None else f"  {found.probability:.3f} -> {word.without:.3f}"
        value = f"{word.contribution:+12.3f}"
        painted = _painted(f"{name:{width}}", step(word, strongest)) if colour else f"{name:{width}}"
        shown.append(f"{painted}  {value}{tried}")
    return shown


def summary(found: Explanation, what: str = "") -> str:
    """The class that is explained, `what` the number is, its probability, and the prediction where it is another."""
    other = f" (predicted: {one_line(found.predicted) or 'no label'})" if found.predicted != found.label else ""
    return f"{one_line(found.label)}{what} {found.probability:.3f}{other}"


def _painted(text: str, size: int) -> str:
    if not size:
        return text
    background = (_FOR if size > 0 else _AGAINST)[abs(size) - 1]
    parts = [f"\x1b[38;5;{_BLACK};48;5;{background}m{part}{_END}" if part else "" for part in text.split("\n")]
    return "\n".join(parts)


# HTML. The classes are those of STYLE; a word for the class is underlined, one against it has a dotted line, so that
# nobody has to tell the colours apart.

STYLE = """
.words{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}
.words mark{color:inherit;border-radius:.2em;padding:.1em .12em;background:none}
.words .f1{background:rgb(var(--for)/.14)}.words .f2{background:rgb(var(--for)/.28)}
.words .f3{background:rgb(var(--for)/.45)}.words .a1{background:rgb(var(--against)/.14)}
.words .a2{background:rgb(var(--against)/.28)}.words .a3{background:rgb(var(--against)/.45)}
.words .f2,.words .f3{text-decoration:underline 2px;text-underline-offset:.25em}
.words .a2,.words .a3{text-decoration:underline dotted 2px;text-underline-offset:.25em}
"""
COLOURS = "--for:40 120 220;--against:230 120 20"  # red, green and blue of the two, for STYLE


def escaped(text: str) -> str:
    """A text of the user's for HTML, also inside of quoted attributes."""
    return html.escape(visible(text), quote=True)


def marked(found: Explanation, words: slice = slice(None)) -> str:
    """The text as HTML, each word marked by what it adds.

    Args:
        words: those to show; what is left out at either end is told by an ellipsis.
    """
    strongest = max((abs(word.contribution) for word in found.words), default=0.0)
    places = range(len(found.words))[words]
    first, last = (found.words[places[0]].start, found.words[places[-1]].end) if places else (0, len(found.text))
    parts, place = ["\u2026 " if places and places[0] > 0 else ""], 0
    for piece, word in found.pieces():
        begun, place = place, word.end if word else place
        if word is None:
            if not places or (begun >= first and begun < last) or (not begun and not parts[0]):
                parts.append(escaped(piece))
            continue
        if first <= word.start < last:
            size = step(word, strongest)
            kind = f"{'f' if size > 0 else 'a'}{abs(size)}"
            shown = escaped(piece)
            parts.append(f'<mark class="{kind}" title="{word.contribution:+.3f}">{shown}</mark>' if size else shown)
    more = " \u2026" if places and places[-1] < len(found.words) - 1 else ""
    return "".join(parts).strip("\n") + more


def fragment(found: Explanation) -> str:
    """An explanation for a page that has other things too, such as a notebook."""
    return (
        f'<div style="{COLOURS};max-width:60em"><style>{STYLE}</style><p><strong>{escaped(summary(found))}</strong></p>'
        f'<p class="words" dir="auto">{marked(found)}</p></div>'
    )


def page(explanations: Sequence[Explanation]) -> str:
    """Explanations as a page of HTML that loads nothing and runs no script."""
    legend = (
        '<p class="legend">Words that speak for the class are blue and underlined, words against it orange and dotted. A '
        "contribution is what a word adds to the log-odds of the class, in nats. For the strongest words the probability "
        "of the text without the word is told too: where the two disagree, believe the probabilities.</p>"
    )
    style = ".legend{color:var(--muted);max-width:45rem}"
    return document("Explanations", legend + "".join(_section(found) for found in explanations), style)


def _section(found: Explanation) -> str:
    rows = "".join(_rows(found))
    return (
        f'<section><h2>{escaped(summary(found, ", probability"))}</h2><p class="words" dir="auto">{marked(found)}</p>'
        '<div class="wide" tabindex="0" role="region" aria-label="Words that decided most"><table>'
        "<caption>The words that decided most</caption>"
        '<thead><tr><th scope="col">word</th><th scope="col">contribution</th>'
        f'<th scope="col">{escaped(found.label)} without it</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _rows(found: Explanation) -> Iterator[str]:
    for word in found.strongest(_TABLE):
        tried = "" if word.without is None else f"{found.probability:.3f} \u2192 {word.without:.3f}"
        yield (
            f'<tr><th scope="row" dir="auto">{escaped(cut(word.text))}</th><td>{word.contribution:+.3f}</td><td>{tried}</td></tr>'
        )


_BASE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b2430;--muted:#55606e;--line:#d8dee6;--link:#0b57a8;--card:#f6f8fa;
--for:40 120 220;--against:230 120 20}
@media(prefers-color-scheme:dark){:root{--back:#11161d;--text:#e7ebf0;--muted:#a4afbc;--line:#303a46;--link:#83bcff;
--card:#19202a;--for:80 150 255;--against:255 150 60}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .5rem}h3{font-size:1.05rem;margin:1.25rem 0 .25rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{text-align:left;color:var(--muted);padding:.25rem 0}
th,td{padding:.3rem .7rem .3rem 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top;
white-space:nowrap;overflow-wrap:normal}
th{white-space:normal}th[scope=row]{overflow-wrap:break-word;max-width:18rem}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
a{color:var(--link)}:focus-visible{outline:3px solid var(--link);outline-offset:2px}
"""
# Nothing can be loaded and no script run, even if a text were taken for markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str, style: str = "") -> str:
    """A page of HTML around `body`, which holds no text of the user's but by `escaped`."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title><style>{_BASE}{STYLE}{style}</style></head>'
        f"<body><main><h1>{escaped(title)}</h1>{body}</main></body></html>\n"
    )
