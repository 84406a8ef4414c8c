"""The loss's Triton kernel alone on a GPU: bytes a second by block and warps, beside a copy.

    python benchmarks/loss_kernel.py [--rows 8192] [--vocab-size 60000]

Bytes are those that the kernel must move: logits read once, the gradient written once. A kernel whose second pass reads
from the L2 cache comes near the copy; one that reads from memory twice to 0.6 of it with half-precision gradients. The
fastest pair belongs into ulmfit/model/softmax_kernel.py (BLOCK, WARPS). Takes about 20 seconds.
"""

from __future__ import annotations

import argparse

import torch

from ulmfit.model import fused_loss, softmax_kernel

PAIRS = [(2048, 4), (2048, 8), (4096, 8), (4096, 16), (8192, 8), (8192, 16), (16_384, 16), (16_384, 32), (32_768, 32)]


def seconds(work, repeats: int = 5) -> float:
    """The fastest of some runs, by events of the device."""
    work()
    found = []
    for _ in range(repeats):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        found.append(begun.elapsed_time(ended) / 1000)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    n, v = options.rows, options.vocab_size
    logits = torch.randn(n, v, device="cuda")
    targets = torch.randint(0, v, (n,), device="cuda")
    losses, correct = torch.empty(n, device="cuda"), torch.empty(n, dtype=torch.int8, device="cuda")
    copy = 2 * logits.nbytes / seconds(lambda: logits.clone())
    print(f"{torch.cuda.get_device_name()}, {n} x {v}; copy {copy / 1e12:.2f} TB/s")
    print("| block | warps | bf16 TB/s | of the copy | fp32 TB/s | of the copy |\n|---|---|---|---|---|---|")
    for block, warps in PAIRS:
        softmax_kernel.BLOCK, softmax_kernel.WARPS = block, warps
        cells = []
        for dtype in (torch.bfloat16, torch.float32):
            # In memory of its own, so that every run reads the same logits.
            gradient = torch.empty(n, v, dtype=dtype, device="cuda")
            took = seconds(
                lambda gradient=gradient: fused_loss.loss_and_gradient(
                    logits, gradient, targets, losses, correct, scale=1.0
                )
            )
            rate = (logits.nbytes + gradient.nbytes) / took
            cells += [f"{rate / 1e12:.2f}", f"{rate / copy:.2f}"]
        print(f"| {block} | {warps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
