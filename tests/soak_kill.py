"""Kill the real commands with SIGKILL, start them again, and compare with runs that were never killed.

    python -m tests.soak_kill                                 100 kills, about 25 minutes on two idle cores
    python -m tests.soak_kill --kills 10 --world 1 --task lm stream

Kinds of kill, each some time after the first step of a start:

    all    every process at once, the launcher first, as when a node goes away
    save   the same, while the folder of an unfinished checkpoint is there (processes are stopped to make sure)
    rank   one process of several; the others and the launcher have to end by themselves

A run is killed until it is done, or until its share of kills is used up and it is left to finish; then another
begins. Equal means: model.safetensors byte for byte, metrics.jsonl but for timings, each TensorBoard curve with
every step once, nothing left behind. Prints a table and ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training import runs
from tests.training.runs import ENVIRONMENT, ROOT
from tests.training.world import LAUNCHERS
from ulmfit.config import ClassifierConfig, LMConfig

KINDS = ("all", "save", "rank")
STEPS = {"lm": {1: 300, 2: 220, 4: 110}, "stream": {1: 300, 2: 220, 4: 110}, "clf": {1: 150, 2: 110, 4: 70}}
LONGEST_WAIT = 1.2  # seconds from the first step to a kill, at most
PATIENCE = 120.0  # seconds for whatever has to happen by itself
# How the kills are shared out: a start of one process takes half the time of one of two, a quarter of four's.
WORLDS = (1, 2, 1, 1, 2, 1, 4, 1, 2, 1)


@dataclass
class Run:
    """A run directory, the command that makes it, and what was done to it."""

    path: Path
    command: list[str]
    world: int
    kills: list[str] = field(default_factory=list)
    in_save: list[str] = field(default_factory=list)  # kinds of those that left an unfinished checkpoint

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + ".log")


def prepare(folder: Path) -> None:
    """The corpus, and a language model to start from, made by the real command."""
    data = runs.write_reviews(folder / "reviews.csv", 120)
    config = runs.lm_config(folder / "pretrained", data=str(data), preset="tiny", max_steps=30, lr=1e-2)
    finish(Run(folder / "pretrained", [sys.executable, str(ROOT / "train_lm.py"), *runs.arguments(config)], 1))


def a_run(folder: Path, task: str, world: int, name: str) -> Run:
    """A run of `task` on `world` processes, saving often; not started yet."""
    trainer, options = runs.whole_recipe(
        task,
        folder / "reviews.csv",
        folder / "pretrained",
        folder / name,
        max_steps=STEPS[task][world],
        save_every=4,
        eval_every=30,
    )
    config = {"lm": LMConfig, "clf": ClassifierConfig}[trainer](**options)
    launcher = [] if world == 1 else ["-m", *LAUNCHERS["torchrun"], str(world)]
    script = str(ROOT / f"train_{trainer}.py")
    return Run(folder / name, [sys.executable, *launcher, script, *runs.arguments(config)], world)


def start(run: Run) -> subprocess.Popen:
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            run.command, env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=subprocess.STDOUT
        )


def finish(run: Run) -> None:
    """Start the command and leave it alone until it is done."""
    code = start(run).wait(timeout=600)
    assert code == 0, f"{run.path.name} ended with {code}, its log with\n{tail(run)}"


def start_and_kill(run: Run, kind: str, rng: random.Random) -> bool:
    """Start the command and kill it; False if it was done before it could be."""
    begin = run.log.stat().st_size if run.log.exists() else 0
    stale = unfinished(run)  # what an earlier kill left goes with the next checkpoint
    process = start(run)
    if not wait_for(lambda: b"\nstep " in read_from(run.log, begin), process, pause=0.01):
        assert process.returncode == 0, f"{run.path.name} ended by itself, its log with\n{tail(run)}"
        return False
    time.sleep(rng.uniform(0, LONGEST_WAIT))
    try:
        others = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        others = []
    if kind == "save":
        while wait_for(lambda: unfinished(run) - stale, process, pause=0.0005):
            time.sleep(rng.uniform(0, 0.005))  # not always in the first of the files
            send(signal.SIGSTOP, [process, *others])
            time.sleep(0.002)  # a system call in progress ends first
            if unfinished(run) - stale:
                break
            send(signal.SIGCONT, [process, *others])  # too late for this one
    send(signal.SIGKILL, [rng.choice(others)] if kind == "rank" and others else [process, *others])
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        send(signal.SIGKILL, [process, *others])
        raise AssertionError(f"{run.path.name} goes on after a kill of kind {kind}; log:\n{tail(run)}") from None
    _, alive = psutil.wait_procs(others, timeout=PATIENCE)
    assert not alive, f"{run.path.name} left {alive} after a kill of kind {kind}; log:\n{tail(run)}"
    if code == 0:
        return False
    run.kills.append(kind)
    if unfinished(run) - stale:
        run.in_save.append(kind)
    return True


def send(number: int, processes: list[subprocess.Popen | psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass


def wait_for(condition, process: subprocess.Popen, *, pause: float) -> bool:
    """Whether the condition came true before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(pause)
    return True


def read_from(file: Path, begin: int) -> bytes:
    with open(file, "rb") as log:
        log.seek(begin)
        return log.read()


def tail(run: Run) -> str:
    return read_from(run.log, 0)[-3000:].decode(errors="replace")


def unfinished(run: Run) -> set[str]:
    """Folders of checkpoints that are being written, or were when their writer died; of a job, those of its stages."""
    found = set()
    for stage in ("", "lm", "clf"):
        with suppress(FileNotFoundError):
            names = os.listdir(run.path / stage / "checkpoints")
            found |= {f"{stage}/{name}" for name in names if name.startswith(".step-") and ".tmp-" in name}
    return found


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars as it shows them, but for what is measured in time."""
    board = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if not tag.startswith("pace/")
    }


def differences(reference: Path, path: Path) -> dict[str, bool]:
    """What of a killed run is as in the one that was never killed."""
    expected, got = curves(reference), curves(path)
    left = [entry.name for entry in path.iterdir() if entry.name.startswith(".") or entry.name == "run.lock"]
    left += [entry.name for entry in (path / "checkpoints").iterdir() if entry.name.startswith(".")]
    model = Path("model") / "model.safetensors"
    return {
        "bit-equal": (reference / model).read_bytes() == (path / model).read_bytes(),
        "metrics equal": runs.metrics(reference) == runs.metrics(path),
        "one curve": expected == got
        and all(a[0] < b[0] for points in got.values() for a, b in zip(points, points[1:], strict=False)),
        "nothing left": not left,
    }


def soak(folder: Path, task: str, world: int, kinds: list[str], rng: random.Random) -> list[tuple[Run, dict]]:
    """Runs of one task and world that are killed as `kinds` says, each with what is equal in it."""
    reference = a_run(folder, task, world, f"{task}-{world}")
    finish(reference)
    done = []
    while kinds:
        run = a_run(folder, task, world, f"{task}-{world}-killed-{len(done)}")
        while kinds and start_and_kill(run, kinds[0], rng):
            kinds = kinds[1:]
            print(f"{run.path.name}: {len(run.kills)} kills, last: {run.kills[-1]}", file=sys.stderr, flush=True)
        if not (run.path / "model" / "model.safetensors").exists():
            finish(run)
        done.append((run, differences(reference.path, run.path)))
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--world", type=int, nargs="+", choices=(1, 2, 4), default=[1, 2, 4], help="processes")
    parser.add_argument("--task", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs are kept (default: a temporary folder, removed)")
    arguments = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # tells of every restart that it finds
    rng = random.Random(arguments.seed)
    worlds = [world for world in WORLDS if world in arguments.world]
    planned: dict[tuple[str, int], list[str]] = {}
    for number in range(arguments.kills):
        task = arguments.task[number % len(arguments.task)]
        world = worlds[number // len(arguments.task) % len(worlds)]
        kinds = planned.setdefault((task, world), [])
        kinds.append(KINDS[len(kinds) % (2 if world == 1 else 3)])

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ulmfit-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ULMFIT_CACHE", str(folder / "cache"))
    prepare(folder)
    begun, good, total = time.monotonic(), True, 0
    print(
        "| task | processes | kind | kills | during a save | runs | bit-equal | metrics equal | one curve | "
        "nothing left |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for (task, world), kinds in sorted(planned.items()):
        rng.shuffle(kinds)
        done = soak(folder, task, world, kinds, rng)
        for kind in KINDS:
            touched = [(run, equal) for run, equal in done if kind in run.kills]
            if not touched:
                continue
            kills = sum(run.kills.count(kind) for run, _ in touched)
            verdicts = {name: all(equal[name] for _, equal in touched) for name in touched[0][1]}
            good, total = good and all(verdicts.values()), total + kills
            cells = [task, world, kind, kills, sum(run.in_save.count(kind) for run, _ in touched), len(touched)]
            cells += ["yes" if ok else "NO" for ok in verdicts.values()]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    print(
        f"\n{total} kills in {(time.monotonic() - begun) / 60:.0f} minutes, {'all equal' if good else 'NOT ALL EQUAL'}"
    )
    if arguments.folder is None and good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
