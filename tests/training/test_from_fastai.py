"""docs/from-fastai.md for real: its Python in order, on a small folder in the layout of the post's data, with few steps."""

from __future__ import annotations

import dataclasses
import os
from itertools import islice

import pytest

import ulmfit
from tests.test_docs import blocks
from ulmfit.data import sample

pytestmark = pytest.mark.skipif(not os.environ.get("ULMFIT_LONG"), reason="minutes; ULMFIT_LONG=1")


def write_imdb(folder, number=24):
    """Reviews of the embedded sample as aclImdb: train and test with neg and pos, and train/unsup."""
    for row_number, row in enumerate(islice(sample.generate("train"), 3 * number)):
        part = ("train", "test", "unsup")[row_number % 3]
        place = folder / "train" / "unsup" if part == "unsup" else folder / part / sample.LABELS[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row_number}_7.txt").write_text(row["text"])


def test_the_page_runs(runs, tmp_path, monkeypatch):
    write_imdb(tmp_path / "aclImdb")
    (tmp_path / "wt103").symlink_to(runs.lm)
    monkeypatch.chdir(tmp_path)
    for name in ("train_language_model", "train_classifier"):
        train = getattr(ulmfit, name)

        def shorter(config, train=train):
            assert config.recipe == "blog"
            return train(dataclasses.replace(config, max_steps=8, batch_size=8, bptt=10))

        monkeypatch.setattr(ulmfit, name, shorter)
    seen = {}
    for code in blocks("docs/from-fastai.md", "python"):
        exec(compile(code, "from-fastai.md", "exec"), seen)
    assert seen["search"].suggestions and seen["result"].state == "done" and seen["label"] in ("neg", "pos")
    assert len(seen["learn"].results) == 2 and len(seen["clf"].results) == 4
    assert seen["tokenizer"].vocab[:9] == "xxunk xxpad xxbos xxeos xxfld xxmaj xxup xxrep xxwrep".split()
    begun = {path.name for path in (tmp_path / "runs" / "search").glob("*")}
    assert begun <= {"lr_find"}  # the curve, if it is drawn; no run
