"""The embedded sample: a pure function of (split, seed), balanced, noisy as stated, and hard for counts of words."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from ulmfit.data import sample

DIGEST = "cfc6718d08885a92"  # of the validation split


def rows(split: str, seed: int = 0) -> list[sample.Review]:
    return list(sample.generate(split, seed=seed))


def test_is_a_pure_function_of_split_and_seed():
    assert rows("valid") == rows("valid")
    texts = {(split, seed): tuple(row["text"] for row in rows(split, seed)) for split in ("valid", "test")
             for seed in (0, 1)}  # fmt: skip
    assert len(set(texts.values())) == 4
    with pytest.raises(KeyError):
        rows("dev")


def test_output_is_the_same_on_every_machine():
    digest = hashlib.sha256(repr(rows("valid")).encode()).hexdigest()[:16]
    assert digest == DIGEST, "the grammar changed: raise GRAMMAR_VERSION and note the new digest here"


@pytest.mark.parametrize("split", sample.SPLITS)
def test_sizes_and_lengths(split):
    texts = [row["text"] for row in rows(split)]
    lengths = [len(text.replace("<br /><br />", " ").split()) for text in texts]
    assert len(texts) == sample.SIZES[split]
    assert sample.MIN_WORDS <= min(lengths) and max(lengths) <= sample.MAX_WORDS
    assert 50 <= sum(lengths) / len(lengths) <= 75
    assert all(text.isascii() and "{" not in text and "  " not in text for text in texts)


def test_no_review_stands_in_two_splits():
    texts = [row["text"] for split in sample.SPLITS for row in rows(split)]
    assert len(set(texts)) == len(texts) == sum(sample.SIZES.values())


@pytest.mark.parametrize("split", ("train", "valid", "test"))
def test_labels_are_flipped_in_exactly_the_stated_share(split, monkeypatch):
    observed = [row["label"] for row in rows(split)]
    opinions = []
    write = sample._Writer.review

    def review(self, opinion):
        opinions.append(opinion)
        return write(self, opinion)

    monkeypatch.setattr(sample._Writer, "review", review)
    rows(split)
    assert Counter(opinions) == {0: len(observed) // 2, 1: len(observed) // 2}
    flipped = sum(label != opinion for label, opinion in zip(observed, opinions, strict=True))
    assert flipped == sample.LABEL_NOISE * len(observed)
    assert 1 - flipped / len(observed) == pytest.approx(sample.CEILING, abs=1e-12)


def test_unsup_is_unlabelled():
    assert {row["label"] for row in rows("unsup")} == {-1}


def test_holds_what_the_tokenizer_and_the_model_must_cope_with():
    text = " ".join(row["text"] for row in rows("train"))
    for wanted in ("<br /><br />", "sooooo ", "!!!!", "very very very very", " not ", "never ", "hardly a ", ", but "):
        assert wanted in text, wanted
    assert any(word.isupper() and len(word) > 3 for word in text.split())
    assert 300 < len(set(text.lower().replace(".", " ").replace(",", " ").split())) < 2000


def test_counting_words_stays_clearly_under_the_ceiling():
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = rows("train"), rows("test")
    for longest in (1, 2):
        vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=2, sublinear_tf=True)
        model = LogisticRegression(C=3.0, max_iter=1000)
        model.fit(vectorizer.fit_transform([row["text"] for row in train]), [row["label"] for row in train])
        accuracy = model.score(vectorizer.transform([row["text"] for row in test]), [row["label"] for row in test])
        assert 0.55 < accuracy < sample.CEILING - 0.08
