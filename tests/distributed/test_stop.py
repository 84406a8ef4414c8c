"""Requests to stop, as they reach two real processes through real launchers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from tests.tiers import LONG
from tests.training import runs
from ulmfit.run import checkpoint

pytestmark = pytest.mark.timeout(900)
STEPS = 600  # a stop takes up to 40 fast steps: they ask each other every 20
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(runs.ROOT / "launch" / "cpu_2_processes.yaml"),
]
TWO_NODES = ["bash", str(runs.ROOT / "launch" / "two_nodes.sh")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(launcher: list[str], run: Path, *options: str, protect: bool = False, **config) -> subprocess.Popen:
    """A run on a small corpus, the launcher in a process group of its own, as a shell makes one.

    `protect` starts the launcher deaf to SIGUSR1, which would kill it and leave its workers without the signal.
    """
    data = run.parent / "reviews.csv"
    if not data.exists():
        runs.write_reviews(data, 120)
    command = [
        *launcher,
        str(runs.ROOT / "train_lm.py"),
        *runs.arguments(runs.lm_config(run, max_steps=STEPS, data=str(data), preset="tiny", **config)),
        *options,
    ]
    if protect:
        command = ["bash", "-c", 'trap "" USR1; exec "$@"', "bash", *command]
    with open(run.parent / "log", "a") as log:
        return subprocess.Popen(
            command,
            env=runs.environment(run.parent / "cache", ULMFIT_PYTHON=sys.executable),
            stdout=log,
            stderr=log,
            start_new_session=True,
            # A shell's background job ignores SIGINT, and so does what it starts: bash cannot even trap it then.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def events(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"event": "train"') if file.exists() else 0


def wait_for_steps(process: subprocess.Popen, run: Path, number: int = 3) -> None:
    """Until the run has gone `number` steps on from where it stands (its checkpoint, when it resumes)."""
    goal, deadline = events(run) + number, time.monotonic() + 120
    while events(run) < goal:
        assert process.poll() is None and time.monotonic() < deadline, (run.parent / "log").read_text()[-4000:]
        time.sleep(0.05)


def workers(run: Path) -> list[int]:
    """Living processes that train into this directory, launchers included."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words:
            found.append(int(entry))
    return found


def ranks(run: Path) -> list[int]:
    """The processes that train into this directory, without their launchers."""
    return [pid for pid in workers(run) if b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()]


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def is_asked(pid: int) -> bool:
    """Whether a stop signal waits to be delivered to a suspended process."""
    lines = status_of(pid)
    waiting = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    return any(waiting >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


@contextmanager
def suspended(run: Path, *, until_asked: bool = True) -> Iterator[list[int]]:
    """Suspend the ranks within the context, so that they are not done before the stop request reaches them.

    On a busy machine a launcher takes seconds to hand a signal on, in which a run as short as this one ends. One rank
    that is asked is enough: it tells the others. (Launchers of two nodes do not hand a signal on at the same time, and
    a launcher kills a rank that stays suspended for half a minute.)
    """
    pids = ranks(run)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 120
    while not all("T" in status_of(pid)["State"].split() for pid in pids):
        assert time.monotonic() < deadline, "the ranks are not suspended"
        time.sleep(0.01)
    try:
        yield pids
        while until_asked and not any(map(is_asked, pids)):
            assert time.monotonic() < deadline, "the stop request reaches no rank"
            time.sleep(0.05)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def check_preempted(run: Path, process: subprocess.Popen, *, after: int, seconds: float = 60) -> int:
    """The run ended with a checkpoint beyond step `after`, leaving no process; returns its step."""
    process.wait(timeout=seconds)
    deadline = time.monotonic() + seconds
    while workers(run):
        assert time.monotonic() < deadline, "workers outlive their launcher"
        time.sleep(0.1)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted", (run.parent / "log").read_text()[-4000:]
    newest = checkpoint.latest(run / "checkpoints", warn=pytest.fail)
    assert newest == run / "checkpoints" / f"step-{status['step']:08d}"
    assert after < status["step"] < STEPS
    return status["step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing stops."""
    run = tmp_path_factory.mktemp("straight") / "run"
    process = start(TORCHRUN, run)
    assert process.wait(timeout=600) == 0, (run.parent / "log").read_text()[-4000:]
    return run


def check_same_bits(a: Path, b: Path) -> None:
    x, y = runs.weights(a), runs.weights(b)
    assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    assert runs.metrics(a) == runs.metrics(b)


@pytest.mark.slow
def test_one_run_stopped_in_every_way(straight, tmp_path):
    """Each start goes on from where the last one stopped, and the end is that of a run never stopped."""
    run = tmp_path / "run"
    step = 0
    # accelerate launches several processes by torchrun's agent: what one of them does with a signal the other does.
    process = start(ACCELERATE, run)  # as a scheduler or `kill` does
    wait_for_steps(process, run)
    with suspended(run):
        process.send_signal(signal.SIGTERM)
    step = check_preempted(run, process, after=step)

    process = start(TORCHRUN, run)  # as a terminal does
    wait_for_steps(process, run)
    with suspended(run):
        os.killpg(process.pid, signal.SIGINT)
    step = check_preempted(run, process, after=step)

    process = start(ACCELERATE, run, protect=True)  # as scancel and #SBATCH --signal do: to every process
    wait_for_steps(process, run)
    with suspended(run):
        for pid in workers(run):
            os.kill(pid, signal.SIGUSR1)
    step = check_preempted(run, process, after=step)
    assert process.returncode == 0

    if LONG:  # one process's is in training/test_fit.py
        process = start(ACCELERATE, run)
        wait_for_steps(process, run)
        with suspended(run, until_asked=False):
            (run / "stop").touch()
        step = check_preempted(run, process, after=step)
        assert process.returncode == 0

    process = start(TWO_NODES, run)  # Ctrl-C, which reaches the script and not the launchers
    wait_for_steps(process, run)
    with suspended(run):
        os.killpg(process.pid, signal.SIGINT)
    step = check_preempted(run, process, after=step)

    if LONG:  # one process's is in test_interrupt.py
        process = start(TORCHRUN, run, "--max-time", "0.001")
        step = check_preempted(run, process, after=step)
        assert process.returncode == 0

    process = start(ACCELERATE, run)
    wait_for_steps(process, run)
    with suspended(run, until_asked=False):
        process.kill()  # its workers notice, though nobody tells them
        process.wait()
    step = check_preempted(run, process, after=step)

    process = start(TORCHRUN, run)
    assert process.wait(timeout=120) == 0
    check_same_bits(straight, run)


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_with_the_same_bits(straight, tmp_path):
    run = tmp_path / "run"
    process = start([*TORCHRUN, "--max_restarts", "3"], run, save_every=10)
    for _ in range(2):
        wait_for_steps(process, run, 15)
        (victim,) = [pid for pid in workers(run) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        os.kill(victim, signal.SIGKILL)
        time.sleep(1)  # the agent looks ten times a second
    assert process.wait(timeout=120) == 0, (run.parent / "log").read_text()[-4000:]
    assert not workers(run)
    check_same_bits(straight, run)


@pytest.mark.slow
def test_one_process_notices_that_its_launcher_was_terminated(tmp_path):
    """accelerate's launcher of one process dies of a SIGTERM without handing it on."""
    run = tmp_path / "run"
    process = start([*ACCELERATE[:-1], str(runs.ROOT / "launch" / "cpu.yaml")], run)
    wait_for_steps(process, run)
    process.terminate()
    check_preempted(run, process, after=0)
    assert process.returncode == -signal.SIGTERM


def start_node(rank: int, port: int, run: Path) -> subprocess.Popen:
    """The launcher of one of two machines, with one process of the run, each in a session of its own."""
    launcher = [*ACCELERATE[:-1], str(runs.ROOT / "launch" / "several_nodes.yaml"), "--num_machines", "2",
                "--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1",
                "--main_process_port", str(port)]  # fmt: skip
    return start(launcher, run, save_every=10)


def end_node(process: subprocess.Popen) -> None:
    """Kill a machine's launcher and its process at once, as when it loses its power."""
    pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.skipif("ULMFIT_LONG" not in os.environ, reason="minutes: set ULMFIT_LONG, as tests/run_long.sh does")
def test_a_node_that_fails_ends_the_other_with_a_sentence_and_the_same_commands_go_on(straight, tmp_path):
    run = tmp_path / "run"
    for failing in (1, 0, None):  # 0 has the store by which the ranks have met
        before = len((tmp_path / "log").read_text()) if failing is not None and run.exists() else 0
        port = free_port()
        nodes = [start_node(rank, port, run) for rank in (0, 1)]
        if failing is None:
            assert [node.wait(600) for node in nodes] == [0, 0], (tmp_path / "log").read_text()[-4000:]
            break
        wait_for_steps(nodes[0], run, 15)
        end_node(nodes[failing])
        assert nodes[1 - failing].wait(120) == 1
        told = (tmp_path / "log").read_text()[before:]
        assert f"failed: rank {1 - failing} cannot reach another rank any more (" in told, told[-4000:]
        deadline = time.monotonic() + 60
        while workers(run):
            assert time.monotonic() < deadline, "workers outlive their launcher"
            time.sleep(0.1)
    check_same_bits(straight, run)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    """While torch is being imported, which takes longer than anything else that cannot be interrupted."""
    run = tmp_path / "run"
    command = [sys.executable, str(runs.ROOT / "train_lm.py"), *runs.arguments(runs.lm_config(run, max_steps=STEPS))]
    process = subprocess.Popen(command, env=runs.environment(tmp_path / "cache"), stderr=subprocess.PIPE, text=True)
    while not handles(process.pid, signal.SIGUSR1):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "Ctrl-C again to leave at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and not run.exists()
