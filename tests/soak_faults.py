"""An hour of bad days: kills, stops, disks that fill up and busy neighbours, over training, jobs and prediction, mixed.

    python -m tests.soak_faults                             60 minutes
    python -m tests.soak_faults --minutes 2 --task lm predict

A run is started and cut short; what befalls each start is drawn:

    kill   SIGKILL of all processes, or during a save, or of one of several (as in soak_kill)
    stop   SIGTERM: it has to save a checkpoint and to exit with 0
    full   from some call on, the disk of the run is full: it has to end with 1 or 2 and one sentence

This goes on until it is done, or has been cut short six times and is left to finish. Beside every third start others
keep the cores busy. In the end the run must be as one that nothing befell: the same bytes of weights or of predictions,
metrics.jsonl, TensorBoard's curves, nothing left behind. Prints a table and ends with 1 if anything differs.
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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import soak_kill
from tests.soak_kill import PATIENCE, Run, a_run, finish, prepare, read_from, start, tail, wait_for
from tests.training import runs
from tests.training.runs import ROOT
from tests.training.world import LAUNCHERS

TASKS = ("lm", "clf", "stream", "predict", "fit")
EVENTS = ("kill", "stop", "full")
WORLDS = (1, 1, 2)
NEIGHBOURS = 3  # busy processes, niced so that others on the machine are not held up
MOST_EVENTS = 6  # in one run, which is then left to finish
ROWS = 6000  # predicted
EXPLAINED = ("error: ", "failed: ")


@dataclass
class Tally:
    """What befell the runs of one task on one number of processes, and what was equal in the end."""

    runs: int = 0
    events: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    verdicts: dict[str, bool] = field(default_factory=dict)

    def judge(self, equal: dict[str, bool]) -> None:
        self.runs += 1
        for name, verdict in equal.items():
            self.verdicts[name] = self.verdicts.get(name, True) and verdict


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """Context beside processes that keep cores busy."""
    code = "import os\nos.nice(5)\nwhile os.getppid() != 1: sum(range(100_000))"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def predict_run(folder: Path, name: str) -> Run:
    """A prediction of a table, as a run whose path is the file of its output."""
    words = ["predict", "--model", str(folder / "classifier"), "--data", str(folder / "rows.csv")]
    output = folder / name / "out.csv"
    output.parent.mkdir(exist_ok=True)
    return Run(output, [sys.executable, "-m", "ulmfit", *words, "--output", str(output)], 1)


def fit_run(folder: Path, world: int, name: str) -> Run:
    """A whole job: a language model of 60 steps and a classifier of 40, saving often."""
    shared = ["--preset", "tiny", "--threads", "1", "--no-samples"]
    stages = [f"--{stage}.{option}" for stage, steps in (("lm", 60), ("clf", 40))
              for option in (f"max-steps={steps}", "batch-size=8", "save-every=4", "eval-every=15", "log-every=1")]  # fmt: skip
    words = [
        "ulmfit",
        "fit",
        "--data",
        str(folder / "reviews.csv"),
        "--output-dir",
        str(folder / name),
        "--init",
        "none",
    ]
    launcher = [] if world == 1 else ["-m", *LAUNCHERS["torchrun"], str(world)]
    return Run(folder / name, [sys.executable, *launcher, "-m", *words, *shared, *stages], world)


def prepare_prediction(folder: Path) -> None:
    """A classifier, and the rows that it will read."""
    data = folder / "reviews.csv"
    config = runs.clf_config(folder / "classifier", data=str(data), preset="tiny", encoder="none", max_steps=8)
    finish(Run(folder / "classifier", [sys.executable, str(ROOT / "train_clf.py"), *runs.arguments(config)], 1))
    runs.write_reviews(folder / "rows.csv", ROWS)


def on_a_filling_disk(run: Run, at: int) -> Run:
    """The same run by the same command, in a process whose file system is full from call `at` on."""
    if "ulmfit" in run.command:
        words = run.command[run.command.index("ulmfit") + 1 :]
    else:
        script = next(word for word in run.command if word.endswith(".py"))
        words = [Path(script).stem.replace("_", "-"), *run.command[run.command.index(script) + 1 :]]
    command = [sys.executable, "-m", "tests.faults.command", "full", str(at), str(run.path.parent), *words]
    return Run(run.path, command, run.world)


def begun(run: Run, begin: int) -> bool:
    """Whether a start has got to its work: a step, or the first rows of an output."""
    if run.path.suffix == ".csv":
        return any(run.path.parent.glob("*out.csv*"))
    return b"\nstep " in read_from(run.log, begin)


def calls_of(run: Run) -> int:
    """How many calls of the file system a full disk may refuse, about."""
    return 6 if run.path.suffix == ".csv" else 300


def befall(run: Run, event: str, rng: random.Random) -> bool:
    """Start the run and let one thing happen to it. Returns whether it is done.

    Raises:
        AssertionError: it did not end as it should.
    """
    begin = run.log.stat().st_size if run.log.exists() else 0
    if event == "left":
        finish(run)
        return True
    if event == "kill" and run.path.suffix != ".csv":
        kinds = soak_kill.KINDS[: 2 if run.world == 1 else 3]
        return not soak_kill.start_and_kill(run, rng.choice(kinds), rng)
    if event == "full":
        process = start(on_a_filling_disk(run, rng.randrange(1, calls_of(run) + 1)))
        code = process.wait(PATIENCE)
        told = read_from(run.log, begin).decode(errors="replace")
        last = (told.splitlines() or [""])[-1]
        explained = code == 0 or (last.startswith(EXPLAINED) and "Traceback" not in told)
        assert code in (0, 1, 2) and explained, f"a full disk ended with {code}, the log with\n{tail(run)}"
        return code == 0
    process = start(run)
    if wait_for(lambda: begun(run, begin), process, pause=0.01):
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL if event == "kill" else signal.SIGTERM)
    code = process.wait(PATIENCE)
    if run.path.suffix == ".csv":
        return code == 0 and run.path.exists()  # a stop before the first row ends with 0 too
    # torchrun ends with 1 after SIGTERM, though its workers have ended with 0.
    status = (run.path / "status.json").read_bytes()
    saved = any(state in status for state in (b'"state": "preempted"', b'"state": "done"'))
    assert saved and (code == 0 or run.world > 1), f"a stop ended with {code}, the log with\n{tail(run)}"
    return b'"state": "done"' in status


def differences(reference: Run, run: Run) -> dict[str, bool]:
    if (reference.path / "lm").exists():
        stages = [soak_kill.differences(reference.path / stage, run.path / stage) for stage in ("lm", "clf")]
        return {name: all(stage[name] for stage in stages) for name in stages[0]}
    if run.path.suffix != ".csv":
        return soak_kill.differences(reference.path, run.path)
    left = [path.name for path in run.path.parent.iterdir() if path not in (run.path, run.log)]
    return {"bit-equal": reference.path.read_bytes() == run.path.read_bytes(), "nothing left": not left}


def soak(folder: Path, minutes: float, tasks: list[str], rng: random.Random) -> dict[tuple[str, int], Tally]:
    """Runs of all tasks in turn until the time is up, with what befell them."""
    deadline = time.monotonic() + 60 * minutes
    tallies: dict[tuple[str, int], Tally] = {}
    references: dict[tuple[str, int], Run] = {}
    number = 0
    while number < len(tasks) or time.monotonic() < deadline:
        task = tasks[number % len(tasks)]
        world = 1 if task == "predict" else WORLDS[number // len(tasks) % len(WORLDS)]
        key = task, world

        def new(name: str, task: str = task, world: int = world) -> Run:
            if task == "fit":
                return fit_run(folder, world, name)
            return predict_run(folder, name) if task == "predict" else a_run(folder, task, world, name)

        if key not in references:
            references[key] = new(f"{task}-{world}")
            finish(references[key])
        tally = tallies.setdefault(key, Tally())
        run, done = new(f"{task}-{world}-{number}"), False
        for count in range(MOST_EVENTS + 1):
            event = "left" if count == MOST_EVENTS else rng.choice(EVENTS if world == 1 else EVENTS[:2])
            busy = rng.random() < 1 / 3
            with neighbours(NEIGHBOURS if busy else 0):
                done = befall(run, event, rng)
            tally.busy += busy
            tally.events[event] += event != "left"
            print(f"{task}-{world}-{number}: {event}{' beside others' if busy else ''}", file=sys.stderr, flush=True)
            if done:
                break
        tally.judge(differences(references[key], run))
        number += 1
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs are kept (default: a temporary folder, removed)")
    arguments = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ulmfit-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ULMFIT_CACHE", str(folder / "cache"))
    prepare(folder)
    if "predict" in arguments.task:
        prepare_prediction(folder)
    tallies = soak(folder, arguments.minutes, arguments.task, random.Random(arguments.seed))
    names = ("bit-equal", "metrics equal", "one curve", "nothing left")
    print(f"| task | processes | runs | {' | '.join(EVENTS)} | beside others | {' | '.join(names)} |")
    print("|---" * (4 + len(EVENTS) + len(names)) + "|")
    for (task, world), tally in sorted(tallies.items()):
        cells = [task, world, tally.runs, *(tally.events[event] for event in EVENTS), tally.busy]
        cells += [{True: "yes", False: "NO", None: ""}[tally.verdicts.get(name)] for name in names]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    good = all(all(tally.verdicts.values()) for tally in tallies.values())
    happened = sum(sum(tally.events.values()) for tally in tallies.values())
    print(
        f"\n{happened} events in {sum(tally.runs for tally in tallies.values())} runs, {'all equal' if good else 'NO'}"
    )
    if arguments.folder is None and good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
