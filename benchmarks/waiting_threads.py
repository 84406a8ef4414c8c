"""How the threads of a training step should wait for each other, with and without other load.

    python benchmarks/waiting_threads.py [--rounds 3] [--first] [--preset tiny --rows 16 --bptt 30]

Times the step of a language model with two threads that spin as long as OpenMP does by default, that spin less, and that
sleep at once; and with one thread; in turns. `--first` (root) puts the timed process before all others of the machine for
the seconds that it takes, which measures free cores on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

WAYS = {
    "2 threads, OpenMP's default": {"OMP_NUM_THREADS": "2"},
    "2 threads, 30,000 spins": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "30000"},
    "2 threads, 10,000 spins": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "10000"},
    "2 threads, 3,000 spins": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "3000"},
    "2 threads, PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}
VOCABULARY = 8000


def measure(preset: str, rows: int, bptt: int, steps: int) -> float:
    """Median seconds of a step of this process."""
    import torch

    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.language_model import LanguageModelNet

    net = LanguageModelNet(AWDLSTMConfig(VOCABULARY, **PRESETS[preset])).train()
    tokens, state = torch.randint(0, VOCABULARY, (rows, bptt)), net.init_state(rows)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    times = []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        (net(tokens, tokens, state).ce_sum / tokens.numel()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--bptt", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.first:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        print(measure(options.preset, options.rows, options.bptt, options.steps))
        return
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, environment in WAYS.items():
            command = [sys.executable, *sys.argv, "--one"]
            told = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
            found[way].append(1000 * float(told.stdout))
    print("| | ms a step, median | range |\n|---|---|---|")
    for way, times in found.items():
        print(f"| {way} | {statistics.median(times):.1f} | {min(times):.1f} to {max(times):.1f} |")


if __name__ == "__main__":
    main()
