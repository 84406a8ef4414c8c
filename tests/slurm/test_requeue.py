"""Whether launch/slurm.sbatch goes back into the queue after a run's end, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import ROOT

COMMANDS = {
    "scontrol": 'case "$2" in hostnames) echo n1;; node) echo "NodeAddr=127.0.0.1 x";; *) : >"$REQUEUED";; esac',
    "squeue": "echo RUNNING",
    "srun": 'cp -r "$AFTER/." "$RUN"; exit "$CODE"',
}


TRAINER, JOB = ["train_lm.py"], ["-m", "ulmfit", "fit", "--lm.lr", "1"]


def write(run: Path, state: str, step: int, *checkpoints: int) -> None:
    """A run with a checkpoint; or with two of them, a job with a run a training."""
    for folder, checkpoint in zip(("",) if len(checkpoints) == 1 else ("lm", "clf"), checkpoints, strict=True):
        (run / folder / "checkpoints" / f"step-{checkpoint:08d}").mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": state, "step": step}))


@pytest.mark.parametrize(
    ("before", "after", "code", "options", "requeued", "trainer"),
    [
        # Killed further on than ever, but what it would go on from is what it went on from.
        (("failed", 910, 900), ("failed", 950, 900), 137, [], False, TRAINER),
        # Killed before it came as far as the last time, with a newer checkpoint.
        (("failed", 1000, 900), ("failed", 990, 980), 137, [], True, TRAINER),
        (("preempted", 40, 40), ("preempted", 80, 80), 0, [], True, TRAINER),
        (("preempted", 40, 40), ("preempted", 40, 40), 0, [], False, TRAINER),
        # Another run was there, which the trainer has moved aside.
        (("done", 500, 500), ("preempted", 100, 100), 0, ["--resume", "never"], True, TRAINER),
        # The language model is done, and the classifier has begun.
        (("preempted", 40, 40, 0), ("preempted", 50, 40, 10), 0, [], True, JOB),
        (("preempted", 50, 40, 10), ("failed", 55, 40, 10), 137, [], False, JOB),
        (("preempted", 50, 40, 10), ("done", 80, 40, 40), 0, [], False, JOB),
    ],
)
def test_a_job_is_requeued_if_it_has_a_newer_checkpoint(before, after, code, options, requeued, trainer, tmp_path):
    bin, run = tmp_path / "bin", tmp_path / "run"
    bin.mkdir()
    for name, text in COMMANDS.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    if options:
        (bin / "srun").write_text('#!/bin/bash\nrm -r "$RUN"; cp -r "$AFTER" "$RUN"; exit "$CODE"\n')
    write(run, *before)
    write(tmp_path / "after", *after)
    environment = os.environ | {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "ULMFIT_PYTHON": sys.executable,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_ID": "7",
        "REQUEUED": str(tmp_path / "requeued"),
        "AFTER": str(tmp_path / "after"),
        "RUN": str(run),
        "CODE": str(code),
    }
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *trainer, "--output-dir", str(run), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (0 if requeued or after[0] == "done" else 1), done.stderr
    assert (tmp_path / "requeued").exists() == requeued
