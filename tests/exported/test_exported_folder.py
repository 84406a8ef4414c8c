"""An exported classifier in use: written by the command line, read without torch, refused where it does not fit."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ulmfit
from ulmfit import UserError
from ulmfit.cli import main

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["bad", "A good film. " * 200, "It was not bad at all<br />but long", "THE END " * 30, "a\n\nb", "\u4e2d\u6587"]


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """The classifier of `runs` exported in fp32 and in 8 bits."""
    folder = tmp_path_factory.mktemp("exports")
    assert main(["export", "--model", str(runs.clf), "--to", "onnx", "--output", str(folder / "32")]) == 0
    assert main(["export", "--model", str(runs.clf), "--to", "onnx", "--int8", "--output", str(folder / "8")]) == 0
    return folder


def probabilities(model, texts=TEXTS):
    return np.stack([prediction.probabilities for prediction in model.predict(texts)])


def test_an_export_predicts_what_the_run_predicts(runs, exports):
    expected = probabilities(ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch"))
    for name, near in (("32", 1e-5), ("8", 0.02)):
        model = ulmfit.TextClassifier.from_pretrained(exports / name)
        assert model.net is None and model.label_names == ["neg", "pos"]
        np.testing.assert_allclose(probabilities(model), expected, atol=near)
    assert sorted(file.name for file in (exports / "8").iterdir()) == ["config.json", "model.onnx", "tokenizer.json"]
    assert json.loads((exports / "8" / "config.json").read_text())["exported"] == {"bits": 8, "format": "onnx"}
    sizes = [(exports / name / "model.onnx").stat().st_size for name in ("8", "32")]
    assert sizes[0] < 0.4 * sizes[1]


def test_neither_the_command_nor_the_example_imports_torch(exports, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("text\na good film\nbad\n")
    script = (
        "import sys; from ulmfit.cli import main; "
        "codes = [main(['predict', '--model', sys.argv[1], *words]) for words in (['a good film'], ['--data', sys.argv[2]])]; "
        "sys.stdout.flush(); assert codes == [0, 0], codes; assert 'torch' not in sys.modules; "
        "import os; assert 'USE_TORCH' not in os.environ"
    )
    command = [sys.executable, "-c", script, str(exports / "32"), str(table)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    example = [sys.executable, str(ROOT / "examples" / "predict_onnx.py"), str(exports / "32"), "a good film", "bad"]
    shown = subprocess.run(example, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == shown.stdout.splitlines()[0] == lines[1].partition("\t")[2]
    assert len(subprocess.check_output([*example[:3], b"caf\xe9"]).splitlines()) == 1
    without = subprocess.run(example[:3], capture_output=True, text=True)
    assert without.returncode == 1 and "python examples/predict_onnx.py EXPORTED" in without.stderr


def test_the_example_is_as_short_as_promised_and_stands_alone():
    source = (ROOT / "examples" / "predict_onnx.py").read_text()
    assert len(source.splitlines()) <= 30 and "ulmfit" not in source.partition('"""\n\n')[2]


def test_auto_takes_onnx_for_few_texts_and_torch_for_many(runs, monkeypatch):
    model = ulmfit.TextClassifier.from_pretrained(runs.clf)
    read = []
    for kind in ("ulmfit.exported.reader.OnnxReader", "ulmfit.parallel_inference.TorchReader"):
        module, _, name = kind.rpartition(".")
        cls = getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
        plain = cls.probabilities
        monkeypatch.setattr(
            cls, "probabilities", lambda self, rows, plain=plain, name=name: read.append(name) or plain(self, rows)
        )
    few = probabilities(model)
    many = probabilities(model, TEXTS * 4)
    assert read == ["OnnxReader", "TorchReader"]
    np.testing.assert_allclose(many[: len(few)], few, atol=1e-5)
    int8 = ulmfit.TextClassifier.from_pretrained(runs.clf, int8=True)
    np.testing.assert_allclose(probabilities(int8, TEXTS * 4)[: len(few)], probabilities(int8), atol=1e-6)
    assert read[2:] == ["OnnxReader", "OnnxReader"]


def test_auto_is_torch_where_onnx_is_not_installed(runs, monkeypatch):
    monkeypatch.setattr("ulmfit.inference.is_installed", lambda: False)
    expected = probabilities(ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch"))
    for int8 in (False, True):
        model = ulmfit.TextClassifier.from_pretrained(runs.clf, int8=int8)
        found = probabilities(model)
        assert model._few is None and type(model._all).__name__ == "TorchReader"
        np.testing.assert_allclose(found, expected, atol=0.02 if int8 else 1e-6)


def test_a_model_folder_is_never_written_into(runs, tmp_path):
    folder = shutil.copytree(runs.clf / "model", tmp_path / "model")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    for options in ({}, {"int8": True}, {"backend": "onnx"}):
        ulmfit.TextClassifier.from_pretrained(folder, **options).predict("a good film")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("source, options", [
    ("32", {}), ("8", {}), ("run", {}), ("run", {"int8": True}), ("run", {"backend": "onnx"}),
    ("run", {"int8": True, "backend": "torch"}),
])  # fmt: skip
def test_models_are_pickled_copied_and_shared_by_threads(runs, exports, tmp_path, source, options):
    path = runs.clf if source == "run" else shutil.copytree(exports / source, tmp_path / source)
    model = ulmfit.TextClassifier.from_pretrained(path, **options)
    expected = probabilities(model)
    stored = pickle.dumps(model)
    if source != "run":
        shutil.rmtree(path)  # what was loaded needs its files no longer
    for other in (pickle.loads(stored), copy.deepcopy(model) if source == "run" else model):
        np.testing.assert_array_equal(probabilities(other), expected)
    fresh = pickle.loads(stored)
    with ThreadPoolExecutor(8) as executor:
        for found in executor.map(probabilities, [fresh] * 24):
            np.testing.assert_array_equal(found, expected)


def test_what_does_not_fit_is_refused(runs, exports, tmp_path, capsys):
    load = ulmfit.TextClassifier.from_pretrained
    for call, words in (
        (lambda: load(exports / "32", backend="torch"), "which torch cannot read; give the run"),
        (lambda: load(exports / "32", device="cuda"), "runs on the CPU and not on cuda"),
        (lambda: load(exports / "32", int8=True), "exported in fp32; export it with --int8"),
        (lambda: load(runs.clf, backend="tensorrt"), "backend is 'tensorrt'; give one of auto, onnx, torch"),
        (lambda: ulmfit.LanguageModel.from_pretrained(exports / "32"), "holds an exported classifier"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    for words, message in (
        (["--model", str(runs.lm), "--to", "onnx"], "is a language model"),
        (["--model", str(runs.clf), "--to", "onnx", "--bits", "8"], "give --int8"),
        (["--model", str(runs.clf), "--int8"], "give --bits 8"),
        (["--model", str(runs.clf), "--model", str(runs.clf), "--to", "fastai"], "exports one model, and these are 2"),
    ):
        assert main(["export", *words, "--output", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def with_outputs(graph: bytes, change: Callable[[list], object]) -> bytes:
    import onnx

    model = onnx.load_from_string(graph)
    outputs = list(model.graph.output)
    change(outputs)
    model.graph.ClearField("output")
    model.graph.output.extend(outputs)
    return model.SerializeToString()


def test_a_damaged_export_is_refused_in_one_sentence(exports, tmp_path):
    def damaged(name, content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(exports / "32", folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        return folder

    whole = (exports / "32" / "model.onnx").read_bytes()
    config = json.loads((exports / "32" / "config.json").read_text())
    for name, content, words in (
        ("model.onnx", whole[: len(whole) // 2], "cannot be read by ONNX Runtime"),
        ("model.onnx", b"", "cannot be read by ONNX Runtime"),
        ("config.json", None, "cannot be read"),
        ("config.json", b"[]", "label_names in .* is not a list"),
        ("config.json", json.dumps(config | {"label_names": ["a"]}).encode(), "2 classes and config.json names 1"),
        ("config.json", json.dumps(config | {"vocabulary": "0"}).encode(), "has other words"),
        ("config.json", json.dumps(config | {"temperature": 10**400}).encode(), "none of a classifier"),
        ("config.json", json.dumps(config | {"text_columns": [5]}).encode(), "text_columns in .* is not a list"),
        ("model.onnx", with_outputs(whole, lambda outputs: outputs.reverse()), "is not an exported classifier"),
        ("tokenizer.json", None, "cannot read the tokenizer"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            ulmfit.TextClassifier.from_pretrained(damaged(name, content))
        assert "\n" not in str(refused.value)
