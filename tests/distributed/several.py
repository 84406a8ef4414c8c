"""Several trainings in one process of a launch, and mistakes that rank 1 alone makes between them.

    torchrun --standalone --nproc_per_node 2 -m tests.distributed.several FOLDER [mistakes]

Nothing is reset between the trainings. Each prints what the test looks at, by rank 0 or, of a mistake, by both.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

from accelerate.state import AcceleratorState, PartialState

from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.errors import UserError
from ulmfit.run import checkpoint
from ulmfit.training.loop import Loop

RANK = int(os.environ.get("RANK", 0))
LM = {"preset": "tiny", "max_steps": 4}
CLF = {"max_steps": 4}


def pipeline(folder: Path) -> None:
    """The four trainings whose models the test compares: both tasks and three precisions."""
    data = {"data": str(folder / "reviews.csv")}
    train_language_model(runs.lm_config(folder / "lm", precision="fp64", **LM, **data))
    encoder = {"encoder": str(folder / "lm")}
    train_classifier(runs.clf_config(folder / "clf", precision="fp64", **CLF, **data, **encoder))
    train_language_model(runs.lm_config(folder / "bf16", precision="bf16", **LM, **data))
    train_classifier(runs.clf_config(folder / "again", precision="fp64", **CLF, **data, **encoder))
    assert not AcceleratorState._shared_state and not PartialState._shared_state


def mistakes(folder: Path) -> None:
    """Each is made by rank 1 alone; both ranks are told, and the next training works."""
    data = {"data": str(folder / "reviews.csv")}
    good = LM | data
    content = (folder / "reviews.csv").read_bytes()
    if RANK == 1:  # its own copies, as on the disk of another node
        (folder / "copy.csv").write_bytes(content)
        os.utime(folder / "copy.csv", (1_000_000_000, 1_000_000_000))
        (folder / "other.csv").write_bytes(content[:-4] + b"x" + content[-3:])
    for name, wrong in {
        "data": {"data": str(folder / "nowhere.csv")},
        "init": {"init": str(folder / "nowhere"), "preset": None},
        "option": {"clip": -1.0},
        "device": {"precision": "fp16"},
        "other data": {"data": str(folder / "other.csv")},
        "other options": {"alpha": 5.0, "data": str(folder / "copy.csv")},
    }.items():
        output = folder / name
        options = good | wrong if RANK == 1 else good
        try:
            train_language_model(runs.lm_config(output, **options))
        except UserError as error:
            print(f"mistake {name} on rank {RANK}: rank {error.rank}: {error}", flush=True)
        assert not output.exists(), output
        train_language_model(runs.lm_config(folder / f"after-{name}", **good | {"max_steps": 1}))


def damaged_checkpoint(folder: Path) -> None:
    """Which rank 0 alone reads."""
    config = runs.lm_config(folder / "damaged", data=str(folder / "reviews.csv"), **LM)
    assert train_language_model(config, runs.StopAtCall(1)).state == "preempted"
    with mock.patch.object(checkpoint, "load", side_effect=UserError("the checkpoint is damaged")):
        try:
            train_language_model(config)
        except UserError as error:
            print(f"mistake checkpoint on rank {RANK}: rank {error.rank}: {error}", flush=True)


def mistake_in_training(folder: Path) -> None:
    """As of a shard that one rank reads: the others wait for it in the middle of a step."""
    step = Loop._step

    def stumbling(loop: Loop, batch: object) -> object:
        if RANK == 1 and loop.position.step == 2:
            raise UserError("shard 7 is damaged; copy it again")
        return step(loop, batch)

    data = {"data": str(folder / "reviews.csv")}
    with mock.patch.object(Loop, "_step", stumbling):
        try:
            train_language_model(runs.lm_config(folder / "stumbled", **LM, **data))
        except UserError as error:
            print(f"mistake training on rank {RANK}: rank {error.rank}: {error}", flush=True)
    try:
        train_language_model(runs.lm_config(folder / "next", **LM, **data))
    except UserError as error:
        print(f"mistake next on rank {RANK}: {error}", flush=True)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    pipeline(place)
    if "mistakes" in sys.argv:
        mistakes(place)
        damaged_checkpoint(place)
        mistake_in_training(place)
    print(f"end of rank {RANK}", flush=True)
