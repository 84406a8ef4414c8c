"""Many short trainings in one launch of real processes, for a launch costs more than all of them.

    torchrun --standalone --nproc_per_node 4 -m tests.training.world JOBS.json

JOBS.json holds a list of jobs, done one after another:

    {"task": "lm" | "clf", "options": fields of the configuration, "world": processes, "stop_at": step or null}

`world` may be smaller than the launch: the first ranks do the job and the others wait for the next, so that one
launch trains a run at 4 processes, goes on at 1, and again at 4. Each job joins a process group of its own, on a
store of its own: keys of a group that has gone would send its successor to sockets that nobody listens on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from tests.training.runs import ENVIRONMENT, ROOT
from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.training.loop import Loop

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node"],
    "accelerate": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "--num_processes",
    ],
}


def job(task: str, options: dict[str, Any], *, world: int, stop_at: int | None = None) -> dict[str, Any]:
    """One job, as JOBS.json holds it."""
    return {"task": task, "options": options, "world": world, "stop_at": stop_at}


def train(job: dict[str, Any]) -> None:
    """Do a job on the processes that are here. With `stop_at` it is stopped after that very step.

    (A run looks for requests to stop about once a second; which step that is depends on the machine.)
    """
    stop_at = job["stop_at"]
    config, trainer = {"lm": (LMConfig, train_language_model), "clf": (ClassifierConfig, train_classifier)}[job["task"]]
    with mock.patch.object(Loop, "_stop_agreed", lambda loop: loop.position.step == stop_at):
        result = trainer(config(**job["options"]))
    expected = "done" if stop_at is None else "preempted"
    assert result.state == expected, f"{job} ended as {result}"


def launch(jobs: Sequence[dict[str, Any]], folder: Path, *, launcher: str = "torchrun", timeout: float = 850) -> None:
    """Do jobs on as many processes as the largest needs; AssertionError with what was printed if one fails."""
    world = max(job["world"] for job in jobs)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(world), "-m", "tests.training.world", str(file)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    (folder / "output.txt").write_text(done.stdout)
    assert done.returncode == 0, f"{folder / 'output.txt'} ends with\n{done.stdout[-4000:]}"


def main(file: Path) -> None:
    rank = int(os.environ["RANK"])
    for number, job in enumerate(json.loads(file.read_text())):
        if rank >= job["world"]:
            continue
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(job["world"])
        store = dist.FileStore(str(file.with_name(f"store-{number}")), job["world"])
        # Ranks that had no part in the jobs before wait here for those that did.
        dist.init_process_group("gloo", store=store, rank=rank, world_size=job["world"])
        begun = time.monotonic()
        train(job)
        if rank == 0:
            print(f"{time.monotonic() - begun:.1f} s for {job}", flush=True)
        dist.destroy_process_group()  # a training leaves alone what it found
        sys.excepthook = sys.__excepthook__  # each group adds one, which adds its "[rank0]: " to every line


if __name__ == "__main__":
    main(Path(sys.argv[1]))
