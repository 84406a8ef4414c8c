"""Run by an installed fastai: loads what `export --to fastai` wrote, reads ids, and saves weights of its own.

    PEER/bin/python tests/model/fastai_peer.py FOLDER

FOLDER has lm/ and clf/, as exported, and ids.json: sizes, documents of ids, and the windows that the language model reads. Written are lm.npz,
clf.npz (logits), and trained/: a language model, an encoder and a classifier after a step of training in fastai, with
their vocabularies as fastai users save them, and their logits.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.text.all import (
    AWD_LSTM,
    BaseTokenizer,
    CategoryBlock,
    ColReader,
    DataBlock,
    TextBlock,
    awd_lstm_clas_config,
    awd_lstm_lm_config,
    language_model_learner,
    load_pickle,
    text_classifier_learner,
)  # fmt: skip

folder = Path(sys.argv[1])
told = json.loads((folder / "ids.json").read_text())
documents = [torch.tensor(document) for document in told["documents"]]
sizes = {"emb_sz": told["embedding"], "n_hid": told["hidden"], "n_layers": told["layers"]}
frame = pd.DataFrame({"text": ["a b c d e f g h"] * 40, "label": ["neg", "pos"] * 20})


def lm_learner(path, words):
    block = TextBlock.from_df("text", vocab=words, is_lm=True, tok=BaseTokenizer(), n_workers=0, seq_len=5)
    dls = DataBlock(block, get_x=ColReader("text")).dataloaders(frame, bs=4, num_workers=0)
    config = awd_lstm_lm_config | sizes
    return language_model_learner(dls, AWD_LSTM, config=config, path=path, pretrained=False)


def clf_learner(path, words):
    block = TextBlock.from_df("text", vocab=words, tok=BaseTokenizer(), n_workers=0)
    blocks = (block, CategoryBlock(vocab=["neg", "pos"]))
    data = DataBlock(blocks, get_x=ColReader("text"), get_y=ColReader("label"))
    dls = data.dataloaders(frame, bs=4, num_workers=0)
    return text_classifier_learner(
        dls, AWD_LSTM, config=awd_lstm_clas_config | sizes, path=path, pretrained=False, lin_ftrs=[told["head"]],
        seq_len=told["bptt"], max_len=told["max_len"],
    )  # fmt: skip


@torch.no_grad()
def lm_logits(learn):
    """Of two windows in a row, with the state carried: [2, T, V] each."""
    learn.model.eval()
    learn.model.reset()
    return {str(i): learn.model(torch.tensor(window))[0].numpy() for i, window in enumerate(told["windows"])}


@torch.no_grad()
def clf_logits(learn):
    """Of each document read alone."""
    learn.model.eval()
    found = {}
    for i, document in enumerate(documents):
        learn.model.reset()
        found[str(i)] = learn.model(document[None])[0][0].numpy()
    return found


words = load_pickle(folder / "lm" / "models" / "itos.pkl")
lm = lm_learner(folder / "lm", words)
lm.load("language_model", with_opt=False)
np.savez(folder / "lm.npz", **lm_logits(lm))
clf = clf_learner(folder / "clf", load_pickle(folder / "clf" / "models" / "itos.pkl"))
clf.load_encoder("encoder")  # fits too; the whole model comes next
clf.load("classifier", with_opt=False)
np.savez(folder / "clf.npz", **clf_logits(clf))

trained = folder / "trained"
lm.path = clf.path = trained
lm.fit(1, 1e-3)
lm.save("lm")  # with the optimizer, as fastai does
lm.save_encoder("encoder")
(trained / "models" / "itos.pkl").write_bytes(pickle.dumps(lm.dls.vocab))
np.savez(trained / "lm.npz", **lm_logits(lm))
clf.unfreeze()
clf.fit(1, 1e-3)
clf.save("clf", with_opt=False)
(trained / "models" / "dls_vocab.pkl").write_bytes(pickle.dumps(clf.dls.vocab))
np.savez(trained / "clf.npz", **clf_logits(clf))
