"""Whether the vocabulary has words or pieces (--subword auto), and whether it knows the words of the texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from ulmfit.config import ClassifierConfig, LMConfig, changed
from ulmfit.data.splits import Split
from ulmfit.errors import UserError
from ulmfit.tokenizer.scripts import unspaced_script
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.session import Session

MANY = 0.1  # above: advice, and in a script without spaces the end
TOO_MANY = 0.6
FEW_WORDS = 200  # fewer tell nothing of a corpus: in one of a few rows nearly every word occurs once
TEXTS_LOOKED_AT = 2000
CHARACTERS_LOOKED_AT = 1_000_000


def unknown_share(texts: list[str], tokenizer: Tokenizer) -> float:
    """Share of unknown tokens in these texts, in [0, 1]; xxbos is not counted. 0 for texts without words."""
    return _unknown(texts, tokenizer)[0]


def _unknown(texts: list[str], tokenizer: Tokenizer) -> tuple[float, int]:
    """(`unknown_share`, number of tokens without xxbos)."""
    ids, lengths = tokenizer.encode_flat(texts)
    words = len(ids) - len(lengths)
    return float(np.count_nonzero(ids == tokenizer.unk_id)) / words if words else 0.0, words


def first_texts(split: Split) -> list[str]:
    """The first texts of a split: enough for a share of unknown tokens, few enough to take less than a second."""
    texts: list[str] = []
    characters = 0
    for batch in split.batches(TEXTS_LOOKED_AT):
        for text in batch.texts:
            if texts and (len(texts) == TEXTS_LOOKED_AT or characters + len(text) > CHARACTERS_LOOKED_AT):
                return texts
            texts.append(text[:CHARACTERS_LOOKED_AT])
            characters += len(text)
    return texts


Pieces = Literal["unigram", "bpe"]


def chosen_subword(asked: str | None, texts: Callable[[], list[str]]) -> tuple[Pieces | None, str]:
    """What the option --subword becomes, None for whole words, and a sentence about the choice of "auto" ("" if none).

    Args:
        asked: the option as given.
        texts: gives the texts that decide; called for "auto" only.
    """
    if asked != "auto":
        return ("unigram" if asked == "unigram" else "bpe" if asked == "bpe" else None), ""
    script = unspaced_script(texts())
    if script is None:
        return None, "--subword auto: the texts have spaces between words, so the vocabulary is of whole words"
    # bpe and not unigram: only its training gives the same pieces every time.
    return (
        "bpe",
        f"--subword auto: {script} is written without spaces between words, so the vocabulary is of pieces (bpe)",
    )


def resolve_subword(session: Session, train: Split) -> Session:
    """The session with the kind of pieces that --subword stands for, None for whole words (a collective).

    A resumed run keeps its choice.
    """
    config = session.config
    assert isinstance(config, LMConfig | ClassifierConfig)
    if config.subword == "auto" and session.begun is not None:
        stored = session.begun.resolved.get("subword") or session.begun.options.get("subword")
        kind = chosen_subword(stored, lambda: [])[0]
    else:
        texts = lambda: first_texts(train)  # noqa: E731
        kind, sentence = session.runtime.on_main(lambda: chosen_subword(config.subword, texts))
        if sentence:
            session.say(sentence)
    return replace(session, config=changed(config, subword=kind))


def check_vocabulary(session: Session, valid: Split, tokenizer: Tokenizer) -> None:
    """Print the share of unknown tokens in the validation texts, with advice if it is large (a collective).

    A resumed run is not checked: it keeps the vocabulary with which it began.

    Raises:
        UserError: nearly nothing can be learnt, as most tokens are unknown or the script has no spaces between words.
            Raised on all ranks.
    """
    if session.begun is None:
        config = session.config
        session.say(session.runtime.on_main(lambda: judged(first_texts(valid), tokenizer, source_of(config))))


def source_of(config: object) -> str | None:
    """The option and value by which the vocabulary was given; None if it is the corpus's own."""
    assert isinstance(config, LMConfig | ClassifierConfig)
    names = ("init", "tokenizer") if isinstance(config, LMConfig) else ("encoder",)
    given = {name: getattr(config, name) for name in names}
    return next((f"--{name} {value}" for name, value in given.items() if value not in (None, "none")), None)


def judged(texts: list[str], tokenizer: Tokenizer, source: str | None) -> str:
    """A line about the share of unknown tokens.

    Args:
        source: see `source_of`.

    Raises:
        UserError: see `check_vocabulary`.
    """
    share, words = _unknown(texts, tokenizer)
    line = f"{share:.1%} of the tokens of the validation texts are unknown (xxunk)"
    if share <= MANY:
        return line
    script = None if tokenizer.subword else unspaced_script(texts)
    if script is not None:
        cure = "give --subword auto, or cut the texts into words by spaces"
        if source is not None:
            cure = f"use no {source} of whole words but one that was trained with --subword auto"
        raise UserError(
            f"{share:.0%} of the tokens of the validation texts are unknown, as {script} is written without spaces "
            f"between words; {cure}"
        )
    if share > TOO_MANY and words >= FEW_WORDS:
        cure = "check the data and its columns, or split words into known pieces by --subword bpe"
        if source is not None:
            cure = f"{source} knows too few of their words, so give another or leave it out"
        elif tokenizer.subword:
            cure = "check that the validation texts are of the language of the training texts"
        raise UserError(f"{share:.0%} of the tokens of the validation texts are unknown; {cure}")
    if source is not None:
        option = source.split()[0]
        advice = {
            "--init": "--min-freq 1 adds the rare words of the corpus to its own",
            "--encoder": "train_lm.py --init fine-tunes it on texts of this kind, which adds their words",
            "--tokenizer": "one that is trained on this corpus knows more of its words",
        }
        return f"{line}; {advice[option]}"
    if tokenizer.subword:
        return f"{line}; a larger corpus or --vocab-size has pieces for more characters"
    return (
        f"{line}, as is usual for a small corpus: --init starts from a model that knows more words, --subword bpe splits "
        "unknown words into known pieces"
    )
