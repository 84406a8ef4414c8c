"""tokenizer: train one on a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ulmfit.cli.common import check_output, tell_notes, tell_skipped
from ulmfit.cli.reading import ReadingOptions
from ulmfit.errors import UserError


@dataclass(kw_only=True)
class TokenizerOptions(ReadingOptions):
    """Train a tokenizer on a corpus's training split and save it."""

    data: str | None = None
    """Corpus: file, glob, folder or hub data set name (default: the embedded sample)."""
    text_column: str | None = None
    """Column with the text, or several joined by commas (default: text, else the only one)."""
    output: str = "tokenizer.json"
    """File to write."""
    vocab_size: int = 60_000
    """Largest vocabulary."""
    min_freq: int = 2
    """Rarer words become xxunk."""
    rules: Literal["fastai1", "fastai2"] = "fastai1"
    """Text rules: fastai1 (the blog post's) or fastai2."""
    subword: Literal["auto", "unigram", "bpe", "none"] = "none"
    """Vocabulary of word pieces instead of words; auto: bpe for a language without spaces between words, else none."""


def train_tokenizer(options: TokenizerOptions) -> None:
    """Train and save a tokenizer."""
    from ulmfit.data.mixed_corpus import open_any_corpus
    from ulmfit.run.meter import metered_texts
    from ulmfit.tokenizer.tokenizer import Tokenizer
    from ulmfit.training.vocabulary import chosen_subword, first_texts

    output = Path(options.output)
    check_output(output)
    corpus = open_any_corpus(options.data, task="lm", text_column=options.text_column, access=options.access())
    tell_notes(corpus.notes)
    split = corpus.splits["train"]
    subword, sentence = chosen_subword(options.subword, lambda: first_texts(split))
    if sentence:
        print(sentence)
    trained = Tokenizer.train(
        metered_texts(split, "training the vocabulary"),
        rules=options.rules,
        vocab_size=options.vocab_size,
        min_freq=options.min_freq,
        subword=subword,
    )
    try:
        trained.save(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}); name another file") from None
    tell_skipped(split.skipped)
    print(
        f"{output}: {len(trained):,} tokens, fingerprint {trained.fingerprint}, begins with "
        f"{' '.join(trained.vocab[:16])}"
    )
