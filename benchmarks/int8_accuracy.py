"""What 8 bits cost a trained classifier: its accuracy and probabilities on labelled texts, beside those in fp32.

    ULMFIT_DATA=DATA python benchmarks/int8_accuracy.py --model RUN --texts 25000

RUN is a classifier of IMDb's reviews (train_clf.py --data DATA/imdb); texts are drawn from $ULMFIT_DATA/imdb's test
split. 100 of them are also read alone.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import side_by_side as sides

from ulmfit import TextClassifier

ALONE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run directory of a classifier of IMDb's reviews")
    parser.add_argument("--texts", type=int, default=5000, help="test reviews to draw (default 5000)")
    options = parser.parse_args()

    import pyarrow.parquet

    table = pyarrow.parquet.read_table(Path(os.environ["ULMFIT_DATA"], "imdb", "test.parquet"))
    rows = table.take(np.random.default_rng(0).choice(len(table), options.texts, replace=False))
    texts, labels = rows["text"].to_pylist(), np.array(rows["label"].to_pylist())
    print(sides.machine())
    found = {}
    for name in ("fp32", "int8"):
        model = TextClassifier.from_pretrained(options.model, device="cpu", int8=name == "int8", backend="torch")
        assert model.label_names == ["0", "1"], model.label_names
        alone = np.concatenate([model.probabilities([text]) for text in texts[:ALONE]])
        begun = time.process_time()
        found[name] = model.probabilities(texts)
        seconds = time.process_time() - begun
        far = np.abs(alone - found[name][:ALONE]).max(1)
        assert far.max() < (1e-3 if name == "int8" else 1e-6)
        right = (found[name].argmax(1) == labels).mean()
        print(
            f"{name}: accuracy {right:.4f} on {len(texts)} reviews, {seconds:.1f} CPU seconds with the tokenizer's; "
            f"{(far > 1e-6).sum()} of {ALONE} have other probabilities alone than in a batch (largest difference "
            f"{far.max():.1e})",
            flush=True,
        )
    difference = np.abs(found["fp32"] - found["int8"])[:, 0]
    print(
        f"int8 beside fp32: probabilities differ by {difference.mean():.1e} on average, "
        f"{np.quantile(difference, 0.99):.1e} at the 99th percentile, {difference.max():.1e} at most; "
        f"{(found['fp32'].argmax(1) == found['int8'].argmax(1)).mean():.2%} get the same label"
    )


if __name__ == "__main__":
    main()
