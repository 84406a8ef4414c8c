"""A model of the cost of a training step of the language model on N GPUs; `scaling.py --model` prints its table.

A step takes as long as the longer of what the device does, with the communication that nothing hides, and the host.

- LSTM: its time steps follow one another, forward and backward, each with a latency; its matrix products run at a rate.
- Loss: matrix products at a rate, and passes over the float32 logits [tokens, V] at the memory's bandwidth. It is
  memory-bound: the fused loss makes a third of the passes of the plain one.
- The rest: optimizer and clipping, passes over the parameters; a constant.
- All-reduce of N processes: 2 (N - 1) / N x bytes / bandwidth + a latency x log2 N. Transfers follow one another, each from
  when its gradient is there. What ends after the backward pass is exposed.
- The gradient of the tied weight: the output layer's part is there at the beginning of the backward pass, the embedding's
  at its end. They are sent apart (training/tied_reduction.py) while a step has at most half of the vocabulary's words, the
  second with these words only; beyond, or with --tied late, their sum is sent at the end.

Not in it: ranks that wait for a slow one, data from a slow disk, checkpoints and evaluations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from lm_step import SIZES, lstm_flops

MEMORY = {"h100": 3.35, "h200": 4.8}  # TB/s, data sheets


@dataclass(frozen=True)
class Assumption:
    """A constant of the model, with an option of its name."""

    name: str
    value: float
    unit: str
    source: str


ASSUMPTIONS = (
    Assumption("lstm-rate", 425, "TFLOP/s", "estimate for cuDNN in bf16; half of the measured peak of matrix products"),
    Assumption("step-latency", 8, "us a time step, layer and direction", "estimate for cuDNN without persistent kernels"),
    Assumption("loss-rate", 600, "TFLOP/s", "estimate for cuBLAS in bf16 at these shapes; 660 to 750 measured on square ones"),
    Assumption("passes-fused", 4, "passes over the logits", "counted: ulmfit/model/fused_loss.py, 3.5 to 4.5"),
    Assumption("passes-plain", 12.5, "passes over the logits", "counted in a profile of ulmfit/model/loss.py"),
    Assumption("memory-share", 0.8, "of the data sheet's bandwidth", "usual for streaming kernels"),
    Assumption("parameter-passes", 9, "passes over the parameters", "counted: fused AdamW 7, norm and scaling of clipping 2"),
    Assumption("rest", 1, "ms", "estimate: masks, embedding, AR and TAR, copies"),
    Assumption("host", 10, "ms a step", "estimate from the number of kernels that a step submits"),
    Assumption("inside", 300, "GB/s of bus bandwidth in a node", "476 measured at 16 GB (NVIDIA/nccl-tests issue 290); less at 100 MB"),
    Assumption("between", 216, "GB/s between nodes, 8 x 400 Gbit/s", "measured, 2 nodes of H100 with RoCE (NVIDIA/nccl issue 2409)"),
    Assumption("one-port", 40, "GB/s between nodes, 1 x 400 Gbit/s", "measured at 16 to 32 MB (NVIDIA/nccl-tests issue 232)"),
    Assumption("latency", 20, "us x log2 N", "estimate: a small all-reduce takes 20 us on 2 GPUs and 60 on 8"),
    Assumption("node-size", 8, "GPUs a node", "as HGX"),
    Assumption("zipf", 1.0, "exponent of the words' frequencies", "usual for English"),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each assumption."""
    group = parser.add_argument_group("assumptions of the model")
    for one in ASSUMPTIONS:
        group.add_argument(f"--{one.name}", type=float, default=one.value, help=f"{one.unit} (default {one.value:g})")
    group.add_argument("--gpu", default="h100", choices=MEMORY)
    group.add_argument("--loss", default="fused", choices=("fused", "plain"))
    group.add_argument(
        "--tied", default="early", choices=("early", "late"), help="when the output layer's gradient is sent"
    )
    group.add_argument("--network", default="between", choices=("between", "one-port"), help="of the nodes")
    group.add_argument("--gradient-bytes", type=int, default=4, choices=(2, 4))


def parameter_bytes(preset: str, vocab_size: int, width: int = 4) -> tuple[float, float]:
    """Bytes of the gradients of the LSTM layers, and of the tied embedding with its bias."""
    embedding, hidden, layers = SIZES[preset]
    sizes = [embedding, *[hidden] * (layers - 1), embedding]
    lstm = sum(4 * out * (inner + out + 2) for inner, out in zip(sizes[:-1], sizes[1:], strict=True))
    return float(width * lstm), float(width * vocab_size * (embedding + 1))


def exposed(transfers: Sequence[tuple[float, float]], backward: float) -> float:
    """Seconds after the backward pass until the last transfer has ended.

    Args:
        transfers: (seconds from the beginning of the backward pass until the gradient is there, seconds of the transfer),
            in the order in which they are sent.
        backward: seconds of the backward pass behind which they are sent.
    """
    free = 0.0
    for ready, seconds in transfers:
        free = max(free, ready) + seconds
    return max(0.0, free - backward)


def transfers_of(
    lstm: float, tied: float, backward: float, layers: int, *, words: float | None
) -> list[tuple[float, float]]:
    """The transfers of a step: the last layer's gradient is the first one.

    Args:
        lstm, tied: seconds of the transfers of all LSTM layers, and of the whole tied weight.
        words: share of the vocabulary in a step; None where the tied weight is sent in one part at the end.
    """
    layer_by_layer = [(backward * (layer + 1) / layers, lstm / layers) for layer in range(layers)]
    if words is None:
        return [*layer_by_layer, (backward, tied)]
    return [(0.0, tied), *layer_by_layer, (backward, tied * words)]


@lru_cache
def distinct_words(tokens: int, vocab_size: int, zipf: float) -> float:
    """Expected share of the vocabulary among so many tokens."""
    frequency = 1.0 / (np.arange(vocab_size) + 2.7) ** zipf  # Zipf and Mandelbrot
    frequency /= frequency.sum()
    return float(-np.expm1(tokens * np.log1p(-frequency)).mean())


def step_of(options: argparse.Namespace, rows: int, gpus: int) -> dict[str, float]:
    """Seconds of a step and of its parts, for `rows` rows a GPU."""
    embedding, _, layers = SIZES[options.preset]
    tokens = rows * options.bptt
    memory = MEMORY[options.gpu] * 1e12 * options.memory_share
    steps = options.bptt * layers * options.step_latency * 1e-6  # of one direction
    product = tokens * lstm_flops(options.preset) / (options.lstm_rate * 1e12)
    backward = steps + 2 * product
    passes = options.passes_fused if options.loss == "fused" else options.passes_plain
    loss = tokens * options.vocab_size * (4 * passes / memory + 6 * embedding / (options.loss_rate * 1e12))
    size = sum(parameter_bytes(options.preset, options.vocab_size))
    rest = options.parameter_passes * size / memory + options.rest * 1e-3
    device = steps + product + backward + loss + rest

    def transfer(size: float) -> float:
        if gpus == 1:
            return 0.0
        network = options.between if options.network == "between" else options.one_port
        bandwidth = 1e9 * (options.inside if gpus <= options.node_size else network)
        return 2 * (gpus - 1) / gpus * size / bandwidth + options.latency * 1e-6 * math.log2(gpus)

    lstm_bytes, tied_bytes = parameter_bytes(options.preset, options.vocab_size, options.gradient_bytes)
    share = distinct_words(tokens * gpus, options.vocab_size, options.zipf)
    apart = share if options.tied == "early" and share <= 0.5 else None
    parts = transfers_of(transfer(lstm_bytes), transfer(tied_bytes), backward, layers, words=apart)
    waits = exposed(parts, backward) if gpus > 1 else 0.0
    return {
        "lstm": steps + product + backward,
        "loss": loss,
        "rest": rest,
        "device": device,
        "host": options.host * 1e-3,
        "reduce": sum(seconds for _, seconds in parts),
        "exposed": waits,
        "step": max(device + waits, options.host * 1e-3),
    }


def efficiency(options: argparse.Namespace, rows: int, gpus: int) -> float:
    """Tokens a second of a GPU among so many, as a share of those of one GPU alone with as many rows."""
    return step_of(options, rows, 1)["step"] / step_of(options, rows, gpus)["step"]


def print_model(options: argparse.Namespace) -> None:
    """The assumptions, a table of steps, and what 90 % takes, as Markdown."""
    size = sum(parameter_bytes(options.preset, options.vocab_size, options.gradient_bytes))
    print(
        f"Model of a step: {options.preset}, V = {options.vocab_size}, bptt {options.bptt}, {options.gpu}, {options.loss} "
        f"loss, tied gradient {options.tied}, {size / 1e6:.0f} MB of gradients\n"
    )
    print("| assumption | value | | source |\n|---|---|---|---|")
    for one in ASSUMPTIONS:
        print(f"| {one.name} | {getattr(options, one.name.replace('-', '_')):g} | {one.unit} | {one.source} |")
    print(f"| memory | {MEMORY[options.gpu]:g} | TB/s | data sheet |")
    print(
        "\n| rows a GPU | GPUs | LSTM | loss | rest | host | all-reduce | exposed | step, ms | tokens/s | efficiency |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for rows in options.rows:
        for gpus in (1, 8, 64, 512):
            cost = step_of(options, rows, gpus)
            names = ("lstm", "loss", "rest", "host", "reduce", "exposed", "step")
            parts = " | ".join(f"{1e3 * cost[name]:.1f}" for name in names)
            pace = gpus * rows * options.bptt / cost["step"]
            print(f"| {rows} | {gpus} | {parts} | {pace / 1e6:.2f}M | {efficiency(options, rows, gpus):.0%} |")
    print()
    for gpus in (8, 64, 512):
        below = [rows for rows in range(8, 4097, 8) if efficiency(options, rows, gpus) < 0.9]
        print(f"{gpus} GPUs: 90 % efficiency with {f'more than {max(below)}' if below else 'any number of'} rows a GPU")
