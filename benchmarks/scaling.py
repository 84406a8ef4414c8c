"""The same global batch on one process and on several, and a model of the cost of a step on 8 to 512 GPUs.

    python benchmarks/scaling.py                                # 1 process x all threads against 2 x half, base size
    python benchmarks/scaling.py --processes 1 2 4 8 --rows 1024 --steps 50 --precision bf16           # on GPUs
    python benchmarks/scaling.py --weak --processes 1 8 --rows 256                 # so many rows a process
    python benchmarks/scaling.py --model --rows 64 256 1024                        # the table alone

Measured is the trainer's step of the language model (several processes under torchrun), the configurations in turn
(A B A B), on the CPU with the same number of threads in all. The losses of all configurations must be equal within
1e-5 (fp32, unless --weak). For the check of the model each run also measures a step without the reduction of
gradients, and one bare all-reduce of as many bytes.

The model is in scaling_model.py, with a source for each of its constants; each has an option.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys

import side_by_side as sides
import torch
from lm_step import SIZES, build_ours, lstm_flops
from scaling_model import add_options, exposed, parameter_bytes, print_model, transfers_of


def work(options: argparse.Namespace) -> None:
    """One process; rank 0 prints what it measured."""
    import torch.distributed as dist

    with sides.protocol():
        world = int(os.environ.get("WORLD_SIZE", 1))
        rows = options.rows[0] * (world if options.weak else 1)
        step, engine, runtime = build_ours(options.preset, options.vocab_size, rows, options.bptt, options.precision)
        size = sum(parameter_bytes(options.preset, options.vocab_size))
        assert size == sum(4 * parameter.numel() for parameter in engine.model.parameters())
        losses = [runtime.sum(step()).item() for _ in range(2)]  # the first steps are slow
        found = {
            "step": statistics.median(sides.seconds(step) for _ in range(options.steps)),
            "losses": losses,
            "threads": torch.get_num_threads(),
        }
        if world > 1:
            with engine.model.no_sync():
                found["local"] = statistics.median(sides.seconds(step) for _ in range(options.steps))
            gradients = torch.zeros(int(size) // 4, device=runtime.device)
            dist.all_reduce(gradients)
            found["reduce"] = statistics.median(
                sides.seconds(lambda: dist.all_reduce(gradients)) for _ in range(max(3, options.steps))
            )
        if runtime.is_main:
            sides.say(found)
        runtime.close()


def launch(options: argparse.Namespace, processes: int) -> dict:
    env = sides.environment(max(1, options.threads // processes))
    # One process as one would start it, by itself: under torchrun it would be wrapped in DDP.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *sys.argv, "--worker"]
    output = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> None:
    runs: dict[int, list[dict]] = {processes: [] for processes in options.processes}
    for _ in range(options.rounds):
        for processes, done in runs.items():
            done.append(launch(options, processes))
    first = runs[options.processes[0]]
    scale = options.rows[0] * options.bptt
    for processes, done in runs.items():
        rows = processes if options.weak else 1
        pace = [scale * rows / run["step"] for run in done]
        base = [scale * (options.processes[0] if options.weak else 1) / run["step"] for run in first]
        print(
            f"{processes} processes x {done[0]['threads']} threads: {statistics.median(pace):9.1f} tokens/s, "
            f"{sides.ratio(pace, base)} of {options.processes[0]} process",
            flush=True,
        )
        if not options.weak and options.precision == "fp32":
            for run in done:
                assert all(
                    math.isclose(a, b, rel_tol=1e-5) for a, b in zip(run["losses"], first[0]["losses"], strict=True)
                ), (run, first[0])
        if processes > 1:
            step, local, reduce = (statistics.median(run[key] for run in done) for key in ("step", "local", "reduce"))
            lstm, embedding = parameter_bytes(options.preset, options.vocab_size)
            share = lstm / (lstm + embedding)
            layers = SIZES[options.preset][2]
            # Of a step's time the LSTM's share by arithmetic, two thirds of which are its backward pass.
            arithmetic = lstm_flops(options.preset)
            backward = local * 2 / 3 * arithmetic / (arithmetic + 2 * SIZES[options.preset][0] * options.vocab_size)
            # The words of these random tokens are nearly all different; of the tied weight nothing is sent apart.
            parts = transfers_of(reduce * share, reduce * (1 - share), backward, layers, words=None)
            says = local + exposed(parts, backward)
            print(
                f"  step {step:.3f} s; without reduction {local:.3f} s; bare all-reduce of "
                f"{(lstm + embedding) / 1e6:.0f} MB {reduce:.3f} s; the model says {says:.3f} s (measured / model "
                f"{step / says:.2f}), and {local + reduce:.3f} s where nothing is hidden"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=SIZES)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[64], help="of the global batch; of a GPU in the model")
    parser.add_argument("--bptt", type=int, default=72)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all processes together")
    parser.add_argument("--weak", action="store_true", help="--rows are those of each process")
    parser.add_argument("--steps", type=int, default=3, help="steps of a launch (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="launches of each configuration (default 3)")
    parser.add_argument("--model", action="store_true", help="print the model's table and measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    print(sides.machine())
    if options.model:
        return print_model(options)
    measure(options)


if __name__ == "__main__":
    main()
