"""Token ids by distinct chunks: the strings between spaces repeat, so each is tokenised once and its ids are gathered.

tokenizer.json stays the definition: ids are those of the pipeline, for any text. That rests on what the pipeline of
fastai 1 looks at: every pass stops at white space, but for those named here. A text in which one of them could see
something goes the whole way through the pipeline, at the least doubt:

* `<br />`, and line breaks with the spaces behind them: both are cut out as chunks of their own;
* ` @-@ ` and its kind, entities and backslashes (which become spaces or other characters), tabs and no-break spaces beside
  spaces and line breaks, white space of other kinds, control characters and U+2581: such texts go the whole way
  (`_DOUBTFUL`);
* repeated words. A unit is a word with the characters behind it, up to the next word, and four equal ones in a row are
  written together. Where they reach over a space, the second to the fourth are three equal chunks, with no other word
  between them. Which characters make a word, the engine of the pipeline and Python may see differently: so a chunk
  without a plain letter or digit counts both ways;
* units that repeat within a chunk: what is behind the chunk decides on the last one, so such texts go the whole way;
* four equal characters in a row become words of their own, xxrep and the character, which may be parts of such units.
  Two chunks of this kind, or one and two equal chunks, within a few words are a doubt;
* the end of the text, which unlike a space ends no unit: the last chunk must be plain and of few words.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

from ulmfit.tokenizer import rules as text_rules

MOST_TOGETHER = 2  # threads; the token cache encodes two batches at a time
MOST_CHUNKS = 200_000  # known at a time, by thread: some 40 MB with their ids
MOST_IDS = 4_000_000  # of known chunks
MOST_CHARACTERS = 4_000_000  # of the texts that are cut at a time, which takes some 20 bytes a character
MOST_NEW = 0.5  # share of the characters that may be in new chunks; else the texts are not of words that repeat
FEWEST_TEXTS = 50  # fewer texts are not worth it
# With more, the pipeline itself is quicker: its threads use all cores, and the work here is that of two threads at most.
MOST_CORES = 4
_TOGETHER = 200  # chunks in one call of the pipeline, which costs as much as 0.1 KB of text each time
_NEAR = 5  # words, more than a match of repeated words needs

# RE2's syntax. Letters of any case, since the pipeline lowers them.
_ENTITIES = "|".join(
    ["quot", "amp", "nbsp", *(name for names in text_rules.ENTITIES.values() for name in names.split("|"))]
)
_DOUBTFUL = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\x{1680}\x{180e}\x{2000}-\x{200b}\x{2028}\x{2029}\x{202f}\x{205f}\x{2581}\x{3000}"
    r"\x{fdd0}-\x{fdef}\x{feff}\x{fff0}-\x{ffff}]"
    r"|(?:\n|/>) *[\t\r\x{a0}]|\x{a0}(?:[ \n<\x{a0}]|\z)|\\|@[.,-]@|<unk>|#[0-9]+;|(?:"
    + _ENTITIES
    + r");|(?i:xx(?:bos|eos|w?rep))"
)
_RUN = re.compile(r"(\S)\1\1\1")
_RUNS = re.compile(r"(\S)\1{3,}+.*(\S)\2\2\2", re.DOTALL)
_COPIES = re.compile(r"(?=(.{2,}?)\1\1)", re.DOTALL)
_MAYBE_WORD, _MAYBE_NO_WORD = re.compile(r"[^\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]"), re.compile("[^A-Za-z0-9_]")
_SURE_WORD = re.compile("[A-Za-z0-9_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")
_NOT_IN_WORDS = r"[\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]*"
_NO_WORD = re.compile(_NOT_IN_WORDS)
_FEW_WORDS = re.compile(rf"{_NOT_IN_WORDS}(?:\w++{_NOT_IN_WORDS}){{0,2}}", re.ASCII)
_PLAIN_END = re.compile(rf"{_NOT_IN_WORDS}(?:\w++{_NOT_IN_WORDS}){{0,3}}", re.ASCII)
_NONE, _WORD, _UNSURE = 0, 1, 2  # whether there is a word in a chunk


def usable(backend: tokenizers.Tokenizer) -> bool:
    """Whether this is a pipeline of words by the rules of fastai 1, of this version or of an earlier one."""
    if backend.normalizer is None or type(backend.model).__name__ != "WordLevel":
        return False
    passes = _passes(backend.normalizer)
    return passes == _passes(text_rules.normalizer("fastai1")) or _digest(passes) == _EARLIER


def _passes(normalizer: tokenizers.normalizers.Normalizer) -> list[object]:
    """The passes of a pipeline, but for the two that 0.2.0 did not have; both look at letters and characters only."""
    passes = json.loads(normalizer.__getstate__()).get("normalizers", [])
    return [each for each in passes if each.get("content") not in ("\ufffd", "\u03c2")]


# Of 0.2.0 and until November 2026: fewer entities and kinds of white space, and words do not end in combining marks.
_EARLIER = "70ee1469c6f84906"


def _digest(passes: list[object]) -> str:
    return hashlib.sha256(json.dumps(passes).encode()).hexdigest()[:16]


class Chunks:
    """The chunks of one pipeline seen so far, and their ids. For one thread at a time."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._marks = [backend.token_to_id(mark) for mark in ("xxbos", "xxeos")]
        self.num_whole = 0  # texts that went the whole way
        self._clear()

    def _clear(self) -> None:
        self._slots: dict[str, int] = {}
        self._ids = np.zeros(1 << 16, np.int32)  # of all chunks, one behind another
        self._used = 0
        # By slot: where the ids begin, their number, the kind of chunk, whether it has a run of characters, whether it may
        # end a text, and whether its ids depend on what is around it, or are not known.
        self._starts, self._lengths = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._kinds = np.zeros(0, np.int8)
        self._runs, self._ends, self._unknown = np.zeros(0, bool), np.zeros(0, bool), np.zeros(0, bool)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text with xxbos, int32."""
        found: list[np.ndarray | None] = [None] * len(texts)
        part: list[int] = []
        characters = 0
        for place, text in enumerate(texts):
            if len(text) > MOST_CHARACTERS:
                continue
            if characters + len(text) > MOST_CHARACTERS:
                self._gather(part, texts, found)
                part, characters = [], 0
            part.append(place)
            characters += len(text)
        self._gather(part, texts, found)
        late = [place for place, ids in enumerate(found) if ids is None]
        self.num_whole += len(late)
        whole = iter(self._backend.encode_batch_fast([texts[place] for place in late]))
        return [np.array(next(whole).ids, np.int32) if ids is None else ids for ids in found]

    def _gather(self, places: list[int], texts: list[str], found: list[np.ndarray | None]) -> None:
        """Fill in the ids of the texts at these places, but for those that must go the whole way."""
        array = pa.array([texts[place] for place in places], pa.large_string())
        quick = np.flatnonzero(~pc.match_substring_regex(array, _DOUBTFUL).to_numpy(zero_copy_only=False))
        if not len(quick):
            return
        array = array.take(pa.array(quick))
        array = pc.replace_substring(array, "<br />", "\n")
        # A run of line breaks is a chunk, whatever spaces are in it: the rules make one token of each break.
        array = pc.replace_substring_regex(array, "\n +", "\n")
        array = pc.replace_substring_regex(array, "\n+", " \\0 ")
        lists = pc.split_pattern(array, " ")
        encoded = lists.flatten().dictionary_encode()
        slots = self._slots_of(encoded.dictionary.to_pylist(), sum(len(texts[places[at]]) for at in quick.tolist()))
        if slots is None:
            return
        slots = slots[encoded.indices.to_numpy(zero_copy_only=False)]
        edges = lists.offsets.to_numpy().astype(np.int64)
        doubts = self._doubts(slots, edges)

        lengths = self._lengths[slots]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        ids = self._ids[np.arange(ends[-1]) + np.repeat(self._starts[slots] - ends[:-1], lengths)]
        bounds = ends[edges].tolist()
        bos = np.array(self._marks[:1], np.int32)
        for number, (at, doubtful) in enumerate(zip(quick.tolist(), doubts.tolist(), strict=True)):
            if not doubtful:
                found[places[at]] = np.concatenate([bos, ids[bounds[number] : bounds[number + 1]]])

    def _doubts(self, slots: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Whether each text must go the whole way, bool [texts].

        Args:
            slots: of the chunks of all texts.
            edges: [texts + 1], where each text's chunks begin and end.
        """
        text = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        kinds = self._kinds[slots]
        # The number of a chunk's place among sure words; texts are far from each other.
        place = np.cumsum(kinds == _WORD) + text * (_NEAR + 1)
        words = np.flatnonzero(kinds == _WORD)
        same = slots[words[1:]] == slots[words[:-1]]
        pairs, triples = [place[words[1:][same]]], [words[2:][same[1:] & same[:-1]]]
        unsure = np.flatnonzero(kinds == _UNSURE)
        if len(unsure):  # between two sure words, the same chunk twice or three times, whatever is between
            order = unsure[np.lexsort((unsure, slots[unsure], place[unsure]))]
            equal = (slots[order[1:]] == slots[order[:-1]]) & (place[order[1:]] == place[order[:-1]])
            pairs.append(place[order[1:][equal]])
            triples.append(order[2:][equal[1:] & equal[:-1]])
        runs = np.flatnonzero(self._runs[slots])
        near = np.diff(place[runs]) <= _NEAR
        doubts = [*triples, runs[1:][near], np.flatnonzero(self._unknown[slots])]
        paired = np.sort(np.concatenate(pairs))
        if len(paired) and len(runs):
            first = np.searchsorted(paired, place[runs] - _NEAR)
            doubts.append(runs[np.append(paired, 2**62)[first] <= place[runs] + _NEAR])
        result = np.zeros(len(edges) - 1, bool)
        result[text[np.concatenate(doubts)]] = True
        return result | ~self._ends[slots[edges[1:] - 1]]

    def _slots_of(self, chunks: list[str], characters: int) -> np.ndarray | None:
        """The slots of distinct chunks, int64; None if too much of the texts is new."""
        new = [chunk for chunk in chunks if chunk not in self._slots]
        if sum(map(len, new)) > MOST_NEW * characters:
            return None
        if len(self._slots) + len(new) > MOST_CHUNKS or self._used > MOST_IDS:
            self._clear()
            new = chunks
        for start in range(0, len(new), 50 * _TOGETHER):
            self._learn(new[start : start + 50 * _TOGETHER])
        return np.fromiter(map(self._slots.__getitem__, chunks), np.int64, len(chunks))

    def _learn(self, chunks: list[str]) -> None:
        """Tokenise new chunks, several in one call, between marks. Two marks in turn, as four equal words are a repeat."""
        groups = [chunks[start : start + _TOGETHER] for start in range(0, len(chunks), _TOGETHER)]
        joined = [
            " ".join([f"{('xxbos', 'xxeos')[number % 2]} {chunk}" for number, chunk in enumerate([*group, ""])])
            for group in groups
        ]
        pieces, lengths, unknown = [], [], []
        for group, encoding in zip(groups, self._backend.encode_batch_fast(joined), strict=True):
            ids = np.array(encoding.ids, np.int32)[1:]  # the first xxbos is that of every text
            places = np.flatnonzero((ids == self._marks[0]) | (ids == self._marks[1]))
            known = len(places) == len(group) + 1
            lengths.append(np.diff(places) - 1 if known else np.zeros(len(group), np.int64))
            unknown.append(np.full(len(group), not known))
            pieces.append(np.delete(ids, places) if known else ids[:0])
        ids, sizes = np.concatenate(pieces), np.concatenate(lengths)
        while self._used + len(ids) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._used : self._used + len(ids)] = ids
        self._starts = np.append(self._starts, self._used + np.cumsum(sizes) - sizes)
        self._lengths = np.append(self._lengths, sizes)
        self._used += len(ids)
        self._slots.update(zip(chunks, range(len(self._slots), len(self._slots) + len(chunks)), strict=True))
        self._kinds = np.append(self._kinds, np.array(list(map(_kind, chunks)), np.int8))
        runs = np.array([_RUN.search(chunk) is not None for chunk in chunks])
        ends = np.array([_PLAIN_END.fullmatch(chunk) is not None for chunk in chunks])
        self._runs, self._ends = np.append(self._runs, runs), np.append(self._ends, ends & ~runs)
        repeats = np.array(list(map(_may_repeat, chunks)))
        self._unknown = np.append(self._unknown, np.concatenate(unknown) | repeats)


def _may_repeat(chunk: str) -> bool:
    """Whether units may repeat within a chunk. What is behind it then decides whether the last one is another repeat."""
    if len(chunk) > 200 or _RUNS.search(chunk):
        return True
    if _FEW_WORDS.fullmatch(chunk):
        return False
    return any(_MAYBE_WORD.search(copy[1]) and _MAYBE_NO_WORD.search(copy[1]) for copy in _COPIES.finditer(chunk))


def _kind(chunk: str) -> int:
    return _WORD if _SURE_WORD.search(chunk) else _NONE if _NO_WORD.fullmatch(chunk) else _UNSURE


class ChunkPool:
    """Up to `MOST_TOGETHER` `Chunks` of a pipeline, for as many threads at a time."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._free: list[Chunks] = []
        self._left = MOST_TOGETHER

    def encode(self, texts: list[str]) -> list[np.ndarray] | None:
        """As `Chunks.encode`; None if all chunks are in use by other threads, which then need the cores anyway."""
        with self._lock:
            if not self._free and not self._left:
                return None
            self._left -= not self._free
            chunks = self._free.pop() if self._free else Chunks(self._backend)
        try:
            return chunks.encode(texts)
        finally:
            with self._lock:
                self._free.append(chunks)
