"""--report-to: the numbers of a run in Weights & Biases, MLflow or Trackio, through accelerate's trackers.

TensorBoard's own writer stays: accelerate's would begin another curve at every restart. A tracker is a guest. Each works in
a thread of its own, so a step never waits for a network. What a tracker cannot do (no network, no login, a full quota) is
told once, and the run goes on without it. The packages have work of their own at the end of the process (MLflow ends its
run, wandb waits for its service), which takes minutes where a server is gone: `bound_end` ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Full, Queue
from threading import Thread, main_thread
from typing import Any

from ulmfit.files import parse_json, write_text
from ulmfit.reports import is_installed, trackers_of

IDS = "trackers.json"  # in the run directory: by which names the trackers know this run
PROJECT = "ulmfit"
MOST_WAITING = 20_000  # points that a tracker may be behind
# Seconds at the end of a run for what is still to be sent, and then for what the packages do while the process ends.
# SLURM gives a stopped job 30.
PATIENCE, LEAVE = 15.0, 10.0
# Only numbers are promised to leave the machine, and wandb would send the console and the user's source code too. MLflow would
# try for a quarter of an hour at the end. Whoever sets these variables gets what they say.
_ENVIRONMENT = {"WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # fmt: skip

_started: dict[str, None] = {}  # trackers of this process, also those that have ended


class Mirrors:
    """The trackers of one run; as `run.tracking.Mirror`. Only rank 0 has one.

    Args:
        names: of the trackers, as `reports.trackers_of` gives them.
        run_dir: a run that goes on from it goes on in the trackers too.
        say: called with lines for the user, from any thread.
    """

    def __init__(self, names: list[str], run_dir: Path, say: Callable[[str], None]) -> None:
        self._names, self._run_dir, self._say = names, run_dir, say
        self._guests: list[_Guest] = []

    def begin(self, options: Mapping[str, str | float]) -> None:
        """Start the trackers, with the hyperparameters of the run."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ids = self._ids()
        for name in self._names:
            _started[name] = None
            self._guests.append(_Guest(name, self._starter(name, ids, dict(options)), self._say))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers. A tracker that knows a later step, of before a kill, may drop them."""
        numbers = {tag: float(value) for tag, value in values.items()}
        for guest in self._guests:
            guest.give(step, numbers)

    def close(self) -> None:
        """Tell the trackers that this process ends, and wait `PATIENCE` seconds in all for what they still send."""
        guests, self._guests = self._guests, []
        for guest in guests:
            guest.dismiss()
        deadline = time.monotonic() + PATIENCE
        for guest in guests:
            guest.wait(deadline)

    def _starter(self, name: str, ids: dict[str, str], options: dict[str, str | float]) -> Callable[[], Any]:
        """A function that starts a tracker and gives it."""

        def start() -> Any:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            tracker = LOGGER_TYPE_TO_CLASS[name](**self._arguments(name, ids))
            tracker.start()
            if name != "mlflow" or name not in ids:
                if name == "mlflow":
                    self._keep(ids | {name: tracker.tracker.info.run_id})
                tracker.store_init_configuration(options)  # once: MLflow refuses to change a parameter
            return tracker

        return start

    def _arguments(self, name: str, ids: dict[str, str]) -> dict[str, Any]:
        shown = "-".join(self._run_dir.resolve().parts[-2:])
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            return {"run_name": project, "name": shown, "id": ids["id"], "resume": "allow", "dir": str(self._run_dir)}
        if name == "trackio":
            return {"run_name": PROJECT, "name": f"{shown}-{ids['id']}", "resume": "allow"}
        return {"experiment_name": PROJECT, "run_name": shown, "run_id": ids.get(name)}

    def _ids(self) -> dict[str, str]:
        try:
            ids = parse_json((self._run_dir / IDS).read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in ids.items()} | {"id": str(ids["id"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged: another run there
            ids = {"id": uuid.uuid4().hex[:12]}
            self._keep(ids)
            return ids

    def _keep(self, ids: dict[str, str]) -> None:
        write_text(self._run_dir / IDS, json.dumps(ids) + "\n")


class _Guest:
    """A tracker in a thread of its own.

    Args:
        start: gives the tracker.
        say: called once if it fails.
    """

    def __init__(self, name: str, start: Callable[[], Any], say: Callable[[str], None]) -> None:
        self._name, self._start, self._say = name, start, say
        self._waiting: Queue[tuple[int, dict[str, float]] | None] = Queue(MOST_WAITING)
        self._gone = False
        self._thread = Thread(target=self._work, name=f"report to {name}", daemon=True)
        self._thread.start()

    def give(self, step: int, numbers: dict[str, float]) -> None:
        """Hand over numbers, without waiting."""
        if not self._gone:
            try:
                self._waiting.put_nowait((step, numbers))
            except Full:
                self._leave(f"it is {MOST_WAITING:,} points behind")

    def dismiss(self) -> None:
        """Ask it to end after what it has been given."""
        try:
            self._waiting.put_nowait(None)
        except Full:
            self._gone = True

    def wait(self, deadline: float) -> None:
        """Wait for its end, until a time of `time.monotonic`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._leave(f"it does not end within {PATIENCE:g} seconds", "")

    def _work(self) -> None:
        try:
            tracker = self._start()
            while not self._gone and (given := self._waiting.get()) is not None:
                step, numbers = given
                tracker.log(numbers, step=step)
            tracker.finish()
        except BaseException as error:  # of a package that we do not know: anything, also the wish to end the process
            self._leave(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _leave(self, reason: str, cure: str = "; the training goes on") -> None:
        if not self._gone:
            self._gone = True
            self._say(f"{self._name} gets no more of this run ({reason}){cure}")


def bound_end(status: int) -> None:
    """Bound what the trackers' packages do while this process ends: after `LEAVE` seconds it ends without them.

    For a program that has nothing else to do after its main thread; it does nothing where no tracker has been started.

    Args:
        status: the exit code.
    """
    if _started:
        Thread(target=_end, args=(status,), name="end of the trackers", daemon=True).start()


def _end(status: int) -> None:
    main_thread().join()  # from here on Python waits for other threads and calls what is registered for the exit
    time.sleep(LEAVE)
    print(
        f"this process does not wait any longer for {' and '.join(_started)} (--report-to), which did not end within "
        f"{LEAVE:g} seconds",
        file=sys.stderr,
        flush=True,
    )
    os._exit(status)


def mirrors(report_to: str | None, run_dir: Path, say: Callable[[str], None]) -> Mirrors | None:
    """The trackers that --report-to names; None without. A package that has gone since the run began is told."""
    asked = trackers_of(report_to)
    there = [name for name in asked if is_installed(name)]
    for name in asked:
        if name not in there:
            say(f"{name} gets no more of this run (it is not installed here); the training goes on")
    return Mirrors(there, run_dir, say) if there else None
