"""What is measured on a GPU: each part yields rows as soon as they are known (gpu.py runs them).

Shares of the peak count the arithmetic of the matrix products alone, over that of a large product of random numbers in
the same precision, measured here (fp32 trains in TF32 on a GPU). Memory is the peak that torch's allocator held, weights
and moments included.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastai_style
import gpu_loss
import numpy as np
import side_by_side as sides
import torch
from gpu_workers import Row
from lm_step import SIZES, batch_of, build_ours, flops_per_token
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NO_CUDA = "skipped: no CUDA"


class Settings:
    """What is measured, smaller for a rehearsal."""

    def __init__(self, *, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.preset, self.vocab, self.bptt = ("tiny", 500, 12) if tiny else ("base", 60_000, 72)
        self.batches = [4, 8] if tiny else [64, 256]
        self.seconds = 0.05 if tiny else 0.4  # of one timing
        self._peaks: dict[str, float] = {}

    def lacks(self, precision: str) -> bool:
        """Whether this device does not compute in it: on the CPU the language model computes in fp32."""
        return self.device == "cpu" and precision != "fp32"

    def products(self, precision: str) -> str:
        """What a training step rounds the operands of its products to."""
        return "tf32" if precision == "fp32" and self.device == "cuda" else precision

    def peak(self, precision: str) -> float:
        """FLOP/s of a large matrix product of random numbers; tf32 is a precision too."""
        if precision not in self._peaks:
            n = 256 if self.tiny else 8192
            a, b = (torch.randn(n, n, device=self.device).to(DTYPES.get(precision, torch.float32)) for _ in range(2))
            with tf32(precision == "tf32"):
                self._peaks[precision] = 2 * n**3 / timed(lambda: torch.mm(a, b), self.seconds / 2)
        return self._peaks[precision]


@contextlib.contextmanager
def tf32(products: bool, *, cudnn: bool = False) -> Iterator[None]:
    """Whether matrix products and cuDNN may use TF32 within it. A runtime sets both for the process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, cudnn
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def timed(work: Callable[[], Any], seconds: float, repeats: int = 3) -> float:
    """Seconds of one call: the median of timings that are about `seconds` long."""
    for _ in range(2):
        work()
    calls = max(1, min(200, int(seconds / sides.seconds(work))))
    return statistics.median(sides.seconds(lambda: [work() for _ in range(calls)]) / calls for _ in range(repeats))


def gibibytes(work: Callable[[], Any]) -> float:
    """The allocator's peak during `work` (0 on the CPU)."""
    if not torch.cuda.is_available():
        work()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def fresh() -> None:
    """Before another trainer: let go of the last one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trainer(s: Settings, rows: int, precision: str) -> Callable[[], torch.Tensor]:
    fresh()
    return build_ours(s.preset, s.vocab, rows, s.bptt, precision)[0]


def peak(s: Settings) -> Iterator[Row]:
    """A large matrix product of random numbers, and a copy within the device's memory."""
    for name in ("fp32", "tf32", "fp16", "bf16"):
        if s.device == "cpu" and name != "fp32":
            yield {"what": f"{name} product", "TFLOP/s": NO_CUDA}
        else:
            yield {"what": f"{name} product", "TFLOP/s": round(s.peak(name) / 1e12, 2)}
    source = torch.randn((1 if s.tiny else 1024) * 2**20, device=s.device)
    wall = timed(lambda: source.clone(), s.seconds / 2)
    yield {"what": "copy, bytes read and written", "TB/s": round(2 * source.nbytes / wall / 1e12, 3)}


def step(s: Settings) -> Iterator[Row]:
    """The trainer's step of the language model by batch, precision and kind of loss."""
    for rows in s.batches[::-1]:  # the reproduction's batch first
        for precision in ("bf16", "fp16", "fp32"):
            for kind in gpu_loss.KINDS:
                row: Row = {"batch": rows, "precision": precision, "loss": kind}
                if s.lacks(precision) or not gpu_loss.has(kind):
                    yield row | {"skipped": NO_CUDA.removeprefix("skipped: ") if s.lacks(precision) else gpu_loss.WHY}
                    continue
                gpu_loss.choose(kind)
                ours, walls = trainer(s, rows, precision), []
                memory = gibibytes(lambda ours=ours, walls=walls: walls.append(timed(ours, s.seconds)))
                if fault := gpu_loss.failed(kind):
                    yield row | {"skipped": fault}
                    continue
                tokens = rows * s.bptt
                share = tokens * flops_per_token(s.preset, s.vocab) / walls[0] / s.peak(s.products(precision))
                yield row | {
                    "tokens/s": round(tokens / walls[0]),
                    "ms": round(1e3 * walls[0], 2),
                    "of the peak": f"{share:.1%}",
                    "GiB": round(memory, 2),
                }
                del ours


def peer(s: Settings) -> Iterator[Row]:
    """A step as fastai does it (fastai_style.py) beside ours, A B B A A B, at equal batch."""
    fastai_style.check()
    for rows in s.batches[::-1]:
        for precision in ("fp16", "bf16", "fp32"):
            if s.lacks(precision):
                yield {"precision": precision, "batch": rows, "skipped": "no CUDA"}
                continue
            ours = trainer(s, rows, precision)
            step_of_theirs = fastai_style.build(SIZES[s.preset], s.vocab, precision, s.device)
            batch = batch_of(rows, s.bptt, s.vocab)

            def theirs(step=step_of_theirs, batch=batch) -> None:
                with tf32(False, cudnn=True):  # torch's defaults, which fastai leaves
                    step(*batch)

            both = {"ours": ours, "theirs": theirs}
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for turn in range(4):
                for name in list(both)[:: 1 if turn % 2 == 0 else -1]:
                    times[name].append(timed(both[name], s.seconds / 2, 1))
            # Both hold weights and moments meanwhile (0.5 GiB each), so the difference is what a step needs.
            memory = {name: gibibytes(work) for name, work in both.items()}
            yield {
                "precision": precision,
                "batch": rows,
                **{f"{name} tokens/s": round(rows * s.bptt / statistics.median(times[name])) for name in both},
                "ours / theirs": sides.ratio(times["theirs"], times["ours"]),
                **{f"{name} GiB": round(memory[name], 2) for name in both},
            }
            del ours, step_of_theirs, theirs, both


def loss(s: Settings) -> Iterator[Row]:
    """Chunks of the loss: time and memory of cross-entropy and its gradients alone, beside whole logits."""
    from ulmfit.model.loss import linear_cross_entropy

    width = SIZES[s.preset][0]
    for precision in ["fp32"] if s.device == "cpu" else ["fp32", "bf16"]:
        for rows in s.batches:
            count, dtype = rows * s.bptt, DTYPES[precision]
            hidden = torch.randn(count, width, device=s.device, requires_grad=True)
            weight = (0.1 * torch.randn(s.vocab, width, device=s.device)).requires_grad_()
            bias = torch.zeros(s.vocab, device=s.device, requires_grad=True)
            targets = torch.randint(0, s.vocab, (count,), device=s.device)

            def run(chunk: int | None, args=(hidden, weight, bias, targets), dtype=dtype) -> torch.Tensor:
                if chunk is None:
                    h, w, b, t = args
                    found = F.cross_entropy(F.linear(h.to(dtype), w.to(dtype), b.to(dtype)).float(), t, reduction="sum")
                else:
                    found, _ = linear_cross_entropy(*args, chunk_size=chunk, compute_dtype=dtype)
                for given, gradient in zip(args, torch.autograd.grad(found, args[:3]), strict=False):
                    assert given.shape == gradient.shape
                return found.detach()

            held = gibibytes(lambda: None)
            for chunk in [32, 64, None] if s.tiny else [512, 1024, 2048, 4096, 8192, None]:
                memory = gibibytes(lambda chunk=chunk: run(chunk)) - held
                wall = timed(lambda chunk=chunk: run(chunk), s.seconds / 4)
                yield {
                    "precision": precision,
                    "rows of logits": count,
                    "chunk": chunk or "whole logits",
                    "ms": round(1e3 * wall, 3),
                    "GiB": round(memory, 2),
                    "loss": round((run(chunk) / count).item(), 4),
                }


def lstm(s: Settings) -> Iterator[Row]:
    """One inner layer with weight-drop, forward and backward, and the masks of a step's recurrent weights."""
    from ulmfit.model.awd_lstm import WeightDropLSTM
    from ulmfit.training.masks import Masks

    _, width, layers = SIZES[s.preset]
    for rows in s.batches:
        row: Row = {"batch": rows}
        for precision in [name for name in DTYPES if not s.lacks(name)]:
            layer = WeightDropLSTM(width, width).to(s.device)
            x = torch.randn(rows, s.bptt, width, device=s.device, requires_grad=True)
            state = (torch.zeros(rows, width, device=s.device),) * 2
            mask = torch.ones_like(layer.weight_hh)

            def run(layer=layer, x=x, state=state, mask=mask, precision=precision) -> None:
                with torch.autocast(s.device, dtype=DTYPES[precision], enabled=precision != "fp32"):
                    output, _ = layer(x, state, mask)
                torch.autograd.grad(output, [x, *layer.parameters()], torch.ones_like(output))

            row[f"{precision} ms"] = round(1e3 * timed(run, s.seconds / 2), 3)
        yield row
    masks = Masks(0, 0, num_rows=1, rows=range(1), device=s.device)
    wall = timed(lambda: [masks.shared(0.2, (4 * width, width), i) for i in range(layers)], s.seconds / 2)
    yield {"batch": f"masks of {layers} layers", "fp32 ms": round(1e3 * wall, 3)}


def classifier(s: Settings) -> Iterator[Row]:
    """Training and inference in documents a second; lengths like those of film reviews."""
    import classifier as documents

    rng = np.random.default_rng(0)
    size, number = (4, 24) if s.tiny else (128, 1024)
    lengths = rng.lognormal(np.log(20 if s.tiny else 230), 0.68, 20 * number).astype(np.int64).clip(10, 3000)
    train = documents.spread_steps(lengths, size, number // size)
    for precision in [name for name in DTYPES if not s.lacks(name)]:
        fresh()
        options = argparse.Namespace(batch_size=size, precision=precision, preset=s.preset, vocab_size=s.vocab)
        test = [rng.integers(2, s.vocab, length).tolist() for length in lengths[:number]]
        with documents.ours(options, train, test) as (train_epoch, predict, alone, _):
            far = (predict("predict")[: documents.ALONE] - alone("predict")).abs().max().item()
            found = [timed(work, s.seconds, 1) for work in (train_epoch, lambda: predict("predict"))]
        yield {
            "precision": precision,
            "train documents/s": round(len(train) / found[0], 1),
            "train tokens/s": round(train.sum() / found[0]),
            "predict documents/s": round(number / found[1], 1),
            "alone and in a batch differ by": f"{far:.1e}",
        }


def profile(s: Settings) -> Iterator[Row]:
    """Where a bf16 step's time goes on the device, and how busy that is."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if s.device == "cuda" else [])]
    for rows in s.batches:
        ours = trainer(s, rows, "bf16")
        wall = timed(ours, s.seconds / 2)
        with torch.profiler.profile(activities=activities) as found:
            sides.seconds(lambda ours=ours: [ours() for _ in range(3)])
        spent = {}
        for event in found.key_averages():
            if s.device == "cpu":
                spent[event.key] = (event.self_cpu_time_total, event.count)
            elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                spent[event.key] = (event.self_device_time_total, event.count)
        whole = sum(time for time, _ in spent.values()) / 3e6
        yield {
            "batch": rows,
            "kernel": "all",
            "share": f"{whole / wall:.0%} of a step's {1e3 * wall:.2f} ms",
            "calls": sum(count for _, count in spent.values()) // 3,
        }
        for key, (time_, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:14]:
            yield {
                "batch": rows,
                "kernel": key[:70].replace("|", "/"),
                "share": f"{time_ / 3e6 / whole:.1%}",
                "calls": count // 3,
            }
        del ours


def tests(s: Settings) -> Iterator[Row]:
    """The repository's tests of a GPU, with the figures they record."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.xml"), Path(os.environ.get("OUT") or folder, "gpu_tests.txt")
        chosen = ["-k", "loss_and_gradients or bits"] if s.tiny else []
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/training/test_cuda.py",
            "tests/training/test_cuda_loss.py",
            "-v",
            "--timeout",
            "100",
            *chosen,
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
        ]
        with open(log, "w") as file:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"ULMFIT_TEST_DEVICE": s.device, "OMP_NUM_THREADS": "2"},
            )
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {log.read_text()[-300:]}")
        for case in xml.parse(report).iter("testcase"):
            outcome, told = "passed", ""
            for kind in ("failure", "error", "skipped"):
                if (found := case.find(kind)) is not None:
                    outcome, told = kind, " ".join(found.get("message", "").split())[:160].replace("|", "/")
            figures = [f"{p.get('name')} {p.get('value')}" for p in case.iter("property")]
            yield {
                "test": case.get("name").removeprefix("test_"),
                "outcome": outcome,
                "figures": "; ".join([*figures, *([told] if told else [])]),
            }
