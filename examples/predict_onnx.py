"""Predict with a classifier that `ulmfit export --to onnx` wrote: onnxruntime, tokenizers and numpy, nothing else.

python examples/predict_onnx.py EXPORTED "What a film!" "Two hours of my life"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers

folder = Path(sys.argv[1])
texts = [text.encode(errors="replace").decode() for text in sys.argv[2:]] or sys.exit(__doc__)  # it may be no UTF-8
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
labels, thresholds = config["label_names"], config.get("thresholds")  # thresholds: a text may have several labels
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # a text is no work for several
session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
lengths = np.array([len(row) for row in rows], np.int64)
tokens = np.zeros((len(rows), lengths.max()), np.int64)
for i, row in enumerate(rows):
    tokens[i, : len(row)] = row  # what stands after a text's length is not read
for probabilities in session.run(["probabilities"], {"tokens": tokens, "lengths": lengths})[0]:
    chosen = [probabilities.argmax()] if thresholds is None else np.flatnonzero(probabilities >= thresholds)
    print("\t".join(f"{labels[i]}\t{probabilities[i]:.4f}" for i in chosen))
