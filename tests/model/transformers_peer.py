"""Run by an installed transformers, without ulmfit: loads what `export --to transformers` wrote and reads texts.

    PYTHON tests/model/transformers_peer.py FOLDER

FOLDER has folders of exported models, tokenizers/ with tokenizers alone, and texts.json. Written is found.json: by model the ids, the logits of the texts
read alone, in a batch with the padding on either side, and the labels and scores of the pipeline.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

assert importlib.util.find_spec("ulmfit") is None, "the folder is to be loaded without this package"
folder = Path(sys.argv[1])
texts = json.loads((folder / "texts.json").read_text())
found = {"transformers": transformers.__version__}
found["tokenizers"] = {
    path.name: PreTrainedTokenizerFast.from_pretrained(path)(texts)["input_ids"]
    for path in sorted((folder / "tokenizers").iterdir())
}
for path in sorted(path for path in folder.iterdir() if (path / "model.safetensors").exists()):
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)
    assert not model.training
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in texts]
        batches = {}
        for side in ("left", "right"):
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
            batches[side] = model(**batch).logits.tolist()
    classify = pipeline("text-classification", model=str(path), trust_remote_code=True, top_k=None)
    labels = torch.zeros(len(texts), dtype=torch.long)
    if model.config.problem_type == "multi_label_classification":
        labels = torch.zeros(len(texts), model.config.num_labels)
    model(**batch, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(path / "again")
    found[path.name] = {
        "ids": tokenizer(texts)["input_ids"],
        "alone": alone,
        **batches,
        "pipeline": classify(texts),
        "in_batches": classify(texts, batch_size=4),
        "decoded": tokenizer.decode(tokenizer(texts[0])["input_ids"]),
    }
(folder / "found.json").write_text(json.dumps(found))
