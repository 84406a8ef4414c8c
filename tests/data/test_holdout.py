"""The draw of validation rows, by its properties on random corpora."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.data.files import MODES, whole, write
from ulmfit.data import duplicates
from ulmfit.data.corpus import Corpus, open_corpus
from ulmfit.data.duplicates import duplicate_notes
from ulmfit.data.fingerprint import Access
from ulmfit.data.holdout import NO_CLASS, draw, group_name, share_seats
from ulmfit.data.in_memory import InMemory
from ulmfit.errors import UserError


def random_corpus(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(units, labels, fraction): classes of all sizes, equal texts, texts of several classes, unlabelled rows."""
    rng = np.random.default_rng(seed)
    rows, classes = int(rng.integers(1, 400)), int(rng.integers(1, 40))
    labels = rng.choice(classes, rows, p=rng.dirichlet(np.full(classes, rng.choice([0.1, 1.0, 100.0]))))
    labels = np.where(rng.random(rows) < rng.choice([0.0, 0.1, 0.9]), NO_CLASS, labels).astype("<i4")
    units = rng.integers(0, 2**64, rows, dtype=np.uint64)
    if rng.random() < 0.6:  # some texts several times
        repeated = rng.random(rows) < rng.choice([0.05, 0.5])
        units[repeated] = rng.choice(units, repeated.sum())
    return units, labels, float(rng.choice([0.05, 0.1, 0.2, 0.5]))


@pytest.mark.parametrize("seed", range(300))
def test_the_draw_has_its_properties(seed):
    units, labels, fraction = random_corpus(seed)
    held = draw(units, labels, fraction)
    assert (np.diff(held.astype(object)) > 0).all() and np.isin(held, units).all()
    inside = np.isin(units, held)
    # Every class keeps a row in training.
    for label in set(labels[labels != NO_CLASS].tolist()):
        assert (~inside & (labels == label)).any()
    # Whatever the order of the rows.
    order = np.random.default_rng(seed).permutation(len(units))
    assert np.array_equal(draw(units[order], labels[order], fraction), held)
    # The labelled rows do not depend on unlabelled ones (of other texts): a language model reads more of these.
    labelled = labels != NO_CLASS
    if labelled.any():
        alone = draw(units[labelled], labels[labelled], fraction)
        assert np.array_equal(np.unique(units[labelled & inside]), alone)


@pytest.mark.parametrize("seed", range(100))
def test_without_equal_texts_the_fraction_is_right_to_a_row_and_classes_are_in_proportion(seed):
    units, labels, fraction = random_corpus(seed)
    units = np.random.default_rng(seed).permutation(len(units)).astype(np.uint64)
    inside = np.isin(units, draw(units, labels, fraction))
    labelled = labels != NO_CLASS
    sizes = np.bincount(labels[labelled])
    room = (sizes - 1).clip(0).sum()
    wanted = min(room, max(1, int(labelled.sum() * fraction + 0.5))) if labelled.any() else 0
    assert (inside & labelled).sum() == wanted
    assert abs((inside & ~labelled).sum() - (~labelled).sum() * fraction) <= (1 if not labelled.any() else 0.5)
    singles = sizes == 1
    found = np.bincount(labels[labelled & inside], minlength=len(sizes))
    if not singles.any():
        assert (np.abs(found - sizes * fraction) <= 1.5).all() or room < labelled.sum() * fraction + 1
        enough = sizes * fraction >= 1
        assert (found[enough] > 0).all()


@pytest.mark.parametrize(("labels", "valid"), [
    ([0], 0), ([NO_CLASS], 0), ([NO_CLASS] * 2, 1), ([0, 0], 1), ([0, 1], 0), ([0, 0, 1], 1), ([0, 0, 1, 1, 1], 1),
    ([NO_CLASS] * 5, 1), ([*range(10), *[10] * 40, *[11] * 40], 9), ([*range(1000)] * 2, 200), ([0] * 95 + [1] * 5, 10),
    ([*range(50)], 0), ([0] * 390 + [1] * 10, 40),
])  # fmt: skip
def test_small_corpora(labels, valid):
    units = np.random.default_rng(3).integers(0, 2**64, len(labels), dtype=np.uint64)
    labels = np.array(labels, dtype="<i4")
    inside = np.isin(units, draw(units, labels, 0.1))
    assert inside.sum() == valid
    if len(labels) in (100, 400):
        assert set(labels[inside]) == {0, 1}


@pytest.mark.parametrize("seed", range(50))
def test_groups_of_all_sizes(seed):
    """Units of many rows and several classes: films, authors."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(5, 60)
    sizes = rng.zipf(1.6, groups).clip(1, 200)
    units = np.repeat(rng.integers(0, 2**64, groups, dtype=np.uint64), sizes)
    labels = rng.integers(0, 3, len(units)).astype("<i4")
    inside = np.isin(units, draw(units, labels, 0.2))
    assert 0 < inside.sum() <= max(0.2 * len(units) + 3, len(units) / 2)


def test_seats_are_shared_by_largest_remainders():
    def shared(sizes, total, room=None):
        sizes = np.array(sizes)
        return share_seats(sizes, np.array(room if room is not None else sizes), total, np.arange(len(sizes))).tolist()

    assert shared([50, 30, 20], 10) == [5, 3, 2]
    assert shared([95, 5], 10) == [9, 1]
    assert shared([1, 1, 98], 10, [0, 0, 97]) == [0, 0, 10]
    assert shared([10, 10], 30, [3, 5]) == [3, 5] and shared([0, 3], 1, [0, 2]) == [0, 1]


# Corpora


def reviews(rows: list[dict]) -> str:
    return write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def random_rows(draw: random.Random) -> list[dict]:
    labels = ["a", "b", *[f"rare{n}" for n in range(draw.randint(0, 8))], None]
    number = draw.randint(20, 200)
    texts = [f"text {n} of them" for n in range(number)]
    return [{"text": draw.choice(texts) if draw.random() < 0.1 else texts[n], "film": draw.choice([None, 1, 1.0, "2", "x"]),
             "label": draw.choice(labels[:2] if draw.random() < 0.7 else labels)} for n in range(number)]  # fmt: skip


def sides(corpus: Corpus) -> dict[str, list[str]]:
    return {name: sorted(whole(split)[0]) for name, split in corpus.splits.items()}


def test_a_group_is_the_same_however_its_number_is_written():
    """pandas writes 7.0 where a file has a row without a group."""
    assert {group_name(value) for value in (7, 7.0, "7", "7.0", " 7 ")} == {"7"}
    assert group_name("seven.0") == "seven.0" and {group_name(value) for value in (None, float("nan"), " ")} == {""}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("seed", range(12))
def test_the_same_rows_whatever_their_order_for_both_tasks(seed):
    draw = random.Random(seed)
    rows = random_rows(draw)
    labelled = {row["text"] for row in rows if row["label"] is not None}
    data = {name: [row[name] for row in rows] for name in rows[0]}
    clf = open_corpus(InMemory(data), task="clf", seed=seed)
    found = sides(clf)
    draw.shuffle(rows)
    again = {name: [row[name] for row in rows] for name in rows[0]}
    assert sides(open_corpus(InMemory(again), task="clf", seed=seed)) == found
    lm = sides(open_corpus(InMemory(again), task="lm", seed=seed))
    assert set(lm["valid"]) & labelled == set(found["valid"])
    assert not set(lm["valid"]) & set(lm["train"])
    assert sorted(lm["valid"] + lm["train"]) == sorted(data["text"])
    other = sides(open_corpus(InMemory(data), task="clf", seed=seed + 1))
    assert other != found


@pytest.mark.usefixtures("alone")
def test_unlabelled_texts_of_a_language_model_change_no_labelled_row():
    for name in ("neg", "pos", "unsup"):
        for number in range(40):
            write(f"d/{name}/{number}.txt", f"{name} text {number}")
    clf, lm = (sides(open_corpus("d", task=task, streaming=False)) for task in ("clf", "lm"))
    assert [text for text in lm["valid"] if "unsup" not in text] == clf["valid"] and len(clf["valid"]) == 8
    assert len(lm["valid"]) == 12


@pytest.mark.usefixtures("alone")
@MODES
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_not_divided(seed, streaming):
    draw = random.Random(seed)
    films = [f"film {n}" for n in range(40)] + [str(n) for n in range(20)]
    rows = [{"text": f"text {n}", "label": draw.choice("ab"), "film": draw.choice(films)} for n in range(400)]
    rows = [
        row | {"film": float(row["film"])} if row["film"].isdecimal() and draw.random() < 0.5 else row for row in rows
    ]
    rows += [{"text": f"alone {n}", "label": "a", "film": draw.choice([None, "", "  "])} for n in range(50)]
    for task in ("clf", "lm"):
        corpus = open_corpus(reviews(rows), task=task, group_column="film", valid=0.2, seed=seed, streaming=streaming)
        found = {name: whole(split)[2] for name, split in corpus.splits.items()}
        assert sorted(found["train"] + found["valid"]) == list(range(450))
        groups = {
            name: {str(rows[row]["film"]).removesuffix(".0") for row in numbers} for name, numbers in found.items()
        }
        assert not (groups["train"] & groups["valid"]) - {"None", "", "  "}
        assert (30 < len(found["valid"]) < 150) if streaming else 85 < len(found["valid"]) < 95
        assert any(row >= 400 for row in found["valid"]) and any(row >= 400 for row in found["train"])


@pytest.mark.usefixtures("alone")
def test_groups_that_cannot_be_kept_are_refused():
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "film": "one", "is_valid": n < 9} for n in range(40)]
    with pytest.raises(UserError, match="has no column author; its columns are text, label, film"):
        open_corpus(reviews(rows), task="clf", group_column="author")
    with pytest.raises(UserError, match="--group-column 'film' keeps groups together where a fraction is held out"):
        open_corpus(reviews(rows), task="clf", group_column="film")
    assert set(open_corpus(reviews(rows), task="clf", group_column="film", valid=0.1).splits) == {"train"}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("labels", "valid"), [("ab", 0), ("aab", 1), ("aabbb", 1), ("abcde", 0)])
def test_a_tiny_corpus_is_divided_or_has_no_validation(labels, valid):
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    corpus = open_corpus(reviews(rows), task="clf")
    assert corpus.label_names == sorted(set(labels)) and len(whole(corpus.splits["train"])[0]) == len(rows) - valid
    assert ("valid" in corpus.splits) == bool(valid)
    assert len(whole(open_corpus(reviews(rows), task="lm").splits["valid"])[0]) == 1  # needs no class in training


@pytest.mark.usefixtures("alone")
def test_rows_without_text_are_training_s():
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(60)] + [{"text": "", "label": "a"}] * 2
    corpus = open_corpus(reviews(rows), task="clf")
    for split in corpus.splits.values():
        whole(split)
    assert corpus.splits["train"].skipped == {"empty": 2} and not corpus.splits["valid"].skipped


@pytest.mark.usefixtures("alone")
def test_the_draw_is_remembered_and_is_part_of_the_fingerprint(monkeypatch):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "film": n % 7} for n in range(60)]
    access = Access(cache_dir=Path("memory"))

    def opened(**options) -> Corpus:
        return open_corpus(reviews(rows), task="clf", access=access, **options)

    first = opened()
    with monkeypatch.context() as patch:
        patch.setattr(
            "ulmfit.data.splits.Split.readable_rows", lambda *_, **__: pytest.fail("the texts are read again")
        )
        again = opened()
        assert again.fingerprint == first.fingerprint
    assert sides(again) == sides(first)
    (file,) = Path("memory/held-out").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    assert sides(opened()) == sides(first)
    others = [opened(seed=1), opened(valid=0.2), opened(group_column="film"),
              open_corpus(reviews(rows), task="clf", access=Access(scheme=2))]  # fmt: skip
    assert len({first.fingerprint, *(corpus.fingerprint for corpus in others)}) == 5
    Path("memory2").write_text("in the way")
    assert (
        open_corpus(reviews(rows), task="clf", access=Access(cache_dir=Path("memory2"))).fingerprint
        == first.fingerprint
    )


# Texts that are in two splits


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("most", [2**22, 40])
def test_texts_that_are_in_two_splits_are_counted(most, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_HASHES", most)
    train = [f"text {n}" for n in range(200)]
    parts = {
        "train": train,
        "valid": train[:30] + [f"other {n}" for n in range(70)],
        "test": ["text 3"] * 2 + ["new"] * 2,
    }
    for name, texts in parts.items():
        write(f"d/{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = open_corpus("d", task="lm")
    notes = duplicate_notes(corpus, Path("memory"), lambda: None)
    if most == 40:
        assert "valid: about " in notes[0] and " of 100 texts" in notes[0]
        low, high = 0.05, 0.6
        assert low < float(notes[0].split("(")[1].split("%")[0]) / 100 < high
    else:
        assert notes[0] == ("valid: 30 of 100 texts (30.0%) are also in training, which makes its scores too good")
    assert notes[1].startswith("test: 2 of 4 texts (50.0%)")
    monkeypatch.setattr(duplicates, "shared_texts", lambda *_: pytest.fail("the texts are read again"))
    assert duplicate_notes(corpus, Path("memory"), lambda: None) == notes


@pytest.mark.usefixtures("alone")
def test_a_drawn_split_has_no_text_of_training_but_that_of_groups_may():
    rows = [{"text": f"text {n % 50}", "label": "ab"[n % 2], "film": n % 20} for n in range(200)]
    assert duplicate_notes(open_corpus(reviews(rows), task="clf"), None, lambda: None) == []
    (note,) = duplicate_notes(open_corpus(reviews(rows), task="clf", group_column="film"), None, lambda: None)
    assert note.startswith("valid: 20 of 20 texts (100.0%)")
