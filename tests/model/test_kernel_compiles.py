"""The loss's kernel is compiled for GPUs that are not there: what the interpreter forgives, the compiler does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Architecture; types of logits and gradient; elements of a block and warps, as `launch` chooses them.
CASES = [
    (90, "fp32", "bf16", 16_384, 32),
    (90, "fp32", "fp16", 8192, 16),
    (90, "fp32", "fp32", 16_384, 32),
    (90, "bf16", "bf16", 4096, 8),
    (90, "fp64", "fp64", 8192, 16),
    (80, "fp32", "bf16", 16_384, 32),
    (100, "fp32", "bf16", 128, 4),
]
PROGRAM = """
import json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ulmfit.model.softmax_kernel import _loss_and_gradient as kernel

def code(architecture, logits, gradient, block, warps, with_gradient=True):
    double = logits == "fp64"
    constants = {"IGNORE": -100, "WITH_GRADIENT": with_gradient, "BLOCK": block,
                 "ACCUMULATOR": tl.float64 if double else tl.float32}
    types = {"logits": "*" + logits, "gradient": "*" + gradient, "targets": "*i64", "correct": "*i8",
             "losses": "*fp64" if double else "*fp32", "scale": "fp32"}
    types = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", architecture, 32),
                          options={"num_warps": warps})
    assert made.asm["cubin"]
    return made.asm["ptx"]

cases = json.loads(sys.argv[1])
print(json.dumps([code(*case) for case in cases] + [code(*cases[0], with_gradient=False)]))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_the_kernel_compiles_and_reads_before_it_writes(tmp_path):
    """In a process of its own, because triton reads TRITON_INTERPRET when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        env=environment | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *codes, evaluation = json.loads(done.stdout)
    for case, code in zip(CASES, codes, strict=True):
        # The last loop overwrites logits: all its loads, a barrier, then the first store.
        found = re.findall(r"ld\.global|st\.global|bar\.sync|barrier\.sync", code)
        if "fp64" in case:
            continue  # the compiler writes its loop in another order of the text
        letters = "".join({"l": "l", "s": "s"}.get(name[0], "b") for name in found)
        assert re.search(r"s+l+bs+$", letters), (case, letters)
    assert evaluation.count("st.global") == 2, "without gradient, a loss and whether it is correct"
