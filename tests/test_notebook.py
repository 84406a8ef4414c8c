"""examples/imdb.ipynb: outputs of these cells and of no machine, names that are there; in the long tier, run anew."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
from pathlib import Path

import pytest

import ulmfit
from tests.learner_stand_in import Recorded, trains_nothing
from tests.notebook import ABSOLUTE, NOTEBOOK, cells_run, clean, digest, execute, pictures, source, texts_of
from ulmfit.training.result import read_metrics

MOST_BYTES = 700_000
LEAST_ACCURACY = 0.8  # on the validation reviews of the sample, of at most 0.955


@pytest.fixture
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def faults(notebook) -> list[str]:
    """What is wrong with the outputs of a notebook."""
    found = []
    cells = cells_run(notebook)
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells have not been run once, in order")
    if notebook["metadata"].get("ulmfit", {}).get("cells") != digest(notebook):
        found.append("a cell has changed since they were run")
    for cell in cells:
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"an error or a warning in its outputs: {source(cell)[:60]}")
    for cell in notebook["cells"]:
        for text in texts_of(cell):
            if place := ABSOLUTE.search(text):
                found.append(f"a path of one machine: {text[place.start() : place.start() + 60]}")
    return found


def test_its_outputs_are_those_of_its_cells_and_of_no_machine(notebook):
    assert faults(notebook) == [], "python -m tests.notebook runs it anew"
    assert NOTEBOOK.stat().st_size < MOST_BYTES and len(pictures(notebook)) == 3  # two searches, a confusion matrix
    assert any("<table" in text for cell in notebook["cells"] for text in texts_of(cell))
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(map(source, notebook["cells"]))):
        assert (NOTEBOOK.parent / target).exists(), target


def test_the_test_finds_what_is_wrong(notebook):
    for number, change in enumerate(
        (
            lambda cells: cells[1].update(execution_count=7),
            lambda cells: cells[1].update(source="1 + 1"),
            lambda cells: cells[1]["outputs"].append({"output_type": "error", "evalue": ""}),
            lambda cells: cells[1]["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": "/ho" + "me/me/x"}
            ),
        )
    ):
        changed = copy.deepcopy(notebook)
        change(cells_run(changed))
        assert len(faults(changed)) == 1, number
    stream = {"output_type": "stream", "name": "stdout", "text": "step 1/9  loss 1\nvalid after step 9:  loss 1\n"}
    noise, more = stream | {"name": "stderr"}, stream | {"text": "another line\n"}
    page = {"output_type": "execute_result", "data": {"text/html": "<b>a</b>", "text/plain": "A(...)"}}
    cell = {"cell_type": "code", "source": "a", "outputs": [stream, noise, more, page], "metadata": {"collapsed": True}}
    cleaned = clean({"cells": [cell], "metadata": {"kernelspec": {"name": "mine"}}})
    assert [text for cell in cleaned["cells"] for text in texts_of(cell)][1:] == [
        "valid after step 9:  loss 1\nanother line\n",
        "",
        "<b>a</b>",
    ]


@pytest.mark.slow
def test_its_cells_run(notebook, runs, reviews, tmp_path, monkeypatch):
    """All but the trainings, on a few reviews: every name, call and option is there."""
    monkeypatch.chdir(tmp_path)

    def result(link, task, lr_find):
        if lr_find:
            picture = tmp_path / "curve.png"
            picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))
            found = Recorded(link, None)
            found.picture = picture
            return found
        best, step, metrics = read_metrics(link)
        return ulmfit.TrainingResult(task, "done", step, link, link / "model", metrics, best)

    trains_nothing(monkeypatch, runs, result)
    names = {}
    for cell in cells_run(notebook):
        code = "\n".join(line for line in source(cell).splitlines() if not line.startswith("%"))
        tree = ast.parse(code)
        for node in ast.walk(tree):  # the short form of what a reader may type; no inner module
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ulmfit":
                assert node.attr in ulmfit.__all__, node.attr
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("ulmfit"), node.module
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if names.get("DATA", 0) is None:
            names["DATA"] = str(reviews)
            names["FOR_LM"]["threads"] = names["FOR_CLASSIFIER"]["threads"] = 1
    assert len(names["learn"].results) == 2 and len(names["clf"].results) == 4
    assert names["label"] in ("neg", "pos") and (Path("runs") / "imdb").is_dir()


@pytest.mark.skipif(not os.environ.get("ULMFIT_LONG"), reason="minutes; ULMFIT_LONG=1")
@pytest.mark.timeout(3600)
def test_it_runs_anew(notebook, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    again = nbformat.read(NOTEBOOK, as_version=4)
    for cell in cells_run(again):
        cell["outputs"], cell["execution_count"] = [], None
    clean(execute(again, tmp_path))
    assert faults(again) == []
    assert len(pictures(again)) == len(pictures(notebook))
    runs_of = {kind: sorted((tmp_path / "runs" / "imdb" / kind).glob("0*")) for kind in ("lm", "clf")}
    assert [len(found) for found in runs_of.values()] == [3, 5]  # fits, and a search each
    assert read_metrics(runs_of["clf"][-1])[2]["valid"]["accuracy"] > LEAST_ACCURACY
