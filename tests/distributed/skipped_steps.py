"""A program for test_engines.py, on two processes: what each engine does with a gradient that is not finite.

Arguments: the engines to try. Every rank asserts.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from ulmfit.config import LMConfig
from ulmfit.distributed import sharding
from ulmfit.distributed.runtime import Runtime
from ulmfit.training import optim
from ulmfit.training.engine import build_engine


def main() -> None:
    runtime = Runtime(LMConfig())
    for name in sys.argv[1:]:
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = name[-1]
        runtime.engine = name
        engine = build_engine(runtime)
        torch.manual_seed(0)
        # One weight row and bias: the second rank's shard of FSDP is empty.
        net = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
        names = [name for name, _ in net.named_parameters()]
        optimizer = optim.build_optimizer(net, [names], [0], [0.1], weight_decay=0.1, eps=1e-8, decay_bias_norm=True)
        engine.begin_stage(net, optimizer)
        inputs = torch.full((2, 5), 1.0 + runtime.rank)
        skipped, weights = [], [{key: value.clone() for key, value in net.state_dict().items()}]
        for factor in (float("inf") if runtime.rank else 1.0, 1.0):
            with engine.accumulate(last=True):
                engine.backward(engine.model(inputs).sum() * factor)
            norm, found_inf = engine.update(0.5)
            assert torch.isfinite(norm).item() == (not found_inf.item())
            skipped.append(found_inf.item())
            with engine.full_weights():
                weights.append({key: value.clone() for key, value in net.state_dict().items()})
        assert skipped == [1.0, 0.0], (name, skipped)
        for key in names:
            assert torch.equal(weights[0][key], weights[1][key]), (name, key)
            # Adam's first step moves every weight by about its rate, besides the decay of a tenth of a tenth.
            moved = weights[2][key] - weights[1][key] * (1 - 0.1 * 0.1)
            assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), rtol=1e-3), (name, key, moved)
        assert {key: value["step"].item() for key, value in engine.state()["optimizer"].items()} == dict.fromkeys(
            names, 1.0
        ), name
    assert sharding.USE_FSDP not in os.environ
    runtime.close()


main()
