"""Memory of the language model's loss and its gradients against the tokens of a step: ours beside whole logits.

    python benchmarks/loss_memory.py [--vocab-size 60000] [--tokens 1152 4608 18432]

Each figure is the peak of resident memory of a process of its own, less what that process held before the loss: the
gradients (of the weight [V, E] and of the hidden states) are among it. Losses of both sides must be equal within 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import psutil
import side_by_side as sides
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit.model.loss import linear_cross_entropy

SIDES = ("ours", "whole logits")


def loss_of(side: str, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    if side == "ours":
        return linear_cross_entropy(hidden, weight, bias, targets)[0]
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


def measure(side: str, tokens: int, vocab_size: int, width: int) -> dict[str, float]:
    """Peak of this process in MiB beyond what it holds at the start, and the loss a token."""
    torch.manual_seed(0)
    weight = torch.empty(vocab_size, width).uniform_(-0.1, 0.1).requires_grad_()
    bias = torch.zeros(vocab_size, requires_grad=True)
    loss_of(side, torch.randn(2, width, requires_grad=True), weight[:10], bias[:10], torch.zeros(2).long()).backward()
    weight.grad = bias.grad = None
    hidden, targets = torch.randn(tokens, width, requires_grad=True), torch.randint(vocab_size, (tokens,))
    before = psutil.Process().memory_info().rss / 2**20
    loss = loss_of(side, hidden, weight, bias, targets)
    loss.backward()
    return {"mib": sides.peak_memory() * 2**10 - before, "loss": loss.item() / tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=400, help="of the hidden states (default 400)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1152, 4608, 18432])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.tokens[0], options.vocab_size, options.width)))
        return
    print(f"V = {options.vocab_size:,}, E = {options.width}, fp32; MiB\n")
    print("| tokens | ours | whole logits |\n|---|---|---|")
    for tokens in options.tokens:
        found = {}
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side, "--tokens", str(tokens)]
            found[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        first, second = (found[side]["loss"] for side in SIDES)
        assert abs(first - second) < 1e-5 * second, (first, second)
        print(f"| {tokens:,} | {found['ours']['mib']:,.0f} | {found['whole logits']['mib']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
