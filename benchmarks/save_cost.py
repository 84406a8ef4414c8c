"""What a checkpoint costs the training loop: the copy that it waits for, and slower steps while the thread writes.

    python benchmarks/save_cost.py [--preset base] [--vocab-size 60000] [--rows 16] [--bptt 35] [--saves 4]

Steps of the real engine and model on random tokens; every few steps the real Saver is started with the real
state. A step counts as slowed if the thread was at work during it; its cost is its time beyond the median of the
steps with an idle thread before and after. The last line tells the share of the loop's time at some intervals.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ulmfit.config import LMConfig
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.run.saver import Saver
from ulmfit.training import optim
from ulmfit.training.engine import PlainEngine
from ulmfit.training.masks import Masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--bptt", type=int, default=35)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--folder", default=None, help="where checkpoints go (default: the temporary folder)")
    args = parser.parse_args()

    runtime = Runtime(LMConfig())
    net = LanguageModelNet(AWDLSTMConfig(args.vocab_size, **PRESETS[args.preset])).to(runtime.device)
    groups = net.layer_groups()
    optimizer = optim.build_optimizer(
        net, groups, range(len(groups)), [1e-3] * len(groups), weight_decay=0.01, eps=1e-8, decay_bias_norm=True
    )
    engine = PlainEngine(runtime)
    engine.begin_stage(net, optimizer)
    tokens = torch.randint(args.vocab_size, (args.rows, args.bptt), device=runtime.device)
    number = 0

    def step() -> float:
        nonlocal number
        begun = time.perf_counter()
        masks = Masks(0, number, num_rows=args.rows, rows=range(args.rows), device=runtime.device)
        with engine.accumulate(last=True):
            out = engine.model(tokens, tokens, net.init_state(args.rows), masks)
            engine.backward(out.ce_sum / tokens.numel())
        engine.update(0.25)[0].item()
        number += 1
        return time.perf_counter() - begun

    for _ in range(2):
        step()
    waits, beyond, writing = [], [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        saver = Saver(Path(folder), keep=2, before=lambda: None)
        for _ in range(args.saves):
            idle = [step() for _ in range(3)]
            begun = time.perf_counter()
            state = {"model": dict(net.state_dict()), "engine": engine.state()}
            saver.start(number, state)
            waits.append(time.perf_counter() - begun)
            slowed = []
            while saver.busy:
                slowed.append(step())
            writing.append(time.perf_counter() - begun)
            idle += [step() for _ in range(3)]
            beyond.append(sum(slowed) - len(slowed) * statistics.median(idle))
            print(
                f"save {len(waits)}: step {statistics.median(idle):.3f} s, waited {waits[-1]:.3f} s, {len(slowed)} "
                f"steps while writing {writing[-1]:.1f} s, beyond the idle steps {beyond[-1]:+.2f} s",
                flush=True,
            )
        saver.wait()
        size = sum(file.stat().st_size for file in next(Path(folder).glob("step-*")).iterdir())
    cost = statistics.median(waits) + max(0.0, statistics.median(beyond))
    print(
        f"checkpoint of {size / 2**20:.0f} MiB: the loop waits {statistics.median(waits):.3f} s, the steps beside "
        f"the writing lose {statistics.median(beyond):.2f} s (medians of {args.saves})"
    )
    print(
        "share of the loop's time: "
        + ", ".join(f"{cost / (60 * minutes):.2%} saving every {minutes} min" for minutes in (1, 5, 15, 30))
    )


if __name__ == "__main__":
    main()
