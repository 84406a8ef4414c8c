"""Parity with an installed fastai 2.8, both ways; ULMFIT_PEER names its Python (benchmarks/setup_peer.sh makes it)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit.cli import DONE, main
from ulmfit.model.pretrained import load_model

PEER = os.environ.get("ULMFIT_PEER")
pytestmark = pytest.mark.skipif(not PEER, reason="needs an environment with fastai, named by ULMFIT_PEER")
SCRIPT = Path(__file__).with_name("fastai_peer.py")
LENGTHS = [1, 2, 9, 19, 20, 21, 40, 70, 200, 700]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    """What the peer read and wrote. The models are trained by this package, tiny."""
    folder = tmp_path_factory.mktemp("peer")
    for run, name in ((runs.lm, "lm"), (runs.clf, "clf")):
        assert main(["export", "--model", str(run), "--output", str(folder / name), "--to", "fastai"]) == DONE
    (folder / "trained").mkdir()
    net, _, _ = load_model(runs.clf)
    random = np.random.RandomState(0)
    vocab = net.config.vocab_size
    told = {
        "embedding": net.config.embedding_size,
        "hidden": net.config.hidden_size,
        "layers": net.config.num_layers,
        "head": net.head_hidden,
        "bptt": net.bptt,
        "max_len": net.max_len,
        "documents": [random.randint(2, vocab, n).tolist() for n in LENGTHS],
        "windows": [random.randint(2, vocab, (2, 7)).tolist() for _ in range(2)],
    }
    (folder / "ids.json").write_text(json.dumps(told))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([PEER, str(SCRIPT), str(folder)], check=True, env=environment, cwd=folder, timeout=280)
    return folder


def same_lm(model, folder, logits):
    net, _, _ = load_model(model)
    told = json.loads((folder / "ids.json").read_text())
    theirs, worst = np.load(logits), 0.0
    state = net.init_state(2)
    for i, window in enumerate(told["windows"]):
        ids = torch.tensor(window)
        for t in range(ids.shape[1]):
            ours, _ = net.next_logits(ids[:, : t + 1], state)
            worst = max(worst, np.abs(ours.detach().numpy()[:, : theirs["0"].shape[2]] - theirs[str(i)][:, t]).max())
        _, state = net.next_logits(ids, state)
    print(f"language model: largest difference of a logit {worst:.1e}")
    assert worst < 2e-5


def same_clf(model, folder, logits):
    net, _, _ = load_model(model)
    told = json.loads((folder / "ids.json").read_text())
    theirs, worst = np.load(logits), 0.0
    for i, document in enumerate(told["documents"]):
        ours = net(torch.tensor([document]), [len(document)]).logits[0].detach().numpy()
        worst = max(worst, np.abs(ours - theirs[str(i)]).max())
    print(f"classifier: largest difference of a logit {worst:.1e}")
    assert worst < 2e-5


def test_fastai_reads_what_we_export(runs, folder):
    same_lm(runs.lm, folder, folder / "lm.npz")
    same_clf(runs.clf, folder, folder / "clf.npz")


def test_we_read_what_fastai_trained_further(folder, tmp_path, capsys):
    models = folder / "trained" / "models"
    for name, words in (("lm", "itos.pkl"), ("encoder", "itos.pkl"), ("clf", "dls_vocab.pkl")):
        assert main(["import-fastai", str(models / f"{name}.pth"), str(models / words), str(tmp_path / name)]) == DONE
    assert load_model(tmp_path / "clf")[2]["label_names"] == ["neg", "pos"]
    with capsys.disabled():
        same_lm(tmp_path / "lm", folder, folder / "trained" / "lm.npz")
        same_clf(tmp_path / "clf", folder, folder / "trained" / "clf.npz")
    whole, encoder = (load_model(tmp_path / name)[0].state_dict() for name in ("lm", "encoder"))
    assert all(torch.equal(encoder[name], whole[name]) for name in whole if name != "decoder_bias")
