"""What must be right on a GPU before anything is measured: each check yields rows as soon as they are known (gpu.py).

A row has `right`, and by how much it is. Limits are ||ours - fp64's|| / ||fp64's||; a unit in the last place is 6e-8,
5e-4 and 4e-3 in fp32, fp16 and bf16.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_loss
import torch
from gpu_parts import DTYPES, ROOT, Settings, fresh, tf32
from gpu_workers import Row

from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training.masks import Masks

#: Over all gradients. The classifier's BatchNorm magnifies rounding, and its maximum picks other time steps.
NEAR = {"lm": {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}, "clf": {"fp32": 1e-3, "fp16": 1e-1, "bf16": 0.4}}
ENGINES = {"ddp": 1e-6, "zero2": 1e-2, "fsdp2": 1e-2, "compressed": 1e-2}  # largest relative difference of a loss


class SameMasks:
    """The CPU's masks on any device, which draws others by itself."""

    def __init__(self, device: str, rows: int) -> None:
        self._masks, self._device = Masks(0, 0, num_rows=rows, rows=range(rows)), device

    def shared(self, *place: Any) -> torch.Tensor:
        return self._masks.shared(*place).to(self._device)

    def per_row(self, *place: Any) -> torch.Tensor:
        return self._masks.per_row(*place).to(self._device)


def loss_and_gradients(
    s: Settings, name: str, device: str, dtype: torch.dtype, autocast: torch.dtype | None
) -> tuple[float, torch.Tensor]:
    """Of the nets themselves, all dropouts at full strength: the loss, and all gradients as one fp64 vector on the CPU."""
    torch.manual_seed(0)
    # Sizes at which cuDNN runs the algorithms of `base`: hidden > 192, embedding >= 200, more than 3,072 tokens.
    sizes = AWDLSTMConfig(500, 40, 72, 2) if s.tiny else AWDLSTMConfig(4000, 208, 512, 3)
    rows, length = (8, 12) if s.tiny else (64, 60)
    scale = 2.0**10 if autocast == torch.float16 else 1.0  # a scaler's business
    text = torch.randint(2, sizes.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    sizes = sizes.with_dropouts(name, 1.0)
    net = (
        LanguageModelNet(sizes) if name == "lm" else ClassifierNet(sizes, 2, bptt=length // 3, max_len=2 * length // 3)
    )
    with torch.no_grad():  # words as far apart as trained ones: BatchNorm would magnify the rounding of near ones
        net.encoder.embedding.weight.mul_(20)
    net, text, masks = net.to(device, dtype), text.to(device), SameMasks(device, rows)
    with torch.autocast(device, dtype=autocast) if autocast is not None else contextlib.nullcontext():
        if name == "lm":
            out = net(text[:, :-1], text[:, 1:], net.init_state(rows), masks)
            loss = (out.ce_sum + out.ar_sum + out.tar_sum) / text.numel()
        else:
            lengths = torch.arange(length, length - rows, -1).clamp(min=length // 2)
            labels = torch.arange(rows, device=device) % 2
            logits = net(text[:, :length], lengths, masks).logits
            loss = torch.nn.functional.cross_entropy(logits.float() if dtype == torch.float32 else logits, labels)
    (loss * scale).backward()
    gradients = [p.grad.flatten().cpu().double() / scale for p in net.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


def correctness(s: Settings) -> Iterator[Row]:
    """Loss and gradients of both nets beside those of the CPU in fp64, by precision and kind of loss."""
    for name in ("lm", "clf"):
        expected = None
        for precision in ("bf16", "fp16", "fp32"):
            for kind in gpu_loss.KINDS if name == "lm" else ("",):
                row: Row = {"net": name, "precision": precision, "loss": kind}
                if s.lacks(precision) or (kind and not gpu_loss.has(kind)):
                    yield row | {"skipped": "no CUDA" if s.lacks(precision) else gpu_loss.WHY}
                    continue
                if expected is None:
                    expected = loss_and_gradients(s, name, "cpu", torch.float64, None)
                gpu_loss.choose(kind or gpu_loss.best())
                half = DTYPES[precision] if precision != "fp32" else None
                with tf32(False, cudnn=half is not None):  # off, cuDNN would leave the tensor cores in bf16 too
                    loss, gradients = loss_and_gradients(s, name, s.device, torch.float32, half)
                if kind and (fault := gpu_loss.failed(kind)):
                    yield row | {"right": False, "why": fault}
                    continue
                far = ((gradients - expected[1]).norm() / expected[1].norm()).item()
                off = abs(loss - expected[0]) / expected[0]
                right = far < NEAR[name][precision] and off < NEAR[name][precision] / 10
                yield row | {
                    "right": right,
                    "gradients off by": far,
                    "loss off by": off,
                    "allowed": NEAR[name][precision],
                }


def resume(s: Settings, command: list[str]) -> Iterator[Row]:
    """A deterministic run that is stopped and goes on from its checkpoint has the bits of one that was not.

    In a worker of its own, started by `command`: cuBLAS reads its setting for deterministic sums when it starts.
    """
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    assert worker.stdin is not None and worker.stdout is not None
    print(json.dumps("bits"), file=worker.stdin)
    worker.stdin.close()
    fault = "its process ended too early"
    for line in worker.stdout:
        found = json.loads(line)
        if "row" in found:
            yield found["row"]
        else:
            fault = found["end"]
    if fault:
        raise RuntimeError(fault)


def bits(s: Settings) -> Iterator[Row]:
    """The work of `resume`."""
    from tests.training import steps
    from ulmfit.run import checkpoint

    sizes = steps.SIZES if s.tiny else AWDLSTMConfig(steps.VOCAB, 208, 512, 2)
    for precision in ("bf16", "fp32"):
        for name in ("lm", "clf"):
            if s.lacks(precision):
                yield {"net": name, "precision": precision, "skipped": "no CUDA"}
                continue

            def trainer(name=name, precision=precision):
                fresh()
                return steps.Trainer(name, precision, deterministic=True, sizes=sizes, rows=8 if s.tiny else 64)

            straight, stopped = trainer(), trainer()
            losses = [straight.step() for _ in range(8)]
            for _ in range(4):
                stopped.step()
            with tempfile.TemporaryDirectory() as folder:
                path = checkpoint.write(Path(folder), 4, checkpoint.snapshot(stopped.state()), keep=1)
                state = checkpoint.load(path)
            resumed = trainer()
            resumed.load(state)
            same = torch.equal(torch.stack(losses[4:]), torch.stack([resumed.step() for _ in range(4)]))
            weights = straight.net.state_dict(), resumed.net.state_dict()
            equal = sum(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
            right = same and equal == len(weights[0])
            yield {
                "net": name,
                "precision": precision,
                "right": right,
                "equal tensors": f"{equal} of {len(weights[0])}",
            }
    torch.use_deterministic_algorithms(False)


def engine(s: Settings, kind: str) -> Iterator[Row]:
    """20 steps of an engine at one rank, in a process of its own, beside 20 plain ones without a process group."""
    precision = "fp32" if s.device == "cpu" else "bf16"
    row: Row = {"engine": kind, "precision": precision}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if kind == "zero2":
        launched |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    if kind == "fsdp2":
        launched |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    script = Path(__file__).with_name("gpu_engines.py")
    arguments = {"preset": s.preset, "vocab": s.vocab, "bptt": s.bptt, "rows": s.batches[0], "precision": precision}
    plain, theirs = (
        subprocess.Popen(
            [sys.executable, str(script), name, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | more,
        )
        for name, more in (("plain", {}), (kind, launched))
    )  # fmt: skip
    found = []
    for process in (plain, theirs):  # both import at the same time, and run one after the other
        out, _ = process.communicate("go\n")
        if process.returncode:
            raise RuntimeError(f"{kind if process is theirs else 'plain'} ended with {process.returncode}")
        found.append(json.loads(out.splitlines()[-1]))
    if reason := found[1].get("skipped"):
        yield row | {"skipped": reason}
        return
    far = max(abs(a - b) / abs(a) for a, b in zip(found[0]["losses"], found[1]["losses"], strict=True))
    yield row | {"right": far <= ENGINES[kind], "loss off by": far, "allowed": ENGINES[kind], "wrapped in": found[1]["model"],
                 "ms a step": found[1]["ms"], "plain ms a step": found[0]["ms"]}  # fmt: skip
