"""N-grams that learn what a job's networks say of its texts without a label, beside the labels.

With few labels, most words of the task stand in no labelled text, but in some that the networks have an opinion of. What
they say of these is a second teacher (pseudo-labels; Lee 2013), and the mean of what is learned of the labels and of both is
better than either: on held-out texts with 100 labels by 1.5 points in the mean over tasks (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.order import permutation
from ulmfit.bundle import Bundle
from ulmfit.config import LMConfig
from ulmfit.data.mixed_corpus import MixedSplit
from ulmfit.model.ngrams import NGramNet
from ulmfit.training import setup
from ulmfit.training.begun import read_begun
from ulmfit.training.ngram_training import averaged, count, trained
from ulmfit.training.scores import member_probabilities, whole_rows
from ulmfit.training.session import Session, SilentSession

MOST_TEXTS = 8_000
MOST_TOKENS = 1_500_000  # of all of them: a minute or two of a core for each network
_ROWS = 5  # gives the draw of these texts another generator than the other draws


class Lesson(NamedTuple):
    """What n-grams learn: texts, and how probable each class is for them.

    Attributes:
        ids: of all texts, one behind the other, int [tokens].
        lengths: tokens of each, int [n].
        probabilities: the mean of the networks', or 1 for the label; float64 [n, C].
    """

    ids: np.ndarray
    lengths: np.ndarray
    probabilities: np.ndarray

    def followed_by(self, others: Lesson) -> Lesson:
        """These texts and others behind them."""
        return Lesson(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))


def judged(
    bundle: Bundle, language_model: LMConfig, labelled: int, valid: TokenStore, session: Session, most_tokens: int
) -> Lesson | None:
    """Texts that the language model was trained on, and what the networks say of them (a collective).

    Those with a label may be among them, which does no harm. None of the validation texts is, by which n-grams are chosen.

    Args:
        bundle: of the networks, on the tokenizer of the language model.
        language_model: the options of the job's language model.
        labelled: the number of texts with labels that the networks were trained on.
        valid: the validation texts.
        most_tokens: of all texts together.

    Returns:
        None, if there are less than twice as many as labelled ones (of at most `MOST_TEXTS`), or they are not at hand:
        streamed, mixed of several sources, or together with those of the test split.

    Raises:
        UserError: the corpus cannot be read.
        EvaluationStopped: a stop was requested meanwhile.
    """
    runtime = session.runtime
    # Disks may be local to a machine.
    begun = runtime.broadcast(read_begun(language_model) if runtime.is_main else None)
    config = language_model if begun is None else begun.fill(language_model)
    if config.streaming or setup.reads_test(config):
        return None
    corpus = setup.corpus_of(SilentSession(config, runtime, session.stop, session.started, begun, session.early_stop))
    split = corpus.splits["train"]
    if isinstance(split, MixedSplit):
        return None
    store = setup.store_of(session, split, bundle.tokenizer, with_labels=False)
    held_out = set(_documents(valid))
    some = drawn(store.lengths, min(most_tokens, MOST_TOKENS), session.config.seed_of_draws, _ROWS)[:MOST_TEXTS]
    if len(some) < 2 * labelled:
        return None
    store = store.subset(some)
    known = np.array([text in held_out for text in _documents(store)])
    store = store.subset(np.flatnonzero(~known))
    if not store.num_documents:
        return None
    rows = member_probabilities(bundle, [store] * len(bundle.members), runtime)
    probabilities = whole_rows(torch.stack(rows).mean(0), store.num_documents, runtime)
    return Lesson(*store.read(np.arange(store.num_documents)), probabilities.numpy())


def candidates(
    lesson: Lesson, labelled: int, vocab_size: int, before_each: Callable[[], None]
) -> Iterator[tuple[float, NGramNet]]:
    """Yield a strength and a linear classifier trained with it, for each strength in turn.

    It has learned the labels; or where there are texts behind the labelled ones, it is the mean of one that has learned the
    labels and one that has learned all.

    Args:
        labelled: the number of texts with labels, which are the first.
        before_each: as of `ngram_training.trained`.
    """
    counted = count(lesson.ids, lesson.lengths, vocab_size, lesson.probabilities.shape[1])
    alone = trained(counted.first(labelled), lesson.probabilities[:labelled], vocab_size, before_each=before_each)
    if labelled == len(lesson.lengths):
        yield from alone
        return
    both = trained(counted, lesson.probabilities, vocab_size, before_each=before_each)
    for (strength, one), (_, other) in zip(alone, both, strict=True):
        yield strength, averaged([one, other])


def drawn(lengths: np.ndarray, most: int, seed: int, place: int) -> np.ndarray:
    """Documents drawn by the seed, at least one, and so many that they have at most `most` tokens.

    Args:
        place: gives each use another draw.
    """
    order = permutation(len(lengths), seed, 0, place)
    within = np.cumsum(np.asarray(lengths, dtype=np.int64)[order]) <= most
    within[0] = True
    return order[within]


def _documents(store: TokenStore) -> Iterator[bytes]:
    """Each document's ids."""
    for at in range(store.num_documents):
        yield store.document(at).astype(np.int32).tobytes()
