"""The same global batch on one process and on several, and a model of the cost of a step on 8 to 512 GPUs.

    python benchmarks/scaling.py                                # 1 process x all threads against 2 x half, base size
    python benchmarks/scaling.py --processes 1 2 4 8 --rows 1024 --steps 50 --precision bf16           # on GPUs
    python benchmarks/scaling.py --weak --processes 1 8 --rows 256                 # so many rows a process
    python benchmarks/scaling.py --model --rows 64 256 1024                        # the table alone

Measured is the trainer's step of the language model (several processes under torchrun), the configurations in turn
(A B A B), on the CPU with the same number of threads in all. The losses of all configurations must be equal within
1e-5 (fp32, unless --weak). For the check of the model each run also measures a step without the reduction of
gradients, and one bare all-reduce of as many bytes.

The model: a step takes compute + the part of the all-reduce that nothing hides.
- compute: matrix products at a sustained rate; the recurrence takes its time steps one after another, forward and
  twice backward, each the longer of its own product and a latency;
- all-reduce of N processes: 2 (N - 1) / N x bytes / bandwidth + a latency x log2 N; the bandwidth is that inside a
  node up to --node-size, that between nodes beyond;
- hidden: gradients of LSTM layers travel while the layers below them are differentiated. The tied embedding (54 % of
  the bytes at V = 60,000) is ready last, so that nothing hides it.
The constants are assumptions until they are measured on the machine in question; each has an option.
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


def parameter_bytes(preset: str, vocab_size: int, width: int = 4) -> tuple[float, float]:
    """Bytes of the gradients of the LSTM layers, and of the tied embedding with its bias."""
    embedding, hidden, layers = SIZES[preset]
    sizes = [embedding, *[hidden] * (layers - 1), embedding]
    lstm = sum(4 * out * (inner + out + 2) for inner, out in zip(sizes[:-1], sizes[1:], strict=True))
    return float(width * lstm), float(width * vocab_size * (embedding + 1))


def exposed(lstm: float, embedding: float, backward: float, layers: int) -> float:
    """Seconds of an all-reduce that nothing hides: `lstm` and `embedding` are the seconds of their parts, `backward`
    those of differentiating all LSTM layers; the last layer's own part of it is over before there is a gradient."""
    return embedding + max(0.0, lstm - backward * (layers - 1) / layers)


def model_step(options: argparse.Namespace, rows: int, gpus: int) -> dict[str, float]:
    """Seconds of a step and of its parts, for `rows` rows a GPU."""
    embedding, hidden, layers = SIZES[options.preset]
    rate = options.rate * 1e12
    widths = [*[hidden] * (layers - 1), embedding]
    steps = sum(max(options.step_latency * 1e-6, 8 * rows * width**2 / rate) for width in widths)
    inputs = rows * (lstm_flops(options.preset) - sum(8 * width**2 for width in widths)) / rate
    lstm = options.bptt * (steps + inputs)  # forward
    output = options.bptt * rows * 2 * embedding * options.vocab_size / rate
    compute = 3 * (lstm + output)
    bandwidth = 1e9 * (options.inside if gpus <= options.node_size else options.between)
    parts = parameter_bytes(options.preset, options.vocab_size, options.gradient_bytes)

    def reduce(size: float) -> float:
        if gpus == 1:
            return 0.0
        return 2 * (gpus - 1) / gpus * size / bandwidth + options.latency * 1e-6 * math.log2(gpus)

    waits = exposed(*map(reduce, parts), 2 * lstm, layers)
    return {"compute": compute, "reduce": sum(map(reduce, parts)), "exposed": waits, "step": compute + waits}


def print_model(options: argparse.Namespace) -> None:
    size = sum(parameter_bytes(options.preset, options.vocab_size, options.gradient_bytes))
    print(f"Model of {options.preset}, V = {options.vocab_size}, bptt {options.bptt}, {size / 1e6:.0f} MB of gradients")
    print(
        f"Assumed: {options.rate:g} TFLOP/s sustained, {options.step_latency:g} us a time step, {options.inside:g} "
        f"GB/s in a node of {options.node_size}, {options.between:g} GB/s between nodes, {options.latency:g} us x "
        "log2 N"
    )
    print("rows/GPU   GPUs  compute ms  all-reduce ms  exposed ms    tokens/s  efficiency")
    for rows in options.rows:
        for gpus in (1, 8, 16, 32, 64, 128, 256, 512):
            cost = model_step(options, rows, gpus)
            print(
                f"{rows:8} {gpus:6} {cost['compute'] * 1e3:11.1f} {cost['reduce'] * 1e3:14.2f} "
                f"{cost['exposed'] * 1e3:11.2f} {gpus * rows * options.bptt / cost['step']:11.3g} "
                f"{cost['compute'] / cost['step']:11.1%}"
            )
    needed = [
        f"{gpus} GPUs {next(rows for rows in range(8, 10**6, 8) if efficient(options, rows, gpus))}"
        for gpus in (8, 64, 512)
    ]
    print("rows a GPU for 90 %: " + ", ".join(needed))


def efficient(options: argparse.Namespace, rows: int, gpus: int) -> bool:
    cost = model_step(options, rows, gpus)
    return cost["compute"] >= 0.9 * cost["step"]


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
            hides = local + exposed(reduce * share, reduce * (1 - share), backward, layers)
            print(
                f"  step {step:.3f} s; without reduction {local:.3f} s; bare all-reduce of "
                f"{(lstm + embedding) / 1e6:.0f} MB {reduce:.3f} s; the model says {hides:.3f} s, and "
                f"{local + reduce:.3f} s where nothing is hidden"
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
    group = parser.add_argument_group("assumptions of the model")
    group.add_argument("--rate", type=float, default=300, help="TFLOP/s that matrix products sustain")
    group.add_argument("--step-latency", type=float, default=6, help="microseconds, at least, a time step a layer")
    group.add_argument("--inside", type=float, default=400, help="GB/s of all-reduce in a node (NVLink)")
    group.add_argument("--between", type=float, default=50, help="GB/s of all-reduce between nodes (one port a GPU)")
    group.add_argument("--node-size", type=int, default=8)
    group.add_argument("--latency", type=float, default=20, help="microseconds of an all-reduce, x log2 N")
    group.add_argument("--gradient-bytes", type=int, default=4, choices=(2, 4))
    options = parser.parse_args()
    if options.worker:
        return work(options)
    print(sides.machine())
    if options.model:
        return print_model(options)
    measure(options)


if __name__ == "__main__":
    main()
