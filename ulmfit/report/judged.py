"""What a report reads from model and data: the rows, calibration, the worst errors and the words that decide."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch

from ulmfit.batches.cache import TokenStore
from ulmfit.cache_folder import cache_folder
from ulmfit.config import ClassifierConfig
from ulmfit.data.corpus import Corpus
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.explanation import Explanation
from ulmfit.inference import TextClassifier
from ulmfit.paths import DESCRIBED
from ulmfit.report.facts import Facts
from ulmfit.training.begun import read_begun
from ulmfit.training.calibration import bin_table, sums_by_bin
from ulmfit.training.row_losses import ScoredSplit, scored_split
from ulmfit.training.setup import corpus_of_run, tokenised

EXPLAINED = 100  # documents whose words are added up
WORDS = 12  # of a class that are shown, at most
FAINT = 0.05  # and none that adds less than this share of the strongest
LONGEST = 20_000  # characters of a text that are explained


@dataclass(frozen=True)
class Part:
    """The rows of a split: `counts` by class int64 [C], and the numbers of tokens of a document."""

    name: str
    documents: int
    counts: np.ndarray
    median: float
    longest: int


@dataclass(frozen=True)
class Wrong:
    """A row that is predicted wrong. `true` and `predicted` are places of classes; no explanation of a private text."""

    row: int
    loss: float
    true: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: np.ndarray
    explanation: Explanation | None


@dataclass(frozen=True)
class Judged:
    """Attributes:
    split: that errors, calibration and words are of.
    bins: (mean confidence, share that is right, decisions) of each bin with any. With several labels a text a decision
        is one of a label, its confidence the label's probability, and right is that the text has it.
    words: by class (word, mean contribution, documents), the strongest first; empty where texts are private.
    explained: documents that the words are of.
    """

    parts: list[Part]
    split: str
    rows: int
    wrong: int
    errors: list[Wrong]
    bins: list[tuple[float, float, int]]
    words: dict[int, list[tuple[str, float, int]]] = field(default_factory=dict)
    explained: int = 0
    changed: bool = False


def judge(facts: Facts, runtime: Runtime, *, errors: int, texts: bool) -> Judged:
    """Read the data of a classifier's run again, and score it.

    Args:
        errors: how many of the worst errors to give.
        texts: whether texts and words may be shown.

    Raises:
        UserError: model or data are not there any more, or the data were given in Python.
    """
    training = facts.clf
    assert training is not None
    config = ClassifierConfig(output_dir=str(training.path))
    begun = read_begun(config)
    if begun is None:
        raise UserError(f"{training.path} tells no options; train again")
    filled = begun.fill(config)
    if str(filled.data).startswith(DESCRIBED):
        raise UserError(
            "the run was trained on data from Python, which its directory does not hold; report runs of files"
        )
    place = facts.path if facts.averaged > 1 or facts.ngrams else training.path
    model = TextClassifier.from_pretrained(place, device=runtime.device, backend="torch")
    corpus = corpus_of_run(filled, begun, runtime, model.label_names)
    name = next(name for name in ("test", "valid", "train") if name in corpus.splits)
    scored = scored_split(model, corpus.splits[name], runtime)
    several = corpus.label_sets is not None
    wrong = (scored.truth != scored.predicted).any(1)
    words, explained = _deciding(model, scored) if texts else ({}, 0)
    return Judged(
        _parts(corpus, model),
        name,
        len(scored.losses),
        int(wrong.sum()),
        _errors(model, scored, [place for place in scored.worst(len(wrong)) if wrong[place]][:errors], texts=texts),
        _bins(scored, several=several),
        words,
        explained,
        training.stored["identity"].get("corpus (content)") not in (None, corpus.fingerprint),
    )


def _parts(corpus: Corpus, model: TextClassifier) -> list[Part]:
    found = []
    for name, split in corpus.splits.items():
        store = tokenised(split, model.tokenizer, cache_folder(), with_labels=True)
        counts = _counts(store, corpus, len(model.label_names))
        found.append(Part(name, len(store), counts, float(np.median(store.lengths)), int(store.lengths.max())))
    return found


def _counts(store: TokenStore, corpus: Corpus, classes: int) -> np.ndarray:
    assert store.labels is not None
    if corpus.label_sets:
        sets = corpus.label_sets.matrix()
        return (np.bincount(store.labels, minlength=len(sets)) @ sets).astype(np.int64)
    return np.bincount(store.labels, minlength=classes)


def _errors(model: TextClassifier, scored: ScoredSplit, places: list[int], *, texts: bool) -> list[Wrong]:
    found, read = [], scored.texts(places) if texts else {}
    for place in places:
        true, predicted = (tuple(side[place].nonzero()[0].tolist()) for side in (scored.truth, scored.predicted))
        explanation = None
        if place in read:
            wrongly = sorted(set(predicted) - set(true)) or sorted(set(true) - set(predicted))
            index = max(wrongly, key=lambda each: scored.probabilities[place, each])
            explanation = model.explain(read[place].strip()[:LONGEST], model.label_names[index], tried=0)
        found.append(Wrong(int(scored.store.rows[place]), float(scored.losses[place]), true, predicted,
                           scored.probabilities[place], explanation))  # fmt: skip
    return found


def _bins(scored: ScoredSplit, *, several: bool) -> list[tuple[float, float, int]]:
    if several:
        confidence, right = scored.probabilities.ravel(), scored.truth.ravel()
    else:
        confidence, right = scored.probabilities.max(1), (scored.truth & scored.predicted).any(1)
    table = bin_table(sums_by_bin(torch.from_numpy(confidence), torch.from_numpy(right)))
    return [(row["confidence"], row["accuracy"], row["number"]) for row in table if row["number"]]


def _deciding(model: TextClassifier, scored: ScoredSplit) -> tuple[dict[int, list[tuple[str, float, int]]], int]:
    """By predicted class the words that add most to it, over documents evenly spread over the split.

    A word counts once a document. Words of one document say little, so they are left out unless there are no others.
    """
    number = len(scored.losses)
    places = sorted({int(place) for place in np.linspace(0, number - 1, min(number, EXPLAINED))})
    sums: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for text in scored.texts(places).values():
        found = model.explain(text.strip()[:LONGEST], tried=0)
        here: dict[str, float] = defaultdict(float)
        for word in found.words:
            if any(sign.isalpha() for sign in word.text):
                here[word.text.lower()] += word.contribution
        for word_text, value in here.items():
            sums[found.index][word_text].append(value)
    result = {}
    for index, words in sorted(sums.items()):
        repeated = {word: values for word, values in words.items() if len(values) > 1} or words
        # Divided by two more than there are, so that a word of many documents comes before one of few.
        order = sorted(repeated, key=lambda word: -sum(repeated[word]) / (len(repeated[word]) + 2))
        means = [(word, float(np.mean(repeated[word])), len(repeated[word])) for word in order[:WORDS]]
        most = max(value for _, value, _ in means)
        result[index] = sorted((row for row in means if row[1] > FAINT * abs(most)), key=lambda row: -row[1])
    return result, len(places)
