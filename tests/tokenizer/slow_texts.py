"""Searches for texts that the tokenizer reads slowly: random grammars of repeats, alternations and sequences.

A backtracking search may take quadratic time for a text that nobody thought of, and one such text stops a training.
`python -m tests.tokenizer.slow_texts --count 1000` prints what it finds.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass

from ulmfit.tokenizer.tokenizer import Tokenizer

ATOMS = [
    *"aAbBiIzZ09 .,;:!?'\"()[]{}<>-_/\\#&%$*+=~^|@`\n\t\r\x00\x1c\x1f\x7f",
    # White space of other kinds, joiners, marks, bidi marks.
    *"\u00a0\u0085\u2028\u3000\u200b\u200c\u200d\ufe0f\u0300\u0301\u200f\u202e\u2066",
    # Letters whose case is odd, and letters without case.
    *"\u00df\u0130\u0131\u01c5\u03a3\ufb01\u4e2d\u3042\u0e01\u0e34\uac00\u0915\u094d\u0627\u064b\u05d0\u1200\u1000\u1039",
    # Emoji and symbols.
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3fd", "\U0001f1e9\U0001f1ea"),
    *"\u00b0\u00a9\u2026\u2014\u2013\u2019\u201c\u201d\u00ab\u00bb\u2581\u0660\u0964\u066a\u00b2\u00b5\u20ac",
    # Noncharacters and private use.
    *"\ufdd0\ufdd1\ufdd5\ufdef\ufffe\uffff\ue000\U0010ffff",
    # What the rules look for.
    *"n't N'T 's 'll 've 'd've can cannot im wo ca that could doin 'em 'cause '' :) :-( 8) (8 ^_^ (-_-) >.< :'( <3".split(),
    *'<br /> &lt; &amp; amp; #39; quot; nbsp; &# &#150; <unk> \\n \\" ... .. -- ---'.split(),
    *"xxmaj xxup xxrep xxwrep xxbos xxfld xxunk Mr. e.g. U.S. a.m. St. 10am 5km kmh 1-2 a-b a.b a,b A.B".split(),
    *(" @-@ ", " @,@ ", " @.@ ", "xxrep 4 a", ".com", "www.a.com", "http://a.b/c", "no ", "No ", "NO ", "ha-"),
]
# These took quadratic time in some version, or nearly so.
KNOWN = [
    "\n",
    "\n ",
    "\x85",
    "\t\n",
    " ",
    "\u3000",
    "\ufdd1",
    "\ufdd5 a ",
    ":'(",
    ">.<",
    "aB",
    "no ",
    "a-",
    "&#",
    "A.",
    "'",
]
NORMAL = (
    "The film was grand, and I didn't like the 2nd half (it's long) -- but Mr. Smith's acting: WOW!! <br />So 10km. "
)


@dataclass(frozen=True)
class Slow:
    """A text that took longer than it should.

    Attributes:
        seed: of its grammar.
        times: how many times as long a byte took as one of normal text.
        growth: how many times as long 8 times the text took.
    """

    seed: int
    times: float
    growth: float
    grammar: str


def text_of(seed: int, size: int) -> tuple[str, str]:
    """A text of `size` characters, and its grammar. A longer text of the same seed begins with the shorter one."""
    grammar = _grammar(random.Random(seed), 0)
    draw = random.Random(seed + 1)
    parts: list[str] = []
    length = 0
    while length < size:
        parts.append(_written(grammar, draw, 5000))
        length += len(parts[-1])
    return "".join(parts)[:size], repr(grammar)


def _grammar(draw: random.Random, depth: int) -> str | tuple:
    """An atom, ("sequence" or "either", grammars) or ("repeat", grammar, count)."""
    kind = draw.random()
    if depth >= 3 or (kind < 0.35 and depth):
        return draw.choice(ATOMS)
    if kind < 0.6:
        return "sequence", [_grammar(draw, depth + 1) for _ in range(draw.randint(2, 4))]
    if kind < 0.85:
        return "repeat", _grammar(draw, depth + 1), draw.choice([2, 3, 4, 5, 7, 9, 10, 20, 50, 100, 300, 1000, 5000])
    return "either", [_grammar(draw, depth + 1) for _ in range(draw.randint(2, 4))]


def _written(grammar: str | tuple, draw: random.Random, longest: int) -> str:
    if isinstance(grammar, str):
        return grammar
    if grammar[0] == "sequence":
        return "".join(_written(part, draw, longest) for part in grammar[1])[:longest]
    if grammar[0] == "either":
        return _written(draw.choice(grammar[1]), draw, longest)
    parts: list[str] = []
    length = 0
    for _ in range(grammar[2]):
        parts.append(_written(grammar[1], draw, longest))
        length += len(parts[-1])
        if length >= longest:
            break
    return "".join(parts)[:longest]


def seconds(tokenizer: Tokenizer, text: str, tries: int = 1) -> float:
    """Time of the processor, so that other programs do not count; the least of some tries."""
    best = float("inf")
    for _ in range(tries):
        begun = time.process_time()
        tokenizer.encode(text)
        best = min(best, time.process_time() - begun)
    return best


def growth(tokenizer: Tokenizer, short: str, long: str) -> float:
    """How many times as long the longer text takes. The least of three tries each, as caches and clocks vary."""
    return seconds(tokenizer, long, 3) / max(seconds(tokenizer, short, 3), 1e-3)


def search(tokenizer: Tokenizer, seeds: range, *, size: int, suspicious: float = 5, most: float = 24) -> list[Slow]:
    """Texts for which 8 times the text takes more than `most` times the time.

    Only those are measured twice that take `suspicious` times the time of normal text.
    """
    normal = seconds(tokenizer, NORMAL * (size // len(NORMAL)), 3) / size
    found = []
    for seed in seeds:
        text, grammar = text_of(seed, size)
        times = seconds(tokenizer, text) / len(text.encode()) / normal
        if times > suspicious:
            grown = growth(tokenizer, text[: size // 8], text)
            if grown > most:
                found.append(Slow(seed, times, grown, grammar))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=100_000)
    options = parser.parse_args()
    for rules in ("fastai1", "fastai2"):
        for kind in (None, "bpe"):
            tokenizer = Tokenizer.train([NORMAL] * 9, rules=rules, min_freq=1, subword=kind, vocab_size=300)
            found = search(tokenizer, range(options.first, options.first + options.count), size=options.size)
            print(f"{rules} {kind or 'words'}: {len(found)} of {options.count} texts are slow", flush=True)
            for slow in found:
                print(f"  {slow}", flush=True)


if __name__ == "__main__":
    main()
