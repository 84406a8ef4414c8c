"""One text at a time by torch and by ONNX Runtime, in fp32 and in 8 bits, beside ONNX Runtime called by hand.

    OMP_NUM_THREADS=1 python benchmarks/latency.py --presets small base --words 30 300 --load 0 2

By hand is what a program without this package does: `tokenizers`, then a session of the exported fp32 graph, or of that
graph after onnxruntime.quantization.quantize_dynamic, in one thread. The ratio is TextClassifier (backend auto) to that.
The ways take turns, round by round; a figure is the median of the rounds in CPU milliseconds of this process (all its
threads), and the wall-clock median beside it. `--load` starts that many busy processes beside. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import side_by_side as sides
import tokenizers
import torch
from onnxruntime.quantization import quantize_dynamic

from ulmfit import TextClassifier, Tokenizer
from ulmfit.exported.graph import Weights, build
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.pretrained import save_model

VOCABULARY = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["small", "base"], choices=PRESETS)
    parser.add_argument("--words", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--load", type=int, nargs="+", default=[0], help="busy processes beside, one table each")
    parser.add_argument("--seconds", type=float, default=6, help="for each cell (default 6)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        models = {preset: make(Path(folder, preset), preset) for preset in options.presets}
        for load in options.load:
            print(f"\n{sides.machine()}; {load} busy processes beside\n")
            print(
                "| preset | words | bits | torch ms | auto ms | by hand ms | auto / by hand | wall: torch, auto, by hand |"
            )
            print("|---|---|---|---|---|---|---|---|")
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
            try:
                for preset, ways in models.items():
                    for words in options.words:
                        text = " ".join(f"w{i}" for i in rng.zipf(1.3, words).clip(0, VOCABULARY - 1))
                        for bits, calls in ways.items():
                            print(f"| {preset} | {words} | {bits} | {row(calls, text, options.seconds)} |", flush=True)
            finally:
                for process in busy:
                    process.kill()


def make(folder: Path, preset: str) -> dict[int, list[Callable[[str], object]]]:
    """By bits the ways to classify a text: torch, auto, by hand."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_vocab([f"w{i}" for i in range(VOCABULARY)], rules="fastai1")
    net = ClassifierNet(AWDLSTMConfig(vocab_size=len(tokenizer), **PRESETS[preset]), 2).requires_grad_(False)
    save_model(folder, net, tokenizer, {"label_names": ["neg", "pos"]})
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    plain, quantized = folder / "plain.onnx", folder / "quantized.onnx"
    config = {"architecture": {"num_layers": net.config.num_layers}, "max_len": net.max_len}
    plain.write_bytes(build(Weights.of(tensors, config)))
    quantize_dynamic(
        plain, quantized, op_types_to_quantize=["LSTM"], per_channel=True, extra_options={"EnableSubgraph": True}
    )
    (loop,) = [node for node in onnx.load(quantized).graph.node if node.op_type == "Loop"]
    assert any(node.op_type == "DynamicQuantizeLSTM" for node in loop.attribute[0].g.node), "nothing was quantised"
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ways: dict[int, list[Callable[[str], object]]] = {}
    for bits, file in ((32, plain), (8, quantized)):
        classifiers = [
            TextClassifier.from_pretrained(folder, device="cpu", int8=bits == 8, backend=name)
            for name in ("torch", "auto")
        ]
        ways[bits] = [*(classifier.predict for classifier in classifiers), by_hand(backend, file)]
    return ways


def by_hand(backend: tokenizers.Tokenizer, file: Path) -> Callable[[str], object]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def call(text: str) -> object:
        ids = np.array([backend.encode(text).ids], np.int64)
        row = session.run(["probabilities"], {"tokens": ids, "lengths": np.array([ids.shape[1]])})[0][0]
        return row.argmax(), row

    return call


def row(calls: list[Callable[[str], object]], text: str, seconds: float) -> str:
    """The cells of a row of the table. The ways take turns until the time is over."""
    spent: list[list[tuple[float, float]]] = [[] for _ in calls]
    for call in calls:
        call(text)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(spent[0]) < 5:
        for call, times in zip(calls, spent, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            call(text)
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = ([statistics.median(times[k] for times in way) * 1e3 for way in spent] for k in (0, 1))
    shown = " | ".join(f"{value:.2f}" for value in cpu)
    return f"{shown} | {cpu[1] / cpu[2]:.2f} | {', '.join(f'{value:.1f}' for value in wall)}"


if __name__ == "__main__":
    main()
