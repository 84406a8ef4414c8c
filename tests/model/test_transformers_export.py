"""export --to transformers: the same logits; ULMFIT_TRANSFORMERS names a Python that has transformers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ulmfit.cli import DONE, USER_ERROR, main
from ulmfit.data import sample
from ulmfit.inference import TextClassifier
from ulmfit.model import transformers_export
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.pretrained import load_model, save_model
from ulmfit.tokenizer.tokenizer import Tokenizer

PEER = os.environ.get("ULMFIT_TRANSFORMERS")
SCRIPT = Path(__file__).with_name("transformers_peer.py")
WORDS = "the film was a great story and I liked its actors but not that music ".split()
TEXTS = [
    "An incredibly nice breath of fresh air",
    "",
    "It was GREAT!!! sooooo good<br />the the the the end",
    "Xxbos xxpad\n\nxxunk,xxbos  two  spaces xxmaj xxpad",
    "xxpad xxunk of xxbos and wordxxpad xxunknown XXPAD xxpadding",
    "na\u00efve caf\u00e9 \ufdd1 \u4e2d\u6587 \U0001f600 \r\n\t end",
    " ".join(WORDS[i % len(WORDS)] for i in range(700)),
    " ".join(WORDS[(i * i) % len(WORDS)] for i in range(5000)),
]


def variants(runs, folder):
    """By name, model folders: as trained; backwards, calibrated, with few pooled tokens; with several labels a text."""
    net, tokenizer, config = load_model(runs.clf)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_model(folder / "plain", net, tokenizer, config)
    settings = {"bptt": 7, "max_len": 30, "head_hidden": net.head_hidden}
    other = ClassifierNet(net.config, net.num_classes, **settings)
    other.load_state_dict(net.state_dict())
    save_model(folder / "backwards", other, tokenizer, config | {"backwards": True, "temperature": 1.7})
    several = ClassifierNet(net.config, net.num_classes, multi_label=True, **settings)
    several.load_state_dict(net.state_dict())
    save_model(folder / "several", several, tokenizer, config | {"thresholds": [0.4, 0.6]})
    return ["plain", "backwards", "several"]


@pytest.fixture
def code(monkeypatch):
    """The copied file, on a stand-in of the three names of transformers that it uses."""

    class PretrainedConfig:
        problem_type = None

        def __init__(self, **kwargs):
            self.__dict__.update(kwargs)
            self.num_labels = len(kwargs["id2label"])

    class PreTrainedModel(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def post_init(self):
            pass

    outputs = types.ModuleType("transformers.modeling_outputs")
    outputs.SequenceClassifierOutput = types.SimpleNamespace
    package = types.ModuleType("transformers")
    package.PretrainedConfig, package.PreTrainedModel = PretrainedConfig, PreTrainedModel
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.modeling_outputs", outputs)
    module = types.ModuleType("modeling_ulmfit")
    source = Path(transformers_export.__file__).with_name("transformers_code.py").read_text()
    exec(compile(source, "modeling_ulmfit.py", "exec"), module.__dict__)
    return module


def expected_logits(model, texts):
    net, ids = model.net, model.tokenizer.encode(texts)
    step = -1 if model.config.get("backwards") else 1
    with torch.no_grad():
        rows = [net(torch.from_numpy(row[::step].astype(np.int64))[None], [len(row)]).logits[0] for row in ids]
    return torch.stack(rows) / model.config.get("temperature", 1.0)


@pytest.mark.slow
def test_the_copied_code_gives_the_same_logits(runs, tmp_path, code, capsys):
    for name in variants(runs, tmp_path):
        out = tmp_path / f"{name}-out"
        assert main(["export", "--model", str(tmp_path / name), "--output", str(out), "--to", "transformers"]) == DONE
        assert {file.name for file in out.iterdir()} == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modeling_ulmfit.py", "README.md"
        }  # fmt: skip
        config = code.UlmfitConfig(**json.loads((out / "config.json").read_text()))
        model = code.UlmfitForSequenceClassification(config).eval()
        model.load_state_dict(safetensors.torch.load_file(out / "model.safetensors"))
        classifier = TextClassifier.from_pretrained(tmp_path / name, backend="torch", device="cpu")
        ids = [torch.from_numpy(row.astype(np.int64)) for row in classifier.tokenizer.encode(TEXTS)]
        longest = max(map(len, ids))
        for left in (True, False):
            tokens = torch.ones(len(ids), longest, dtype=torch.long)
            mask = torch.zeros_like(tokens)
            for row, own, document in zip(tokens, mask, ids, strict=True):
                place = slice(longest - len(document), None) if left else slice(len(document))
                row[place], own[place] = document, 1
            with torch.no_grad():
                logits = model(tokens, mask).logits
            torch.testing.assert_close(logits, expected_logits(classifier, TEXTS), rtol=0, atol=2e-5)
            assert code.WINDOW < longest
        labels = torch.zeros(len(ids), 2) if name == "several" else torch.zeros(len(ids), dtype=torch.long)
        model(tokens, mask, labels=labels).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    card = (tmp_path / "plain-out" / "README.md").read_text()
    assert "library_name: transformers" in card and "trust_remote_code=True" in card


def test_only_classifiers_are_exported(runs, tmp_path, capsys):
    words = ["export", "--output", str(tmp_path / "out"), "--to", "transformers", "--model"]
    assert main([*words, str(runs.lm)]) == USER_ERROR
    assert "--to transformers is for classifiers" in capsys.readouterr().err
    assert main([*words, str(runs.clf), "--model", str(runs.clf)]) == USER_ERROR
    assert "exports one model" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.skipif(not PEER, reason="needs an environment with transformers, named by ULMFIT_TRANSFORMERS")
def test_an_installed_transformers_loads_it(runs, tmp_path, capsys):
    (tmp_path / "peer").mkdir()
    for name in variants(runs, tmp_path):
        words = ["export", "--model", str(tmp_path / name), "--output", str(tmp_path / "peer" / name)]
        assert main([*words, "--to", "transformers"]) == DONE
    tokenizers = {}
    for rules, subword in itertools.product(("fastai1", "fastai2"), (None, "unigram", "bpe")):
        texts = [row["text"] for row in itertools.islice(sample.generate("train"), 100)]
        tokenizer = Tokenizer.train(texts, rules=rules, subword=subword, vocab_size=400, min_freq=1)
        folder = tmp_path / "peer" / "tokenizers" / f"{rules}-{subword}"
        folder.mkdir(parents=True)
        tokenizer.save(folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps(transformers_export.tokenizer_config(tokenizer)))
        tokenizers[folder.name] = [row.tolist() for row in tokenizer.encode(TEXTS)]
    (tmp_path / "peer" / "texts.json").write_text(json.dumps(TEXTS))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run([PEER, str(SCRIPT), "peer"], check=True, env=environment, cwd=tmp_path, timeout=280)
    found = json.loads((tmp_path / "peer" / "found.json").read_text())
    assert found["tokenizers"] == tokenizers
    for name in ("plain", "backwards", "several"):
        model = TextClassifier.from_pretrained(tmp_path / name, backend="torch", device="cpu")
        assert found[name]["ids"] == [row.tolist() for row in model.tokenizer.encode(TEXTS)]
        logits = expected_logits(model, TEXTS).numpy()
        worst = {way: np.abs(np.array(found[name][way]) - logits).max() for way in ("alone", "left", "right")}
        probabilities = model.probabilities(TEXTS)
        for way in ("pipeline", "in_batches"):
            scores = [{each["label"]: each["score"] for each in row} for row in found[name][way]]
            rows = np.array([[row[label] for label in model.label_names] for row in scores])
            worst[way] = np.abs(rows - probabilities).max()
        with capsys.disabled():
            told = ", ".join(f"{way} {value:.1e}" for way, value in worst.items())
            print(f"transformers {found['transformers']}, {name}: largest differences {told}")
        assert max(worst.values()) < 2e-5
