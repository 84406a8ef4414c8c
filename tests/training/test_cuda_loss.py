"""The loss's kernel compiled for a GPU: right, in place without a race, and as frugal as fused_loss.py says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ulmfit.model import chunks, fused_loss
from ulmfit.model.chunks import HALF_SCALE, IGNORE, LossInputs
from ulmfit.model.fused_loss import loss_and_gradient, within
from ulmfit.model.loss import _compute_chunks, linear_cross_entropy

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
ALL = (True, True, True)


@pytest.fixture(autouse=True)
def settings():
    """Float32 products without TF32, and memory that earlier tests hold given back."""
    pytest.importorskip("triton")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.empty_cache()
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def problem(n, v, e=400, dtype=F32):
    """hidden, weight, bias and targets like those of a trained model; the last two targets do not count."""
    g = torch.Generator("cuda").manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, device="cuda", generator=g, dtype=F32).to(dtype) for shape in ((n, e), (v, e), (v,))
    )
    targets = torch.randint(0, v, (n,), device="cuda", generator=g)
    targets[-2:] = IGNORE
    return hidden, weight.mul_(0.1), bias, targets


def test_the_kernel_is_in_use_and_has_not_failed():
    linear_cross_entropy(*problem(100, 1000))
    assert fused_loss.in_use(torch.device("cuda")) and fused_loss._failure is None


@pytest.mark.parametrize(
    ("dtype", "gradient_dtype", "near"),
    [(F64, F64, 1e-13), (F32, F32, 1e-6), (F32, F16, 1e-3), (F32, BF16, 8e-3), (F16, F16, 1e-3), (BF16, BF16, 8e-3)],
)
@pytest.mark.parametrize("v", [1, 129, 16_385, 60_000, 100_000])
def test_the_kernel_is_the_cross_entropy_of_float64(v, dtype, gradient_dtype, near, record_property):
    n = 700  # several rows for each multiprocessor
    logits = (4 * torch.randn(n, v, device="cuda")).to(dtype)
    targets = torch.randint(0, v, (n,), device="cuda")
    targets[5] = IGNORE
    losses, correct = logits.new_empty(n, dtype=torch.promote_types(dtype, F32)), targets.new_empty(n, dtype=torch.int8)
    scale = HALF_SCALE if gradient_dtype.itemsize < 4 else 1.0
    apart, whole = torch.empty_like(logits, dtype=gradient_dtype), logits.double()
    loss_and_gradient(logits, apart, targets, losses, correct, scale=scale)
    assert torch.equal(logits.double(), whole)
    expected = F.cross_entropy(whole, targets, reduction="none", ignore_index=IGNORE)
    off = ((losses - expected).norm() / expected.norm()).item() if v > 1 else losses.abs().max().item()
    counted = targets != IGNORE
    assert torch.equal(correct.bool(), (whole.argmax(1) == targets) & counted) or dtype.itemsize < 4  # ties
    wanted = whole.softmax(1)
    wanted[torch.arange(n, device="cuda"), targets.clamp(min=0)] -= 1
    wanted *= counted.unsqueeze(1)
    far = ((apart.double() / scale - wanted).norm() / wanted.norm().clamp(min=1e-30)).item() if v > 1 else 0.0
    record_property("gradient", f"{far:.1e}")
    record_property("loss", f"{off:.1e}")
    assert far < near and off < (1e-13 if dtype == F64 else 1e-6)
    assert not apart[5].any() and losses[5] == 0
    for _ in range(10):  # a race between warps would show now and then
        place = logits.clone()
        gradient = within(place, gradient_dtype)
        loss_and_gradient(place, gradient, targets, losses, correct, scale=scale)
        assert torch.equal(gradient, apart)


@pytest.mark.parametrize(("dtype", "near"), [(F32, 2e-6), (F16, 1e-3), (BF16, 8e-3)])
@pytest.mark.parametrize("v", [2, 1001, 60_000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_fused_loss_is_as_exact_as_the_plain_one(with_bias, v, dtype, near, record_property):
    inputs = problem(5000, v)
    if not with_bias:
        inputs = (*inputs[:2], None, inputs[3])
    needs = (True, True, with_bias)
    exact = _compute_chunks(
        LossInputs(*(x if x is None or x.dtype == torch.int64 else x.double() for x in inputs), 1000, F64, needs)
    )
    for name, compute in (("fused", fused_loss.compute_chunks), ("plain", _compute_chunks)):
        found = compute(LossInputs(*inputs, 1999, dtype, needs))
        far = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True) if b is not None][2:]
        far.append(abs(found.loss / exact.loss - 1).item())
        record_property(name, f"{max(far):.1e}")
        assert max(far) < near


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_the_same_bits_each_time(dtype):
    inputs = problem(3000, 10_007)
    first, second = (fused_loss.compute_chunks(LossInputs(*inputs, 1000, dtype, ALL)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_a_chunk_takes_four_launches_and_four_bytes_a_logit(dtype, record_property):
    n, v, chunk_size = 4000, 60_000, 1000
    inputs = problem(n, v)
    fused_loss.compute_chunks(LossInputs(*inputs, chunk_size, dtype, ALL))
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        result = fused_loss.compute_chunks(LossInputs(*inputs, chunk_size, dtype, ALL))
        torch.cuda.synchronize()
    took = torch.cuda.max_memory_allocated() - held
    widened = dtype == F32 or chunks._adds_in_float32(inputs[0].device, dtype)
    record_property("memory", f"{took / 2**20:.0f} MiB")
    record_property("addmm adds in float32", str(widened))
    operand = 408 * (v + n)
    allowed = 4 * chunk_size * v + operand * (dtype.itemsize + 4) + (0 if widened else 2 * 4 * operand)
    assert took < 1.1 * allowed + 2**26  # and the workspaces of libraries
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    record_property("launches", str(len(names)))
    assert sum("_loss_and_gradient" in name for name in names) == n // chunk_size
    assert result.grad_weight.shape == (v, 400)
