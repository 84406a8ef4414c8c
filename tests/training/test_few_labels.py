"""--labels: a seeded draw, even over the classes, and nothing but the drawn documents is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training import runs
from ulmfit import train_classifier
from ulmfit.errors import UserError
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.clf_training import balanced_draw

LABELS = np.repeat([0, 1, 2], [500, 60, 4])[np.random.RandomState(0).permutation(564)]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 12, 13, 100, 563, 564])
def test_the_draw_is_as_even_as_the_classes_allow(number):
    drawn = balanced_draw(LABELS, number, seed=3)
    assert len(set(drawn.tolist())) == number and (np.diff(drawn) > 0).all()
    counts, sizes = np.bincount(LABELS[drawn], minlength=3), np.bincount(LABELS)
    open_classes = counts[counts < sizes]
    assert len(open_classes) == 0 or open_classes.max() - open_classes.min() <= 1
    assert all(counts[c] == sizes[c] or counts[c] >= open_classes.max(initial=0) - 1 for c in range(3))


def test_more_labels_contain_fewer_and_another_seed_draws_others():
    few, many = (set(balanced_draw(LABELS, number, seed=3).tolist()) for number in (50, 51))
    assert few < many
    assert few != set(balanced_draw(LABELS, 50, seed=4).tolist())
    assert few == set(balanced_draw(LABELS, 50, seed=3).tolist())


def test_more_than_there_are_is_refused():
    with pytest.raises(UserError, match="--labels 565 is more than the 564"):
        balanced_draw(LABELS, 565, seed=0)


@pytest.mark.slow
def test_a_run_trains_on_the_drawn_documents_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    seen: set[int] = set()
    step = ClassifierTask.step

    def remember(self, engine, batch, number):
        seen.update(self._train.rows[batch.indices].tolist())
        return step(self, engine, batch, number)

    monkeypatch.setattr(ClassifierTask, "step", remember)
    train_classifier(runs.clf_config(tmp_path / "run", labels=10, max_steps=6))
    assert len(seen) == 10
    losses = [line["loss"] for line in runs.metrics(tmp_path / "run") if line.get("split") == "valid"]
    assert losses and not any("best" in line for line in runs.metrics(tmp_path / "run"))
