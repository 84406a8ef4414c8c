"""Runs a command whose file system fails at one call, and checks what must hold after any fault.

One sentence or a clean end; every checkpoint that has its final name is whole; the same command, started again on a
file system in order, ends with the bits of a run that met no fault, and leaves nothing behind.

    python -m tests.faults.drill                       every call of every task: hours
    python -m tests.faults.drill --task clf --share 20
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from tests.faults.layer import FAULTS, LASTING, Layer
from tests.training import runs
from ulmfit.cli import DONE, FAILED, USER_ERROR, main
from ulmfit.distributed.stop import StopRequest
from ulmfit.run import checkpoint
from ulmfit.run.status import read_status

COMMON = {"preset": "tiny", "max_steps": 4, "save_every": 2, "log_every": 1, "eval_every": 2, "keep": 2, "threads": 1}
TRAINING = {
    "lm": {"batch_size": 8, "bptt": 10},
    "stream": {"batch_size": 8, "bptt": 10, "streaming": True},
    "clf": {"batch_size": 8, "bptt": 20, "encoder": "none"},
}

TASKS = [*TRAINING, "predict"]


class Drill:
    """A task in a folder of its own: one reference run, then as many runs with faults as wanted.

    Args:
        task: lm, stream, clf or predict.
        data: a table of texts and labels.
        model: of a classifier, for predict.
    """

    def __init__(self, folder: Path, task: str, data: Path, model: Path | None = None) -> None:
        self.task, self.data, self.model = task, data, model
        self.folder = folder / task
        self.folder.mkdir()
        self.reference = self.folder / "reference"
        code, errors = self.run(self.reference)
        assert code == DONE, errors

        self._counts: Counter[str] | None = None

    def count(self, fault: str) -> int:
        """How many calls of a whole run the fault could hit."""
        if self._counts is None:
            place = self._fresh()
            with Layer([place.parent], fault).installed() as layer:
                code, errors = self.run(place)
            assert code == DONE, errors
            self.check_equal(place)
            self._counts = layer.counts
        return sum(self._counts[kind] for kind in FAULTS[fault][1])

    def fail(self, fault: str, at: int, *, lasting: bool = False) -> list[str]:
        """Run with a fault, check what it left, and run again. Returns the kinds of the calls that were hit."""
        place, what = self._fresh(), f"{self.task}: {fault} at call {at}{' and after' if lasting else ''}"
        with Layer([place.parent], fault, at, lasting=lasting).installed() as layer:
            code, errors = self.run(place)
        assert "Traceback" not in errors, f"{what}:\n{errors}"
        assert code in (DONE, FAILED, USER_ERROR), what
        if code != DONE:
            last = errors.splitlines()[-1]
            assert last.startswith(("failed: ", "error: ")) and "; " in last, f"{what}: {last}"
        for entry in (place / "checkpoints").glob("step-*"):
            assert checkpoint.validate(entry) == [], what
        if self.task != "predict" or code != DONE:  # predict does not write a file twice
            assert self.task != "predict" or not place.exists(), f"{what}: it failed, but its output is there"
            code, errors = self.run(place)
            assert code == DONE, f"{what}, and then again:\n{errors}"
        self.check_equal(place, what)
        return layer.hits

    def _fresh(self) -> Path:
        place = self.folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place / "run"

    def run(self, output: Path) -> tuple[int, str]:
        if self.task == "predict":
            words = ["predict", "--model", str(self.model), "--data", str(self.data), "--output", str(output)]
        else:
            trainer = "clf" if self.task == "clf" else "lm"
            options = COMMON | TRAINING[self.task] | {"samples": False, "cache_dir": str(output.parent / "cache")}
            make = {"lm": runs.lm_config, "clf": runs.clf_config}[trainer]
            words = [f"train-{trainer}", *runs.arguments(make(output, data=str(self.data), **options))]
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            code = main(words)
        return code, errors.getvalue()

    def stopped(self, folder: Path) -> bool:
        """Make `folder`/run, which a request to stop has left in the middle, with caches beside it."""
        code = 0
        with mock.patch.object(StopRequest, "requested", lambda stop: stop.in_loop):
            code, _ = self.run(folder / "run")
        return code == DONE and read_status(folder / "run")["state"] == "preempted"

    def check_equal(self, place: Path, what: str = "no fault") -> None:
        if self.task == "predict":
            assert place.read_bytes() == self.reference.read_bytes(), what
            left = [path.name for path in place.parent.iterdir() if path != place and path.name != "cache"]
        else:
            model = Path("model") / "model.safetensors"
            assert (place / model).read_bytes() == (self.reference / model).read_bytes(), what
            assert runs.metrics(place) == runs.metrics(self.reference), what
            assert checkpoint.latest(place / "checkpoints") is not None, what
            left = [str(path.relative_to(place)) for path in place.rglob(".*")]
            left += [str(path) for path in (place.parent / "cache").rglob(".*.tmp-*")]
        assert not left, f"{what} left {left}"


def every(count: int, share: int, fault: str) -> list[int]:
    """`share` of the calls 1 to `count`, spread evenly and another set for each fault; all of them if 0."""
    if not share or count <= share:
        return list(range(1, count + 1))
    shift = list(FAULTS).index(fault) / len(FAULTS)
    return sorted({1 + int((number + shift) * count / share) for number in range(share)})


def main_() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--share", type=int, default=0, help="calls of each kind of fault and task; 0: all")
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="ulmfit-faults-") as name:
        folder = Path(name)
        data = runs.write_reviews(folder / "reviews.csv", 120)
        model = folder / "model-run"
        if "predict" in arguments.task:
            train = runs.clf_config(model, data=str(data), preset="tiny", encoder="none", max_steps=4)
            assert main(["train-clf", *runs.arguments(train)]) == DONE
        print("| task | fault | calls | tried | hit | wrong |\n|---|---|---|---|---|---|")
        for task in arguments.task:
            drill = Drill(folder, task, data, model)
            for fault in arguments.fault:
                count, hits, wrong = drill.count(fault), Counter(), []
                tried = every(count, arguments.share, fault)
                for at in tried:
                    try:
                        hits.update(drill.fail(fault, at, lasting=fault in LASTING)[:1])
                    except AssertionError as error:
                        wrong.append(at)
                        print(f"{task} {fault} {at}: {error}", file=sys.stderr, flush=True)
                good = good and not wrong
                kinds = " ".join(f"{kind} {number}" for kind, number in sorted(hits.items()))
                print(f"| {task} | {fault} | {count} | {len(tried)} | {kinds} | {len(wrong)} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main_())
