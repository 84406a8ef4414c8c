"""Text to token ids and back: a `tokenizers` pipeline, saved as one tokenizer.json."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, processors, trainers

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.hub import HubModel, local_folder
from ulmfit.paths import as_path
from ulmfit.shipped import shipped_folder
from ulmfit.texts import is_table, items_of, texts_of
from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer import subword as text_subword
from ulmfit.tokenizer.detokenize import detokenize
from ulmfit.tokenizer.distinct_chunks import FEWEST_TEXTS, MOST_CORES, ChunkPool, usable
from ulmfit.tokenizer.spans import Span, words_of

_REPLACED = dict.fromkeys(map(ord, text_rules.MARKS), "\ufffd")
_SHORT = 10_000  # characters of a text that takes longer to hand to Rust's threads than to encode in this one
BATCH = 1000  # documents per call into Rust: enough to use all threads, few enough to limit memory


class Tokenizer(HubModel):
    """fastai's text rules, word splitting and vocabulary.

    Source: fastai 1.0, text/transform.py; fastai 2, text/core.py. Every document starts with xxbos. Ids 0 to 8 are
    the special tokens, in the order of the rules' version. The other words are sorted by (count descending, then
    lexicographic). Special tokens are ordinary words of the vocabulary: `xxfld 1` in a text becomes a field mark.

    Attributes:
        vocab: the tokens by id.
        fingerprint: SHA-256 of the file, 16 hex digits.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._json = backend.to_str(pretty=False)
        mended = text_rules.without_slow_passes(self._json)
        as_it_is = mended == self._json and backend.padding is None and backend.truncation is None
        self._backend = backend = backend if as_it_is else tokenizers.Tokenizer.from_str(mended)
        backend.no_padding()  # another program may have set them in the file; both would change the ids
        backend.no_truncation()
        ids = backend.get_vocab(with_added_tokens=True)
        specials = text_rules.SPECIALS["fastai1"]
        if sorted(ids.values()) != list(range(len(ids))) or not set(specials) <= ids.keys():
            raise UserError(
                "the tokenizer was not made by ulmfit (ids have gaps or a special token is missing); give one that was"
            )
        self.rules = "fastai1" if ids["xxmaj"] < ids["xxrep"] else "fastai2"
        self.vocab = [text_rules.surface(token, self.rules) for token in sorted(ids, key=ids.__getitem__)]
        self.subword: str | None = {"Unigram": "unigram", "BPE": "bpe"}.get(type(backend.model).__name__)
        self._keeps_spaces = self.subword is not None and text_subword.keeps_spaces(self._json)
        self.unk_id, self.pad_id, self.bos_id = ids["xxunk"], ids["xxpad"], ids["xxbos"]
        self.special_ids = frozenset(ids[token] for token in specials)
        self.fingerprint = hashlib.sha256(self.to_str().encode()).hexdigest()[:16]

    @cached_property
    def _pool(self) -> ChunkPool | None:
        """Encodes many texts faster on few cores, to the same ids; None where it cannot or would not."""
        few = len(os.sched_getaffinity(0)) <= MOST_CORES if hasattr(os, "sched_getaffinity") else False
        return ChunkPool(self._backend) if few and usable(self._backend) else None

    @cached_property
    def _is_english(self) -> bool:
        """Whether "the" is among the most frequent words."""
        return self.subword is None and "the" in self.vocab[:100]

    def __getstate__(self) -> dict[str, object]:
        """For copies and other processes: without the pool, which is of this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that must not be generated: xxunk, xxpad and the padding entries xxfake<i>."""
        fillers = (i for i, token in enumerate(self.vocab) if token.startswith("xxfake"))
        return frozenset((self.unk_id, self.pad_id, *fillers))

    @property
    def vocabulary_fingerprint(self) -> str:
        """A hash of the words in order, 16 hex digits. The order decides which embedding row belongs to a word."""
        return hashlib.sha256("\n".join(self.vocab).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.vocab)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        rules: str = "fastai1",
        vocab_size: int = 60_000,
        min_freq: int = 2,
        subword: str | None = None,
    ) -> Tokenizer:
        """Train the vocabulary on `texts`, which are read once.

        Words with fewer than `min_freq` occurrences are excluded. There are at most `vocab_size` entries, including
        special tokens. If fewer words are found, `xxfake<i>` pad the vocabulary to a multiple of 8.

        Raises:
            UserError: unknown `rules` or `subword`, `vocab_size` is too small for any word, or `texts` are no texts, e.g.
                a data frame.
        """
        _check_rules(rules)
        specials = text_rules.SPECIALS[rules]
        if vocab_size <= len(specials):
            raise UserError(f"a vocabulary of {vocab_size} has no room for words; use more than {len(specials)}")
        if subword not in (None, "unigram", "bpe"):
            raise UserError(f"unknown subword model {subword!r}; use unigram, bpe, or none for whole words")
        if subword:
            backend = text_subword.train(
                _encodable(texts), subword, rules=rules, vocab_size=vocab_size, min_freq=min_freq
            )
        else:
            backend = _word_pipeline(rules)
            words = _count_words(backend, _encodable(texts), min_freq=min_freq)
            backend.model = _word_level([*specials, *words], vocab_size)
        return cls(_with_xxbos(backend, rules))

    @classmethod
    def from_vocab(cls, vocab: Sequence[str], *, rules: str) -> Tokenizer:
        """A word tokenizer with an existing vocabulary (fastai's itos.pkl).

        Special tokens have the first ids, and the words follow in their order. Duplicates and padding entries
        (xxfake) are removed.

        Raises:
            UserError: unknown `rules`.
        """
        _check_rules(rules)
        words = [_as_written(word, rules) for word in vocab if word and " " not in word.strip()]
        backend = _word_pipeline(rules)
        backend.model = _word_level([*text_rules.SPECIALS[rules], *words], len(vocab) + 16)
        return cls(_with_xxbos(backend, rules))

    def extended(self, texts: Iterable[str], *, vocab_size: int, min_freq: int = 2) -> Tokenizer:
        """A copy of this tokenizer with new words of `texts` appended, the most frequent first.

        Every old word keeps its id. Words with fewer than `min_freq` occurrences are excluded, and there are at most
        `vocab_size` entries. A tokenizer of word pieces is returned unchanged, because it can encode every word.

        Raises:
            UserError: `vocab_size` is smaller than this vocabulary.
        """
        if self.subword:
            return self
        if vocab_size < len(self):
            raise UserError(
                f"a vocabulary of {vocab_size} has no room for the {len(self)} words to start from; "
                f"use --vocab-size {len(self)} or more"
            )
        entries = self._backend.get_vocab(with_added_tokens=True)
        own = sorted(entries, key=entries.__getitem__)
        # A copy of this pipeline, not a new one: an earlier version of the package may have other text rules.
        backend = tokenizers.Tokenizer.from_str(self.to_str())
        found = _count_words(backend, _encodable(texts), min_freq=min_freq)
        backend.model = _word_level([*own, *(word for word in found if word not in entries)], vocab_size)
        return Tokenizer(backend)

    @classmethod
    def from_str(cls, json: str) -> Tokenizer:
        """Read the result of `to_str`. Raises UserError if it is not a tokenizer of this package."""
        try:
            backend = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the bindings raise plain Exception
            raise UserError(f"this is no tokenizer.json ({str(error).splitlines()[0]}); train one") from None
        return cls(backend)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json, or that of a run, a job of `ulmfit fit` or a model, given its folder.

        Raises UserError if it is missing or not a tokenizer of this package.
        """
        try:
            file = Path(as_path(path))
            if file.is_dir():
                inside = [file / "tokenizer.json", file / "model" / "tokenizer.json", file / "lm" / "tokenizer.json"]
                file = next((each for each in inside if each.is_file()), inside[0])
            json = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"cannot read the tokenizer {path} ({reason}); give a tokenizer.json") from None
        try:
            return cls.from_str(json)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **hub: Any) -> Tokenizer:  # type: ignore[override]
        """As `from_file`; or that of "english", the package's model; or of that name (OWNER/MODEL) on the hub.

        Args:
            hub: revision, token and the other options of `hub.local_folder`.

        Raises:
            UserError: it is missing or not a tokenizer of this package, or the hub cannot be reached.
        """
        folder = local_folder(path, **hub)
        folder = str(shipped_folder(folder) or folder)
        tokenizer = cls.from_file(folder)
        tokenizer.loaded_from = Path(folder)
        return tokenizer

    form = "tokenizer.json"

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / "tokenizer.json")

    def _check(self, folder: str) -> None:
        with suppress(OSError, ValueError):  # it is not there, or is not text
            if Path(folder, "tokenizer.json").read_text(encoding="utf-8") == self.to_str():
                return  # it belongs to what is there, and replaces nothing
        super()._check(folder)

    def _card(self, **kwargs: Any) -> str:
        from ulmfit.model_card import model_card

        usage = """import ulmfit

tokenizer = ulmfit.Tokenizer.from_pretrained("NAME")
tokenizer.tokenize("An incredibly nice breath of fresh air")
"""
        folder = self.loaded_from if self.loaded_from and self.loaded_from.is_dir() else None
        return model_card(self.card_data, folder, {"task": "tokenizer"}, size=len(self), usage=usage, **kwargs)

    def to_str(self) -> str:
        """The content of tokenizer.json: as it was read, also if an earlier version of the package made it."""
        return self._json

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json. `tokenizers.Tokenizer.from_file` of any language can read it too."""
        files.write_text(Path(as_path(path)), self.to_str())

    def tokenize(self, texts: str | Iterable[str]) -> list[list[str]]:
        """The tokens of each text, with xxbos, before words outside the vocabulary become xxunk.

        Of a tokenizer of word pieces the pieces, with xxunk for characters outside the vocabulary.

        Raises:
            UserError: `texts` are no texts, e.g. a data frame (give one of its columns).
        """
        texts = list(_encodable(texts_of(texts)))
        if self.subword:
            return [[self.vocab[i] for i in ids] for ids in self.encode(texts)]
        split, normalize = (self._backend.pre_tokenizer.pre_tokenize_str, self._backend.normalizer.normalize_str)
        return [
            ["xxbos"] + [text_rules.surface(piece, self.rules) for piece, _ in split(normalize(text))] for text in texts
        ]

    def encode(self, texts: str | Iterable[str]) -> list[np.ndarray]:
        """The ids of each text, int32. Raises UserError as `tokenize`."""
        ids, lengths = self.encode_flat(texts_of(texts))
        if len(lengths) <= 1:
            return [ids] * len(lengths)
        return np.split(ids, np.cumsum(lengths)[:-1])

    def encode_flat(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The concatenated ids of all texts (int32 [total]) and their lengths (int64 [texts]).

        Rust releases the GIL and uses all cores (RAYON_NUM_THREADS), so the caller needs at most one thread.
        A lone surrogate, which cannot be written in UTF-8, is read as U+FFFD.
        """
        texts = list(_encodable(texts))
        if len(texts) == 1 and len(texts[0]) < _SHORT:
            (row,) = to_arrays([self._backend.encode(texts[0])])
            return row, np.array([len(row)], np.int64)
        ids: list[np.ndarray] = []
        pool = self._pool if len(texts) >= FEWEST_TEXTS else None
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            gathered = pool.encode(batch) if pool is not None else None
            ids += to_arrays(self._backend.encode_batch_fast(batch)) if gathered is None else gathered
        return np.concatenate([np.zeros(0, np.int32), *ids]), np.array([len(row) for row in ids], np.int64)

    def encode_words(self, text: str) -> tuple[str, np.ndarray, list[Span], np.ndarray]:
        """The ids of a text, and the words of the text that its tokens come from (see `words_of`).

        Returns:
            The text as it was read, without lone surrogates; the ids, int32 [tokens]; the places of its words; and the
            index of each token's word, int64 [tokens], -1 where it has none.
        """
        (text,) = _encodable([text])
        encoding = self._backend.encode(text)
        tokens = [self.vocab[index] for index in encoding.ids]
        words, places = words_of(text, tokens, encoding.offsets)
        return text, np.array(encoding.ids, np.int32), words, places

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: capitals and repeats are restored, punctuation and contractions joined, newlines kept.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        try:
            tokens = [self.vocab[i] if i >= 0 else self.vocab[len(self)] for i in map(int, ids)]
        except IndexError:
            raise UserError(f"an id is not in this tokenizer's vocabulary of {len(self)}; use its own") from None
        return detokenize(tokens, subword=self.subword is not None, exact=self._keeps_spaces, english=self._is_english)


def to_arrays(encodings: list[tokenizers.Encoding]) -> list[np.ndarray]:
    """The ids of each encoding, int32. It takes about 50 ns per token in Python."""
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _check_rules(rules: str) -> None:
    if rules not in text_rules.SPECIALS:
        raise UserError(f"unknown tokenizer rules {rules!r}; use fastai1 or fastai2")


def _word_pipeline(rules: str) -> tokenizers.Tokenizer:
    """The pipeline for words, without vocabulary and post-processor."""
    backend = tokenizers.Tokenizer(models.WordLevel({"xxunk": 0}, unk_token="xxunk"))
    backend.normalizer = text_rules.normalizer(rules)
    backend.pre_tokenizer = text_rules.pre_tokenizer()
    return backend


def _count_words(backend: tokenizers.Tokenizer, texts: Iterable[str], *, min_freq: int) -> list[str]:
    """The words of `texts` with at least `min_freq` occurrences, sorted by (count descending, then lexicographic).

    It removes the vocabulary of `backend`.
    """
    # The trainer gets no special tokens, because those that also occur in the texts would get two ids. It sorts as
    # needed.
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31, min_frequency=min_freq, show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab()
    return sorted(found, key=found.__getitem__)


def _word_level(words: Iterable[str], vocab_size: int) -> models.WordLevel:
    """The vocabulary: `words` without duplicates, special tokens first, at most `vocab_size`, then padding entries."""
    vocab = _without_fillers(dict.fromkeys(words))[:vocab_size]
    vocab += text_rules.padding(len(vocab), vocab_size)
    return models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="xxunk")


def _with_xxbos(backend: tokenizers.Tokenizer, rules: str) -> tokenizers.Tokenizer:
    """Add the post-processor that starts every document with xxbos."""
    bos = text_rules.SPECIALS[rules].index("xxbos")
    backend.post_processor = processors.TemplateProcessing(single="xxbos $A", special_tokens=[("xxbos", bos)])
    return backend


def _without_fillers(words: Iterable[str]) -> list[str]:
    return [word for word in words if not re.fullmatch(r"xxfake\d*", word)]


def _as_written(word: str, rules: str) -> str:
    """The inverse of `rules.surface`: a token as written in the vocabulary."""
    return word.replace(" ", "\u2581") if rules == "fastai1" and word[:1].isspace() else word


def _encodable(texts: Iterable[str]) -> Iterator[str]:
    """Replace lone surrogates, which Rust cannot represent, and the marks of the rules by U+FFFD.

    The pipeline replaces the marks too. But one saved by an earlier version does not, and takes quadratic time for a
    run of marks.
    """
    for text in items_of(texts) if isinstance(texts, str) or is_table(texts) else texts:
        if not isinstance(text, str):
            raise UserError(f"a text is of type {type(text).__name__}; give a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not text.isascii() and any(mark in text for mark in text_rules.MARKS):
            text = text.translate(_REPLACED)
        yield text
