"""Small tasks by system: accuracy on the test split, minutes to train, milliseconds a document, megabytes on disk.

    python benchmarks/task_cost.py --tasks TASKS --runs RUNS [--task cr mr trec] [--systems ours ours8 tfidf minilm]

TASKS holds a folder a task with train.csv, valid.csv and test.csv (columns text, label). Ours is not trained here:
RUNS/TASK is a finished `ulmfit fit --data TASKS/TASK`. `ours8` is that classifier exported in 8 bits (`ulmfit export --to
onnx --int8`). The rivals are trained here; their strength is chosen on valid (see rivals.py). Everything runs in one
thread, and times are of the CPU, so that other programs matter little: in a batch, the first `--rows` test texts
together; alone, 50 of them one by one. Megabytes count what a prediction reads: weights, vocabulary, tokenizer, embeddings.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(name, "1" if name != "TOKENIZERS_PARALLELISM" else "false")

import numpy as np  # noqa: E402  # the number of threads is read on import
import rivals  # noqa: E402
import side_by_side as sides  # noqa: E402

ALONE = 50
Table = tuple[list[str], np.ndarray]
Predict = Callable[[Sequence[str]], Any]


def read(file: Path) -> Table:
    """Texts and labels."""
    with open(file, encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def megabytes(*paths: Path) -> float:
    """Size of files and folders."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def milliseconds(predict: Predict, texts: list[str], rows: int) -> tuple[float, float]:
    """CPU milliseconds a document: in a batch, and alone. The second of two passes counts."""
    found = []
    for parts in ([texts[:rows]], [[text] for text in texts[:ALONE]]):
        predict(parts[0])
        begun = time.process_time()
        for part in parts:
            predict(part)
        found.append(1e3 * (time.process_time() - begun) / sum(map(len, parts)))
    return found[0], found[1]


def ours(folder: Path, run: Path, bits: int, rows: int) -> dict[str, Any]:
    """Figures of a finished job. Its accuracy in fp32 is the one it was scored with; in 8 bits it is read again."""
    from ulmfit import TextClassifier
    from ulmfit.cli import main as command

    summary = json.loads((run / "summary.json").read_text())
    texts, labels = read(folder / "test.csv")
    with tempfile.TemporaryDirectory() as place:
        model = run / "model"
        if bits == 8:
            model = Path(place) / "served"
            command(["export", "--model", str(run), "--to", "onnx", "--int8", "--output", str(model)])
        classifier = TextClassifier.from_pretrained(model, device="cpu")
        batch, alone = milliseconds(classifier.predict, texts, rows)
        accuracy = summary["systems"]["ulmfit"]["test"]["accuracy"]
        if bits == 8:
            accuracy = float(np.mean([one.label for one in classifier.predict(texts)] == labels))
        return {"accuracy": accuracy, "minutes": summary["minutes"], "batch": batch, "alone": alone,
                "megabytes": megabytes(model)}  # fmt: skip


def rival(name: str, folder: Path, rows: int, few: int | None) -> dict[str, Any]:
    """Figures of a rival, trained here; on `few` rows only where its cost is wanted but not its accuracy."""
    train, valid, (texts, labels) = (read(folder / f"{split}.csv") for split in ("train", "valid", "test"))
    if few:
        train, valid = ((part[0][:few], part[1][:few]) for part in (train, valid))
    begun = time.process_time()
    predict = rivals.RIVALS[name](*train, *valid)
    minutes = None if few else (time.process_time() - begun) / 60
    accuracy = None if few else float(np.mean(predict(texts) == labels))
    size = sum(len(pickle.dumps(cell.cell_contents)) for cell in predict.__closure__ or () if name == "tfidf") / 1e6
    if name == "minilm":
        from all_minilm_l6_v2 import get_model_path

        size = megabytes(Path(str(get_model_path())))
    if name == "minilm":
        plain = predict

        def predict(new: Sequence[str]) -> np.ndarray:
            rivals._EMBEDDED.clear()  # it remembers texts, for the sake of several draws of labels
            return plain(new)

    batch, alone = milliseconds(predict, texts, rows)
    return {"accuracy": accuracy, "minutes": minutes, "batch": batch, "alone": alone, "megabytes": size}


def main() -> None:
    """Print a line of JSON for each task and system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--task", nargs="+", default=["cr", "mr", "trec"])
    parser.add_argument("--systems", nargs="+", choices=("ours", "ours8", "tfidf", "minilm"), default=["ours", "tfidf"])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--few", type=int, help="train rivals on so many rows: their cost of a prediction alone")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(sides.machine())
    for task in options.task:
        for system in options.systems:
            if system.startswith("ours"):
                found = ours(options.tasks / task, options.runs / task, 8 if system.endswith("8") else 32, options.rows)
            elif modules := rivals.missing(system):
                print(f"{system} is left out: {', '.join(modules)} is not installed")
                continue
            else:
                found = rival(system, options.tasks / task, options.rows, options.few)
            print(json.dumps({"task": task, "system": system} | found), flush=True)


if __name__ == "__main__":
    main()
