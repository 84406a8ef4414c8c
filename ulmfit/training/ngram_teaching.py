"""N-grams that learn what a job's networks say of its texts without a label, beside the labels.

With few labels, most words of the task stand in no labelled text, but in some that the networks have an opinion of. What
they say of these is a second teacher (pseudo-labels; Lee 2013), and the mean of what is learned of the labels and of both is
better than either: on held-out texts with 100 labels 1.6 points above the labels alone, in the mean of three tasks
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.order import Draw, permutation
from ulmfit.bundle import Bundle
from ulmfit.config import LMConfig
from ulmfit.console import say
from ulmfit.model.ngrams import NGramNet
from ulmfit.training import setup
from ulmfit.training.begun import read_begun
from ulmfit.training.ngram_training import STRENGTHS, averaged, count, trained
from ulmfit.training.scores import member_probabilities, whole_rows
from ulmfit.training.session import Session

MOST_LABELLED = 1_000  # measured with 100, 500 and 1,000
MOST_TEXTS = 8_000
MOST_TOKENS = 1_500_000  # of all of them: less than the language model has read in its training


class Lesson(NamedTuple):
    """What n-grams learn: texts, and how probable each class is for them.

    Attributes:
        ids: of all texts, one behind the other, int [tokens].
        lengths: tokens of each, int [n].
        probabilities: 1 for the label, or the mean of what the networks say; float64 [n, C].
        labelled: how many have labels; these are the first.
    """

    ids: np.ndarray
    lengths: np.ndarray
    probabilities: np.ndarray
    labelled: int

    @property
    def taught(self) -> int:
        """Texts without a label."""
        return len(self.lengths) - self.labelled

    def followed_by(self, others: Lesson) -> Lesson:
        """These texts, and behind them others without labels."""
        ids, lengths, probabilities = (np.concatenate(pair) for pair in zip(self[:3], others[:3], strict=True))
        return Lesson(ids, lengths, probabilities, self.labelled)


def teaches(labelled: int, others: int) -> bool:
    """Whether so many texts without a label teach n-grams beside so many with one."""
    return labelled <= MOST_LABELLED and others >= max(1, labelled)


def opinions(
    bundle: Bundle,
    language_model: LMConfig,
    train: TokenStore,
    held_out: Sequence[TokenStore],
    session: Session,
    most_tokens: int,
) -> Lesson | None:
    """Texts without a label that the language model was trained on, and what the networks say of them (a collective).

    A text that stands in `train` or `held_out` too is none of them, so that the choice of n-grams and their scores are of
    texts that they have not seen. Of equal texts there is one.

    Args:
        bundle: of the networks, on the tokenizer of the language model.
        language_model: the options of the job's language model, which is trained.
        train: the texts with labels that the networks were trained on.
        held_out: the validation and test texts.
        most_tokens: of all texts together; at most `MOST_TOKENS`.

    Returns:
        None, if they are too few or the labels too many (`teaches`), or the texts are not at hand: streamed, or together
        with those of the test split.

    Raises:
        UserError: the corpus cannot be read.
        EvaluationStopped, StoppedEarly: a stop was requested meanwhile.
    """
    if train.num_documents > MOST_LABELLED:
        return None
    runtime = session.runtime
    # Disks may be local to a machine. There is none to resume with --resume never.
    begun = runtime.broadcast(read_begun(language_model) if runtime.is_main else None)
    config = language_model if begun is None else begun.fill(language_model)
    if config.streaming or setup.reads_test(config):
        return None
    corpus = setup.corpus_of(replace(session, config=config, begun=begun, silent=True))
    store = setup.store_of(session, corpus.splits["train"], bundle.tokenizer, with_labels=False)
    some = drawn(store.lengths, min(most_tokens, MOST_TOKENS), session.config.seed_of_draws, Draw.TAUGHT_ROWS)
    store = store.subset(some)
    with session.stop.interruptible():
        places: dict[bytes, int] = {}  # of each text where it stands first, in this order
        for place, text in enumerate(documents_of(store)):
            places.setdefault(text.tobytes(), place)
        for one in (train, *held_out):
            for text in documents_of(one):
                places.pop(text.tobytes(), None)
    store = store.subset(np.array(list(places.values()), dtype=np.int64)[:MOST_TEXTS])
    if not teaches(train.num_documents, store.num_documents):
        if runtime.is_main:
            say(
                f"n-grams learn of the labels alone, for {store.num_documents:,} other texts are too few; with as many texts "
                f"without a label as with one ({train.num_documents:,}) they learn of the networks too"
            )
        return None
    rows = member_probabilities(bundle, [store] * len(bundle.members), runtime)
    probabilities = whole_rows(torch.stack(rows).mean(0), store.num_documents, runtime)
    return Lesson(*store.read(np.arange(store.num_documents)), probabilities.numpy(), 0)


def candidates(
    lesson: Lesson, vocab_size: int, before_each: Callable[[], None], strengths: Sequence[float] = STRENGTHS
) -> Iterator[tuple[float, NGramNet]]:
    """Yield a strength and a linear classifier trained with it, for each strength in turn.

    It has learned the labels; or where there are texts behind the labelled ones, it is the mean of one that has learned the
    labels and one that has learned all.

    Args:
        before_each, strengths: as of `ngram_training.trained`.
    """
    wanted, labelled = lesson.probabilities, lesson.labelled
    counted = count(lesson.ids, lesson.lengths, vocab_size, wanted.shape[1])
    alone = trained(counted.first(labelled), wanted[:labelled], vocab_size, strengths, before_each)
    if not lesson.taught:
        yield from alone
        return
    both = trained(counted, wanted, vocab_size, strengths, before_each)
    for (strength, one), (_, other) in zip(alone, both, strict=True):
        yield strength, averaged([one, other])


def drawn(lengths: np.ndarray, most: int, seed: int, place: int) -> np.ndarray:
    """Documents drawn by the seed, so many that they have at most `most` tokens, but at least one. Longer ones are passed
    over.

    Args:
        place: gives each use another draw.
    """
    order = permutation(len(lengths), seed, 0, place)
    found = np.asarray(lengths, dtype=np.int64)[order]
    fits = found <= most
    within = fits & (np.cumsum(np.where(fits, found, 0)) <= most)
    within[0] |= not within.any()
    return order[within]


def documents_of(store: TokenStore) -> list[np.ndarray]:
    """The ids of each document; of one vocabulary their dtype is the same in every store."""
    return apart(*store.read(np.arange(store.num_documents)))


def apart(ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The ids of each document, from those of all, one behind the other."""
    return np.split(ids, np.cumsum(lengths)[:-1])
