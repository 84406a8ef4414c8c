"""20 steps of one engine at one rank; started by gpu_checks.py, in the environment of a launcher.

Prints the losses, the milliseconds of a step (mean of the last 10) and what the model is wrapped in, as a line of JSON.
At one rank the trainer itself would take the plain engine for FSDP2, and leave gradients whole: here they are made.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import side_by_side as sides

STEPS = 20


def run(kind: str, given: dict) -> dict:
    if kind == "zero2" and importlib.util.find_spec("deepspeed") is None:
        return {"skipped": "deepspeed is not installed"}
    import torch
    from lm_step import build_ours

    from ulmfit.distributed.fsdp import FSDPEngine
    from ulmfit.training.engine import PlainEngine, _average_in_bf16, build_engine

    torch.manual_seed(0)
    kinds = {"zero2": build_engine, "fsdp2": FSDPEngine}
    step, engine, runtime = build_ours(
        given["preset"],
        given["vocab"],
        given["rows"],
        given["bptt"],
        given["precision"],
        engine=kinds.get(kind, PlainEngine),
    )
    if kind == "compressed":
        engine.model.register_comm_hook(None, _average_in_bf16)
    losses: list[torch.Tensor] = []
    sides.seconds(lambda: losses.extend(step() for _ in range(STEPS // 2)))
    wall = sides.seconds(lambda: losses.extend(step() for _ in range(STEPS // 2)))
    model = type(engine.model).__name__
    return {"losses": torch.stack(losses).tolist(), "ms": round(1e3 * wall / (STEPS // 2), 2), "model": model}


def main() -> None:
    kind, given = sys.argv[1], json.loads(sys.argv[2])
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print there
    sys.stdin.readline()
    print(json.dumps(run(kind, given)), file=say, flush=True)
    say.close()
    os._exit(0)  # a process group of one rank has nobody to wait for


if __name__ == "__main__":
    main()
