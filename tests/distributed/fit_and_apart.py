"""The whole job and the separate trainings, one after the other in one launch.

    torchrun --standalone --nproc_per_node 2 -m tests.distributed.fit_and_apart FOLDER

FOLDER holds reviews.csv. Writes FOLDER/fit, FOLDER/lm and FOLDER/clf, and FOLDER/soft2 from soft.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.fit_config import FitConfig
from ulmfit.training.fit import fit

COMMON = {"log_every": 1, "save_every": 0}
LM = {"max_steps": 6, "batch_size": 8, "bptt": 12} | COMMON
CLF = {"max_steps": 6, "batch_size": 8, "bptt": 24} | COMMON
SHARED = {"seed": 3, "threads": 1, "samples": False}


def config(folder: Path, name: str, **options) -> FitConfig:
    return FitConfig(**{"data": str(folder / "reviews.csv"), "output_dir": str(folder / name), "preset": "tiny",
                        "lm": LM, "clf": CLF, "baseline": False, "ngrams": False} | SHARED | options)  # fmt: skip


def apart(folder: Path) -> None:
    """The two separate trainings with the same options."""
    data = {"data": str(folder / "reviews.csv")} | SHARED
    train_language_model(runs.lm_config(folder / "lm", preset="tiny", **LM, **data))
    train_classifier(runs.clf_config(folder / "clf", encoder=str(folder / "lm"), **CLF, **data))


def soft(folder: Path, name: str) -> Path:
    """A classifier on probabilities, in float64. Returns its directory."""
    options = CLF | {"precision": "fp64", "preset": "tiny", "probability_columns": "neg,pos", "threads": 1}
    return train_classifier(runs.clf_config(folder / name, data=str(folder / "soft.csv"), **options)).run_dir


if __name__ == "__main__":
    place = Path(sys.argv[1])
    soft(place, "soft2")
    assert fit(config(place, "fit", ensemble=2, ngrams=True)).state == "done"
    apart(place)
    sys.stdout.write("end\n")  # at once: print may write the line end apart, and two ranks write
