"""--report-to: the numbers of a run in Weights & Biases, MLflow or Trackio, through accelerate's trackers.

TensorBoard's own writer stays: accelerate's would begin another curve at every restart. A tracker is a guest. What it
cannot do (no network, no login, a full quota) is told once, and the run goes on without it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ulmfit.files import parse_json, write_text
from ulmfit.reports import trackers_of

IDS = "trackers.json"  # in the run directory: by which names the trackers know this run
PROJECT = "ulmfit"


class Mirrors:
    """The trackers of one run; as `run.tracking.Mirror`. Only rank 0 has one.

    Args:
        names: of the trackers, as `reports.trackers_of` gives them.
        run_dir: a run that goes on from it goes on in the trackers too.
        say: called with lines for the user.
    """

    def __init__(self, names: list[str], run_dir: Path, say: Callable[[str], None]) -> None:
        self._names, self._run_dir, self._say = names, run_dir, say
        self._open: dict[str, Any] = {}

    def begin(self, options: Mapping[str, str | float]) -> None:
        """Start the trackers, with the hyperparameters of the run."""
        ids = self._ids()
        for name in self._names:
            self._guarded(name, lambda name=name: self._start(name, ids, options))  # type: ignore[misc]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers. A tracker that knows a later step, of before a kill, may drop them."""
        numbers = {tag: float(value) for tag, value in values.items()}
        for name in list(self._open):
            self._guarded(name, lambda name=name: self._open[name].log(numbers, step=step))  # type: ignore[misc]

    def close(self) -> None:
        """Tell the trackers that this process ends."""
        for name in list(self._open):
            self._guarded(name, lambda name=name: self._open.pop(name).finish())  # type: ignore[misc]

    def _start(self, name: str, ids: dict[str, str], options: Mapping[str, str | float]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        shown = "-".join(self._run_dir.resolve().parts[-2:])
        if name == "wandb":
            given: dict[str, Any] = {
                "run_name": os.environ.get("WANDB_PROJECT", PROJECT),
                "name": shown,
                "id": ids["id"],
                "resume": "allow",
                "dir": str(self._run_dir),
            }
        elif name == "trackio":
            given = {"run_name": PROJECT, "name": f"{shown}-{ids['id']}", "resume": "allow"}
        else:
            given = {"experiment_name": PROJECT, "run_name": shown, "run_id": ids.get(name)}
        tracker = LOGGER_TYPE_TO_CLASS[name](**given)
        tracker.start()
        self._open[name] = tracker
        if name == "mlflow" and name not in ids:
            ids[name] = tracker.tracker.info.run_id
            self._keep(ids)
            tracker.store_init_configuration(dict(options))  # once: MLflow refuses to change a parameter
        elif name != "mlflow":
            tracker.store_init_configuration(dict(options))

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

    def _guarded(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # of a package that we do not know: anything
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200]
            self._say(f"{name} gets no more of this run ({type(error).__name__}: {reason}); the training goes on")


def mirrors(report_to: str | None, run_dir: Path, say: Callable[[str], None]) -> Mirrors | None:
    """The trackers that --report-to names; None without."""
    names = trackers_of(report_to)
    return Mirrors(names, run_dir, say) if names else None
