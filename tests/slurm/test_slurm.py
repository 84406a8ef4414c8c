"""launch/slurm.sbatch on a real SLURM of two virtual nodes, which cluster.sh brings up in a folder of its own.

ULMFIT_TRANSCRIPT=out.txt python -m pytest tests/slurm      what SLURM and the jobs said, into a file
ULMFIT_LONG=1 ULMFIT_TIME_LIMIT=1 python -m pytest tests/slurm -k same    two real one-minute limits in place of signals
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiers import long_tier
from tests.training import runs
from tests.training.runs import ENVIRONMENT, ROOT, arguments

pytestmark = pytest.mark.timeout(1100)
SCRIPT = Path(__file__).parent / "cluster.sh"
REAL_LIMIT = "ULMFIT_TIME_LIMIT" in os.environ
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Cluster:
    """The scratch SLURM: commands, their transcript, and the state of jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = (
            os.environ
            | ENVIRONMENT
            | {
                "SLURM_CONF": str(folder / "slurm" / "slurm.conf"),
                "ULMFIT_PYTHON": sys.executable,
                "ULMFIT_CACHE": str(folder / "cache"),
                "SLURM_WAIT": "3",
            }
        )
        self.transcript = Path(os.environ.get("ULMFIT_TRANSCRIPT", folder / "transcript.txt"))

    def run(self, *command: str, show: bool = False) -> str:
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if show:
            self.say(f"$ {' '.join(command)}\n{done.stdout}")
        return done.stdout

    def say(self, text: str) -> None:
        neutral = text
        names = {sys.executable: "python", sys.prefix: "VENV", str(self.folder): "DIR", str(ROOT): "."}
        for path, name in names.items():
            neutral = neutral.replace(path, name)
        with open(self.transcript, "a", encoding="utf-8") as file:
            file.write(f"[{time.strftime('%H:%M:%S')}] {neutral.rstrip()}\n")

    def submit(self, *words: str, nodes: int = 2) -> str:
        output = self.folder / "slurm-%j.out"
        return self.run("sbatch", "--parsable", f"--nodes={nodes}", f"--output={output}", *words, show=True).strip()

    def submit_chain(self, *words: str) -> list[str]:
        """The numbers of the jobs."""
        output = self.folder / "slurm-%j.out"
        said = self.run("launch/slurm_chain.sh", f"--output={output}", *words, show=True)
        return [line.removeprefix("job ").partition(":")[0] for line in said.splitlines()]

    def job(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, job: str) -> str:
        number = self.job(job)["JobId"]  # of a task of an array: its own
        return (self.folder / f"slurm-{number}.out").read_text()

    def wait(self, job: str, reached: Callable[[dict[str, str]], bool], seconds: float) -> dict[str, str]:
        """Until the job is so. `seconds` is what an idle machine may take; a busy one gets four times as long."""
        deadline = time.monotonic() + 4 * seconds
        while not reached(now := self.job(job)):
            assert time.monotonic() < deadline, f"{now}\n{self.log(job)[-4000:]}"
            time.sleep(0.2)
        return now

    def finish(self, job: str, seconds: float) -> dict[str, str]:
        """Wait for a job's end, and put its end and its log into the transcript."""
        ended = self.wait(job, lambda now: now["JobState"] in ENDED, seconds)
        self.say(f"job {job}: " + " ".join(f"{key}={ended[key]}" for key in ("JobState", "ExitCode", "Restarts")))
        self.say(f"$ cat slurm-{job}.out\n{shortened(self.log(job))}")
        return ended


def shortened(log: str) -> str:
    """A job's log without all but a few of the lines of steps, and without the warnings of libraries."""
    lines = [
        line
        for line in log.splitlines()
        if not line.startswith(("step", "[rank")) and "Warning" not in line and "**kwargs" not in line
    ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    up = subprocess.run(["bash", SCRIPT, "up", folder / "slurm"], capture_output=True, text=True, timeout=300)
    try:
        if up.returncode == 3:
            pytest.skip(up.stderr.strip())
        assert up.returncode == 0, up.stderr
        yield Cluster(folder)
    finally:
        subprocess.run(["bash", SCRIPT, "down", folder / "slurm"], check=True, timeout=60)


def step_of(run: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (FileNotFoundError, ValueError):
        return 0


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@long_tier("the array, of which a task is requeued by the same signal; equal bits in test_stop.py")
@pytest.mark.slow
def test_a_job_that_hits_its_limit_twice_ends_with_the_same_bits(cluster):
    straight, run = cluster.folder / "straight", cluster.folder / "run"
    steps = {"max_steps": 4000, "save_every": 0} if REAL_LIMIT else {"max_steps": 500}
    whole = subprocess.run(
        ["bash", ROOT / "launch" / "two_nodes.sh", "train_lm.py", *arguments(runs.lm_config(straight, **steps))],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert whole.returncode == 0, whole.stderr[-3000:]
    limit = ["--time=1", "--signal=B:USR1@20"] if REAL_LIMIT else []
    job = cluster.submit(*limit, "launch/slurm.sbatch", "train_lm.py", *arguments(runs.lm_config(run, **steps)))
    for start in range(2):
        if not REAL_LIMIT:
            begun = status(run)["step"] if start else 0
            cluster.wait(job, lambda now, begun=begun: step_of(run) > begun + 20, 90)
            cluster.run("squeue", show=True)
            cluster.run("scancel", "--batch", "--signal=USR1", job, show=True)
        cluster.wait(job, lambda now, start=start: int(now["Restarts"]) > start, 180)
        assert status(run)["state"] == "preempted"
        cluster.say(f"status.json: {(run / 'status.json').read_text()}")
        cluster.run("squeue", show=True)
    if REAL_LIMIT:
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30", show=True)
    ended = cluster.finish(job, 900 if REAL_LIMIT else 120)
    assert ended["JobState"] == "COMPLETED" and ended["ExitCode"] == "0:0" and ended["Restarts"] == "2"
    assert status(run) == {"state": "done", "step": steps["max_steps"]}
    assert cluster.log(job).count("requeueing, to go on from step") == 2
    assert json.loads((run / "config.json").read_text())["world_size"] == 2
    a, b = runs.weights(straight), runs.weights(run)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert runs.metrics(straight) == runs.metrics(run)
    cluster.say(
        f"model.safetensors of the job, stopped twice, and of a run never stopped: {len(a)} of {len(a)} "
        "tensors bit-equal (torch.equal), metrics.jsonl equal but for timings"
    )


@pytest.mark.slow
def test_a_killed_launcher_is_requeued_and_a_cancelled_job_is_not(cluster):
    run = cluster.folder / "killed"
    job = cluster.submit(
        "launch/slurm.sbatch", "train_lm.py", *arguments(runs.lm_config(run, max_steps=20000, save_every=20))
    )
    cluster.wait(job, lambda now: step_of(run) > 60, 90)
    (pid,) = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_launcher(pid, job, node=1)]
    os.kill(pid, signal.SIGKILL)
    cluster.say("kill -KILL the launcher of node 1")
    cluster.wait(job, lambda now: int(now["Restarts"]) == 1, 90)
    begun = status(run)["step"]
    assert begun >= 60
    cluster.wait(job, lambda now: step_of(run) > begun + 25, 90)
    cluster.run("scancel", job, show=True)
    ended = cluster.finish(job, 90)
    assert ended["JobState"] == "CANCELLED" and ended["Restarts"] == "1"
    # The job is cancelled before its script has written its last line, on a busy machine much before.
    cluster.wait(job, lambda now: "not requeued" in cluster.log(job), 60)
    left = status(run)
    assert left["state"] == "preempted" and left["step"] > begun
    assert (run / "checkpoints" / f"step-{left['step']:08d}").is_dir()


@pytest.mark.slow
@long_tier("test_requeue.py, with stand-ins for the commands of SLURM")
def test_a_chain_goes_on_where_requeueing_is_forbidden(cluster):
    lm, fine, clf = (cluster.folder / f"chain-{name}" for name in ("lm", "fine", "clf"))
    first, second, third = cluster.submit_chain(
        "--no-requeue",
        "--nodes=1",
        *("--", "train_lm.py", *arguments(runs.lm_config(lm, max_steps=300))),
        *("--", "train_lm.py", *arguments(runs.lm_config(fine, init=str(lm), max_steps=4))),
        *("--", "train_clf.py", *arguments(runs.clf_config(clf, encoder=str(fine), max_steps=4))),
    )
    cluster.wait(first, lambda now: step_of(lm) > 10, 120)
    cluster.run("squeue", "-o", "%.5i %.9T %E", show=True)
    cluster.run("scancel", "--batch", "--signal=USR1", first, show=True)
    ended = cluster.finish(first, 120)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "0" and status(lm)["state"] == "preempted"
    (again,) = re.findall(r"submitted again as job (\d+), to go on from step", cluster.log(first))
    assert f"job {second} now waits for job {again}" in cluster.log(first)
    cluster.run("squeue", "-o", "%.5i %.9T %E", show=True)
    for job in (again, second, third):
        assert cluster.finish(job, 240)["JobState"] == "COMPLETED"
    for run, steps in ((lm, 300), (fine, 4), (clf, 4)):
        assert status(run)["state"] == "done" and status(run)["step"] == steps
    assert "start 2 of job" in cluster.log(again) and "going on from" in cluster.log(again)

    # A predecessor that is not done: as after a cancelled job, which may have been submitted without the chain's options.
    (lm / "status.json").write_text(json.dumps({"state": "preempted", "step": 200}))
    cluster.environment["ULMFIT_AFTER"] = str(lm)
    refused = cluster.submit("launch/slurm.sbatch", "train_lm.py", "--init", str(lm), nodes=1)
    del cluster.environment["ULMFIT_AFTER"]
    assert cluster.finish(refused, 90)["JobState"] == "FAILED"
    assert f"{lm} is not done but preempted" in cluster.log(refused)


@pytest.mark.slow
def test_the_tasks_of_an_array_are_runs_of_their_own(cluster):
    run = f"{cluster.folder}/sweep-%a"
    options = [*arguments(runs.lm_config(run, max_steps=200, seed=5)), "--seed", "%a"]
    job = cluster.submit("--array=3-4", "launch/slurm.sbatch", "train_lm.py", *options, nodes=1)
    for task in (3, 4):
        cluster.wait(f"{job}_{task}", lambda now: now["JobState"] == "RUNNING", 120)
    # The last task to start has the number of the whole array: the other one is not requeued with it.
    last = f"{job}_{next(task for task in (3, 4) if cluster.job(f'{job}_{task}')['JobId'] == job)}"
    cluster.wait(last, lambda now: step_of(cluster.folder / f"sweep-{last[-1]}") > 10, 240)
    cluster.run("scancel", "--batch", "--signal=USR1", last, show=True)
    cluster.wait(last, lambda now: now["Restarts"] == "1", 120)
    for task in (3, 4):
        ended = cluster.finish(f"{job}_{task}", 360)
        assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == str(int(last.endswith(str(task))))
        stored = json.loads((cluster.folder / f"sweep-{task}" / "config.json").read_text())
        assert stored["options"]["seed"] == task and status(cluster.folder / f"sweep-{task}")["state"] == "done"


@pytest.mark.slow
@long_tier("distributed/test_preflight.py, without SLURM")
def test_a_node_that_is_not_fit_is_named_before_the_training(cluster, tmp_path):
    run = cluster.folder / "checked"
    words = ["launch/slurm.sbatch", "train_lm.py", *arguments(runs.lm_config(run, max_steps=3))]
    cluster.environment["ULMFIT_PREFLIGHT"] = "--timeout 100"  # a busy machine takes long to start Python
    python = cluster.environment["ULMFIT_PYTHON"]
    try:
        job = cluster.submit(*words)
        assert cluster.finish(job, 600)["JobState"] == "COMPLETED"
        assert "preflight: 2 nodes with 1 process(es) each, all-reduce of 64 MiB in" in cluster.log(job)
        # The second node's Python is broken.
        broken = tmp_path / "python"
        broken.write_text(f'#!/bin/bash\n[ "${{SLURM_NODEID:-0}}" = 0 ] || exit 127\nexec {python} "$@"\n')
        broken.chmod(0o755)
        cluster.environment["ULMFIT_PYTHON"] = str(broken)
        job = cluster.submit(*words)
        assert cluster.finish(job, 600)["ExitCode"] == "1:0"
        assert "n2: nothing was heard of it" in cluster.log(job)
        assert "leave out the bad by: sbatch --exclude=n2 ..." in cluster.log(job)
        # GPUs that SLURM gives and torch does not see.
        cluster.environment["ULMFIT_PYTHON"] = python
        job = cluster.submit("--gpus-per-node=2", *words, nodes=1)
        assert cluster.finish(job, 600)["ExitCode"] == "1:0"
        assert "n1: SLURM gave 2 GPU(s) and torch sees 0" in cluster.log(job)
        assert "--exclude=n1 ..." in cluster.log(job)
    finally:
        del cluster.environment["ULMFIT_PREFLIGHT"]
        cluster.environment["ULMFIT_PYTHON"] = python


def is_launcher(pid: int, job: str, *, node: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        f"SLURM_JOB_ID={job}".encode() in variables
        and b"--machine_rank" in words
        and words[words.index(b"--machine_rank") + 1] == str(node).encode()
        and words[0] != b"srun"
    )


@pytest.mark.slow
def test_a_mistake_ends_the_job(cluster):
    run = cluster.folder / "mistake"
    options = arguments(runs.lm_config(run))
    trainer = ["launch/slurm.sbatch", "train_lm.py", *options]
    misspelt = cluster.submit(*trainer, "--epoch", "3")
    no_trainer = cluster.submit("launch/slurm.sbatch", "train_it.py", nodes=1)
    # Found by the trainer itself, after the launch of a process for each GPU of the job.
    no_file = cluster.submit("--gpus-per-node=2", *trainer, "--data", "nowhere.csv", nodes=1)
    for job, named in ((misspelt, "--epochs"), (no_trainer, "train_it.py"), (no_file, "nowhere.csv")):
        ended = cluster.finish(job, 90)
        assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "2:0" and ended["Restarts"] == "0"
        assert named in cluster.log(job) and "error: " in cluster.log(job)
    assert "1 node(s) with 2 process(es)" in cluster.log(no_file)
    assert not run.exists()
