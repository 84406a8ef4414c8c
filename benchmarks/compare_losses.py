"""The logged losses of two runs side by side, and how far their final weights are apart.

    python train_lm.py --max-steps 50 --log-every 1 --output-dir runs/one
    accelerate launch --config_file launch/cpu_2_processes.yaml train_lm.py --max-steps 50 --log-every 1 \\
        --output-dir runs/two
    python benchmarks/compare_losses.py runs/one runs/two
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import safetensors.torch


def losses(run: Path) -> dict[int, float]:
    """Loss by step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if line["event"] == "train"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args()
    a, b = losses(arguments.first), losses(arguments.second)
    worst = 0.0
    for step in sorted(a.keys() & b.keys()):
        apart = abs(a[step] - b[step]) / abs(a[step])
        worst = max(worst, apart)
        print(f"step {step:5}  {a[step]:.9f}  {b[step]:.9f}  {apart:.1e}")
    print(f"{len(a.keys() & b.keys())} steps, largest relative difference of the loss {worst:.1e}")
    first, second = (
        safetensors.torch.load_file(run / "model" / "model.safetensors") for run in (arguments.first, arguments.second)
    )
    apart = {
        name: ((first[name].double() - second[name].double()).norm() / first[name].double().norm()).item()
        for name in first
        if first[name].is_floating_point()
    }
    name = max(apart, key=apart.get)
    print(f"largest relative difference of a weight tensor by norm {apart[name]:.1e} ({name})")


if __name__ == "__main__":
    main()
