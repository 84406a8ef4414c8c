"""What 8 bits cost a trained classifier in ONNX Runtime: accuracy and probabilities beside fp32, and both beside torch.

    python benchmarks/onnx_accuracy.py --model RUN --data REVIEWS.csv --texts 2000

The table has the columns text and label. Texts are read one at a time, and some of them also in batches.
"""

from __future__ import annotations

import argparse
import csv
import time

import numpy as np
import side_by_side as sides

from ulmfit import TextClassifier
from ulmfit.exported.graph import Weights, build
from ulmfit.exported.reader import OnnxReader

ALONE = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run directory of a classifier")
    parser.add_argument("--data", required=True, help="labelled texts, .csv")
    parser.add_argument("--texts", type=int, default=2000, help="rows to read (default 2000)")
    options = parser.parse_args()

    csv.field_size_limit(2**30)
    with open(options.data, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[: options.texts]
    model = TextClassifier.from_pretrained(options.model, device="cpu", backend="torch")
    labels = np.array([model.label_names.index(row["label"]) for row in rows])
    texts = [row["text"] for row in rows]
    documents = model.tokenizer.encode(texts)
    assert model.net is not None
    tensors = {name: tensor.numpy() for name, tensor in model.net.state_dict().items()}
    print(sides.machine())
    found = {"torch fp32": model.probabilities(texts)}
    for name, bits in (("onnx fp32", 32), ("onnx int8", 8)):
        reader = OnnxReader(build(Weights.of(tensors, model.config), bits))
        begun = time.process_time()
        found[name] = reader.probabilities(documents)
        seconds = time.process_time() - begun
        alone = np.concatenate([reader.probabilities([document]) for document in documents[:ALONE]])
        far = np.abs(alone - found[name][:ALONE]).max()
        print(f"{name}: {seconds:.1f} CPU seconds; alone and in a batch differ by {far:.1e} at most", flush=True)
    found["torch int8"] = TextClassifier.from_pretrained(
        options.model, device="cpu", int8=True, backend="torch"
    ).probabilities(texts)
    plain = found["torch fp32"]
    for name, rows_found in found.items():
        far = np.abs(rows_found - plain).max(1)
        same = (rows_found.argmax(1) == plain.argmax(1)).mean()
        print(
            f"{name}: accuracy {(rows_found.argmax(1) == labels).mean():.4f} on {len(texts)} texts, same label as torch "
            f"fp32 {same:.2%}; probabilities differ by {far.mean():.1e} on average, {np.quantile(far, 0.99):.1e} at the "
            f"99th percentile, {far.max():.1e} at most"
        )


if __name__ == "__main__":
    main()
