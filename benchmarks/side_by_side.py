"""What the benchmarks share: two sides in processes of their own that are measured in turn, and the machine's peak.

A script that compares runs itself once per side, with the hidden option --side: `ours` in this Python, `peer` in the
one given by --peer. Both sides live as long as the measurement; a round is one line to a side's stdin and one line of
JSON from it, so that ours and the peer alternate (A B A B) and meet the same weather on a shared machine. This file
needs torch alone: the peer's environment does not hold ulmfit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ulmfit, where the project is not installed

#: A glibc heap that keeps what it was given instead of handing it back to the system and faulting it in again.
WARM_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}


def add_options(parser: argparse.ArgumentParser, *, rounds: int, malloc: bool = False) -> None:
    """The options of every script that compares two sides."""
    add_peer(parser)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each side (default {rounds})")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (default: torch's)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    if malloc:
        parser.add_argument(
            "--malloc",
            nargs="+",
            default=["default"],
            metavar="HEAP",
            help="heaps to measure under, both sides alike: default, warm (glibc that keeps its "
            "memory) or a library to preload, such as libjemalloc.so.2",
        )


def add_peer(parser: argparse.ArgumentParser) -> None:
    def executable(path: str) -> str:
        if shutil.which(path) is None:
            raise argparse.ArgumentTypeError(f"{path} is no program; give FOLDER/bin/python of setup_peer.sh FOLDER")
        return path

    parser.add_argument(
        "--peer",
        type=executable,
        metavar="PYTHON",
        help="of the environment made by setup_peer.sh (default: ours alone)",
    )


def environment(threads: int | None = None, heap: str = "default") -> dict[str, str]:
    """The environment of both sides."""
    env = dict(os.environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    if heap == "warm":
        env |= WARM_HEAP
    elif heap != "default":
        env["LD_PRELOAD"] = heap
    return env


class Side:
    """One side's process. `facts` is what it told when it was ready, `rounds` what each round gave."""

    def __init__(self, name: str, python: str, argv: Sequence[str], env: dict[str, str]) -> None:
        self.name, self.rounds = name, []
        self._process = subprocess.Popen(
            [python, *argv, "--side", name], text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the side {self.name!r} ended with code {self._process.wait()}: see its message above")
        return json.loads(line)

    def measure(self) -> dict[str, Any]:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.rounds.append(self._read())
        return self.rounds[-1]

    def close(self) -> dict[str, Any]:
        """End the process; what it has to tell at the end."""
        self._process.stdin.close()
        last = self._read()
        self._process.wait()
        return last

    def median(self, key: str) -> float:
        return statistics.median(measured[key] for measured in self.rounds)

    def values(self, key: str) -> list[float]:
        return [measured[key] for measured in self.rounds]


def alternate(
    options: argparse.Namespace, argv: Sequence[str], env: dict[str, str], more: Sequence[str] = ()
) -> dict[str, Side]:
    """Measure all sides in turn; a first round that is not kept warms each up. Returns ended sides by name.

    `more` names further sides in this Python. `memory` (GiB at the peak) is added to each side's facts.
    """
    sides = {name: Side(name, sys.executable, argv, env) for name in ("ours", *more)}
    if options.peer:
        sides["peer"] = Side("peer", options.peer, argv, env)
    try:
        for side in sides.values():
            side.measure()
            side.rounds.clear()
        for number in range(options.rounds):
            # A B, B A, A B ...: neither side is always the one that follows the other.
            order = list(sides.values())[:: 1 if number % 2 == 0 else -1]
            for side in order:
                side.measure()
    finally:
        for side in sides.values():
            side.facts |= side.close()
    return sides


def serve(measure: Callable[[], dict[str, Any]], last: Callable[[], dict[str, Any]] = dict, **facts: Any) -> None:
    """A side's half of `alternate`: tell `facts`, one measurement a line of stdin, and at the end what `last` finds.

    Started under `protocol`.
    """
    say(facts)
    for _ in sys.stdin:
        say(measure())
    say({"memory": peak_memory()} | last())


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


def protocol() -> contextlib.AbstractContextManager:
    """Within it only `say` writes to stdout: libraries print their progress there."""
    return contextlib.redirect_stdout(sys.stderr)


def peak_memory() -> float:
    """GiB: the device's allocated peak, else this process's largest resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # VmHWM and not ru_maxrss, which a process takes over from the one that started it.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of `work`, the device's share of it included."""
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


def wall_and_cpu(name: str, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of `work` as {name}, and those of this process's cores as {name}_cpu (a busy machine disturbs them less;
    OMP_WAIT_POLICY=PASSIVE, or waiting counts)."""
    cpu = time.process_time()
    wall = seconds(work)
    return {name: wall, f"{name}_cpu": time.process_time() - cpu}


def matrix_peak(precision: str = "fp32") -> dict[str, float]:
    """FLOP/s of a large square matrix product, the best of six: what the machine gives at this moment.

    `peak` is by wall time, `peak_cpu` by CPU seconds, that is of one core.
    """
    cuda = torch.cuda.is_available()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32) if cuda else torch.float32
    n = 8192 if cuda else 1536
    a = torch.ones(n, n, dtype=dtype, device="cuda" if cuda else "cpu")
    out = torch.empty_like(a)
    times = [wall_and_cpu("peak", lambda: torch.mm(a, a, out=out)) for _ in range(6)]
    return {name: 2 * n**3 / min(found[name] for found in times) for name in ("peak", "peak_cpu")}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the rounds' ratios with their range: above 1 where `ours` is larger."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def machine() -> str:
    """One line on where and when."""
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return (
        f"{date.today()}, {platform.machine()}, {device}, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, commit {commit.stdout.strip() or 'unknown'}"
    )
