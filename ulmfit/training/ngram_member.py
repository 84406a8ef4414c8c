"""Whether a job's mean of classifiers has a linear classifier of n-grams beside the networks, and with which share.

It is trained on the rows that the networks were trained on, and where labels are few on what the networks say of other texts
(`ngram_teaching`). It joins them where their mean has a lower loss on the validation rows with it, or where labels are few and
it does no clear harm there, and with no share with which a class would be lost. OUTPUT/ngrams holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.order import Draw
from ulmfit.bundle import SMALLEST, Bundle
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.console import say
from ulmfit.data.corpus import Corpus
from ulmfit.data.probabilities import SoftSplit
from ulmfit.errors import StoppedEarly
from ulmfit.fit_config import NGRAMS, FitConfig
from ulmfit.inference import TextClassifier
from ulmfit.model.ngrams import NGramNet
from ulmfit.model.pretrained import save_model
from ulmfit.model_kinds import NGRAMS as KIND_OF_NGRAMS
from ulmfit.parallel_inference import TorchReader
from ulmfit.training import setup
from ulmfit.training.clf_task import classes_of
from ulmfit.training.clf_training import balanced_draw
from ulmfit.training.ngram_teaching import Lesson, apart, candidates, documents_of, drawn, opinions
from ulmfit.training.ngram_training import one_hot
from ulmfit.training.scores import whole_rows
from ulmfit.training.session import Session

SHARES = (0.25, 0.5)  # of the n-grams in the mean
STRENGTH_TAUGHT = 30.0  # of such as have learned of the networks too
SHARES_TAUGHT = (0.75, 0.5, 0.25)  # of these the first that fits
_LEAST_KEPT = 0.5  # of the texts that the networks say a class of; else the class is lost
_LEAST_SAID = 5  # texts that they say it of; fewer are chance
_MOST_LOST = 0.01  # of all texts, those that they say a lost class of
MOST_PRODUCTS = 15_000_000  # tokens of the texts that are counted, times classes: a minute or two of a core

Ngrams = Literal["never", "where they pay", "always"]


class Chosen(NamedTuple):
    """A linear classifier and its place in the mean.

    Attributes:
        strength: of its regularisation, see `ngram_training.STRENGTHS`.
        share: of its probabilities in the mean, one of `SHARES`, or of `SHARES_TAUGHT`.
        gain: what the loss of the mean on the validation rows is lower by, in nats; below 0 if it is higher.
        more_right: on how many more of these rows the mean is right; below 0 if on fewer.
        taught: texts without a label that it learned of the networks.
    """

    net: NGramNet
    strength: float
    share: float
    gain: float
    more_right: int
    taught: int

    def told(self) -> dict[str, Any]:
        """What files tell of it."""
        return {name: value for name, value in self._asdict().items() if name != "net"}


NO_NGRAMS = "--ngrams cannot be had: {}; leave it out"


def ngrams_wanted(config: FitConfig) -> Ngrams:
    """Whether n-grams may join the classifiers of a job. The other recipes are those of papers, and stay so.

    With --labels the validation labels that choose them, or keep them out, would be used in addition to the number asked for.
    They know no class weights, and would undo those of the networks.
    """
    if config.ngrams is not None:
        return "always" if config.ngrams else "never"
    weighted = config.clf.get("class_weights", "none") != "none"
    return "where they pay" if config.recipe == "quick" and config.labels is None and not weighted else "never"


def obstacle(config: ClassifierConfig, corpus: Corpus) -> str | None:
    """Why no n-grams can join the classifiers of a corpus, in words; None if they can."""
    if "valid" not in corpus.splits:
        return "there are no validation texts, by which they are chosen"
    if corpus.valid_split == "test":
        return "they would be chosen on the test texts"
    if corpus.label_sets is not None:
        return "a text may have several labels here, and they give it one"
    if config.probability_columns or isinstance(corpus.splits["train"], SoftSplit):
        return "the texts have probabilities in place of labels"
    return None


def join(
    job: Path,
    bundle: Bundle,
    parts: Sequence[Tensor],
    stores: Mapping[str, TokenStore],
    corpus: Corpus,
    language_model: LMConfig,
    session: Session,
    *,
    always: bool,
) -> tuple[Bundle, Chosen | None]:
    """The bundle with n-grams where they pay, and how; else the bundle (a collective).

    Args:
        bundle: of the networks.
        parts: by network its probabilities of this rank's validation rows, as of `member_probabilities`.
        stores: "valid" and, if there is one, "test": the rows held out, under the tokenizer of the networks.
        language_model: the options of the job's language model, whose texts may teach n-grams.
        always: join them in any case, with the best of the shares that are tried.

    Raises:
        StoppedEarly: a stop was requested meanwhile.
        EvaluationStopped: it was, while the networks read texts without a label.
    """
    config, runtime, tokenizer = session.config, session.runtime, bundle.tokenizer
    assert isinstance(config, ClassifierConfig)
    valid = stores["valid"]
    train = setup.store_of(session, corpus.splits["train"], tokenizer, with_labels=True)
    if config.labels is not None:
        train = train.subset(balanced_draw(classes_of(train), config.labels, seed=config.seed_of_draws))
    most = MOST_PRODUCTS // len(bundle.label_names)  # tokens
    texts = opinions(bundle, language_model, train, list(stores.values()), session, most)
    mean = whole_rows(torch.stack(list(parts)).mean(0), valid.num_documents, runtime).numpy()

    def go_on() -> None:
        runtime.progress.beat()
        if session.stop.requested():  # not by a signal, which is noticed at once
            raise StoppedEarly(session.stop.reason or "asked by a file or a time limit")

    def choose() -> Chosen | None:
        with session.stop.interruptible():
            labelled = np.sort(drawn(train.lengths, most, config.seed_of_draws, Draw.NGRAM_ROWS))
            labels = one_hot(classes_of(train)[labelled], len(bundle.label_names))
            lesson = Lesson(*train.read(labelled), labels, len(labelled))
            lesson = lesson if texts is None else lesson.followed_by(texts)
            chosen = best(lesson, documents_of(valid), classes_of(valid), mean, len(tokenizer), go_on, always=always)
        if chosen is not None:
            save_model(job / NGRAMS, chosen.net, tokenizer, saved)
        return chosen

    saved = {"label_names": bundle.label_names, "text_columns": bundle.config.get("text_columns", [])}
    chosen = runtime.on_main(choose)
    if chosen is None:
        if runtime.is_main:
            say(
                "n-grams stay out: with them the validation texts fare worse, or a class is said of far fewer texts; "
                "--ngrams takes them in"
            )
        return bundle, None
    if runtime.is_main:
        learned = f", learned of the networks on {chosen.taught:,} texts without a label too," if chosen.taught else ""
        say(
            f"n-grams: {chosen.net.config.features:,} words and pairs of words{learned} join the mean with a share of {chosen.share:g}; "
            f"of the validation texts {abs(chosen.more_right):,} {'fewer' if chosen.more_right < 0 else 'more'} are right, and "
            f"their loss is {'lower' if chosen.gain > 0 else 'higher'} by {abs(chosen.gain):.4f}"
        )
    member = TextClassifier(chosen.net.to(runtime.device), tokenizer, saved | {"kind": KIND_OF_NGRAMS})
    names = [str(number) for number in range(len(bundle.members) + 1)]
    shares = shares_with(chosen.share, len(bundle.members))
    return Bundle([*bundle.members, member], names, shares=shares), chosen


def shares_with(ngrams: float, networks: int) -> list[float]:
    """By member the share in the mean of so many networks, and behind them n-grams with their share."""
    return [(1 - ngrams) / networks] * networks + [ngrams]


def best(
    lesson: Lesson,
    documents: list[np.ndarray],
    truth: np.ndarray,
    mean: np.ndarray,
    vocab_size: int,
    go_on: Callable[[], None] = lambda: None,
    *,
    always: bool = False,
) -> Chosen | None:
    """The classifier that joins the networks; None if none does.

    One that has learned of the networks too has one strength, and the largest share with which no class is lost (see
    `keeps_classes`). It joins unless the networks alone are clearly more often right on the validation rows. Where labels are
    few these rows are few as well: the lowest of many losses is the luckiest, and networks that are far too sure have a low
    one.

    Else it is the one with the lowest loss of the mean on the validation rows, if that is lower than without and no class of
    theirs is lost. No margin is asked for: on folds the mean was as good or better also where the difference was small
    (benchmarks/RESULTS.md).

    Args:
        documents, truth: of the validation rows the ids, and the classes, int64 [n].
        mean: of the networks' probabilities of the validation rows, float64 [n, C].
        go_on: called often; may raise.
        always: as of `join`.
    """

    alone = loss(mean, truth)

    def with_share(share: float, strength: float, net: NGramNet, rows: np.ndarray) -> tuple[Chosen, np.ndarray]:
        joined = mixed(mean, rows, share)
        more = int((joined.argmax(1) == truth).sum() - (mean.argmax(1) == truth).sum())
        return Chosen(net, strength, share, alone - loss(joined, truth), more, lesson.taught), joined

    if lesson.taught:
        [(strength, net)] = candidates(lesson, vocab_size, go_on, (STRENGTH_TAUGHT,))
        share = _share_taught(net, lesson)
        chosen, joined = with_share(share or SHARES_TAUGHT[-1], strength, net, _probabilities(net, documents))
        pays = share is not None and not clearly_better(mean, joined, truth)
        return chosen if pays or always else None
    found: Chosen | None = None
    for strength, net in candidates(lesson, vocab_size, go_on):
        rows = _probabilities(net, documents)
        for share in SHARES:
            chosen, joined = with_share(share, strength, net, rows)
            pays = chosen.gain > 0 and keeps_classes(mean, joined)
            if (pays or always) and (found is None or chosen.gain > found.gain):
                found = chosen
    return found


def mixed(networks: np.ndarray, ngrams: np.ndarray, share: float) -> np.ndarray:
    """The mean of probabilities [n, C], with this share of the n-grams."""
    return (1 - share) * networks + share * ngrams


def _probabilities(net: NGramNet, documents: list[np.ndarray]) -> np.ndarray:
    return TorchReader(net, pad_id=0, backwards=False).probabilities(documents)


def _share_taught(net: NGramNet, lesson: Lesson) -> float | None:
    """The largest share with which the mean keeps the classes of the texts without a label; None if there is none."""
    said = lesson.probabilities[lesson.labelled :]
    heard = _probabilities(net, apart(lesson.ids, lesson.lengths)[lesson.labelled :])
    fitting = (share for share in SHARES_TAUGHT if keeps_classes(said, mixed(said, heard, share)))
    return next(fitting, None)


def keeps_classes(networks: np.ndarray, joined: np.ndarray) -> bool:
    """Whether the probabilities of texts with n-grams, [n, C], say each class at least half as often as those of the networks
    do, but for classes that these say of at most one text in a hundred together.

    Of few labels n-grams learn little more than how frequent the classes are. Where one is rare, they never say it, and with
    a large share nor does the mean.
    """
    before, after = (np.bincount(one.argmax(1), minlength=one.shape[1]) for one in (networks, joined))
    lost = (before >= _LEAST_SAID) & (after < _LEAST_KEPT * before)
    return bool(before[lost].sum() <= _MOST_LOST * len(networks))


def clearly_better(networks: np.ndarray, joined: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the networks' probabilities [n, C] are right on more rows than those with n-grams, by more than two standard
    errors.

    The error is that of rows of which each is as likely won as lost, so that five won and none lost are the least.
    """
    won = (networks.argmax(1) == truth).astype(int) - (joined.argmax(1) == truth)
    return bool(won.sum() > 2 * math.sqrt(np.abs(won).sum()))


def loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean cross-entropy of probabilities [n, C] for classes [n], in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], SMALLEST)).mean())
