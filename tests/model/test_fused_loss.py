"""The fused loss under Triton's interpreter, against the plain path and torch in float64.

Needs triton, which the CPU's torch does not bring: `pip install --no-deps triton==...` as in constraints.txt.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch.nn import functional as F

from tests.model.losses import loss_inputs

if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it when it is imported
pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set", allow_module_level=True)

from ulmfit.model import fused_loss, softmax_kernel
from ulmfit.model.chunks import HALF_SCALE, IGNORE, LossInputs
from ulmfit.model.fused_loss import loss_and_gradient, within
from ulmfit.model.loss import _compute_chunks, linear_cross_entropy

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
only_long = pytest.mark.skipif(not os.environ.get("ULMFIT_LONG"), reason="long")
ALL = (True, True, True)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """`linear_cross_entropy` takes the fused path."""
    monkeypatch.setattr(fused_loss, "in_use", lambda device: True)
    monkeypatch.setattr("ulmfit.model.loss._compute_chunks", lambda *_: pytest.fail("the plain path was taken"))


def logits_of(n, v, dtype=F32, scale=4.0):
    g = torch.Generator().manual_seed(v)
    return (scale * torch.randn(n, v, dtype=F64, generator=g)).to(dtype)


def run(logits, targets, dtype, scale=1.0, *, in_place=True):
    """The kernel on a copy; the gradient as a copy, without its scale, in float64."""
    logits = logits.clone()
    losses = torch.full((len(logits),), 7.0, dtype=torch.promote_types(logits.dtype, F32))
    correct = torch.full((len(logits),), 7, dtype=torch.int8)
    gradient = within(logits, dtype) if in_place else torch.full(logits.shape, 7, dtype=dtype)
    loss_and_gradient(logits, gradient, targets, losses, correct, scale=scale)
    return losses, correct, gradient.double() / scale


def exact(logits, targets):
    """Losses, correct rows and gradient in float64."""
    logits, counted = logits.double(), targets != IGNORE
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE)
    chosen = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    gradient = logits.softmax(1)
    gradient[torch.arange(len(targets)), targets.clamp(min=0)] -= 1
    return losses, (chosen == logits.amax(1)) & counted, gradient * counted.unsqueeze(1)


@pytest.mark.parametrize(
    ("dtype", "gradient_dtype", "near"),
    [(F64, F64, 1e-14), (F32, F32, 1e-6), (F32, F16, 1e-3), (F32, BF16, 8e-3), (F16, F16, 1e-3), (BF16, BF16, 8e-3)],
)
@pytest.mark.parametrize("v", [2, 129, 1000, 16_384, 16_385, 40_001])
def test_the_kernel_is_the_cross_entropy_of_float64(v, dtype, gradient_dtype, near, record_property):
    logits = logits_of(5, v, dtype)
    targets = torch.tensor([v - 1, IGNORE, 0, v // 2, IGNORE])
    logits[3, v // 2] = logits[3].amax()  # correct, in a tie
    logits[1, 0] = torch.nan  # of a row that is not counted
    scale = HALF_SCALE if gradient_dtype.itemsize < 4 else 1.0
    losses, correct, gradient = run(logits, targets, gradient_dtype, scale)
    logits[1, 0] = 0
    expected_losses, expected_correct, expected = exact(logits, targets)
    far = ((gradient - expected).norm() / expected.norm()).item()
    off = ((losses - expected_losses).norm() / expected_losses.norm()).item()
    record_property("gradient", f"{far:.1e}")
    record_property("loss", f"{off:.1e}")
    assert far < near and off < (1e-14 if dtype == F64 else 1e-6)
    assert correct.tolist() == expected_correct.int().tolist() and correct[3] == 1
    assert not gradient[1].any() and not gradient[4].any() and not losses[[1, 4]].any()
    *_, apart = run(logits, targets, gradient_dtype, scale, in_place=False)
    assert torch.equal(apart, gradient)


def test_only_the_rows_given_are_written():
    buffer = logits_of(6, 300)
    before, targets = buffer.clone(), torch.tensor([5, IGNORE])
    losses, correct = torch.full((4,), 7.0), torch.full((4,), 7, dtype=torch.int8)
    gradient = within(buffer[2:4], BF16)
    assert gradient.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    loss_and_gradient(buffer[2:4], gradient, targets, losses[1:3], correct[1:3], scale=1.0)
    assert torch.equal(buffer[:2], before[:2]) and torch.equal(buffer[4:], before[4:])
    assert not torch.equal(buffer[2], before[2])
    assert losses[0] == losses[3] == 7 and correct[0] == correct[3] == 7


def test_without_gradient_the_logits_are_only_read():
    logits, targets = logits_of(3, 300), torch.tensor([5, IGNORE, 7])
    before, losses, correct = logits.clone(), torch.empty(3), torch.empty(3, dtype=torch.int8)
    loss_and_gradient(logits, None, targets, losses, correct, scale=1.0)
    assert torch.equal(logits, before)
    assert torch.equal(losses, run(logits, targets, F32)[0])


def test_what_diverges_is_not_hidden():
    logits, targets = logits_of(4, 300, scale=1e4), torch.tensor([5, 6, 7, 8])
    logits[1, 9], logits[2, 9] = torch.nan, torch.inf
    losses, _, gradient = run(logits, targets, F32)
    assert losses.isfinite().tolist() == [True, False, False, True]
    assert gradient.isfinite().all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("chunk_size", [5, 8, 100])
@pytest.mark.parametrize("masked", [(), (0, 4, 5, 22), range(23)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunks_equal_the_plain_path_in_float64(chunk_size, masked, with_bias):
    hidden, weight, bias, targets = loss_inputs(23, 5, 17, masked=masked)
    how = (bias.detach() if with_bias else None, targets, chunk_size, F64, (True, True, with_bias))
    ours, theirs = (compute(LossInputs(hidden.detach(), weight.detach(), *how)) for compute in PATHS)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


PATHS = (fused_loss.compute_chunks, _compute_chunks)


@pytest.mark.parametrize("needs", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_gradients_that_nobody_needs_are_not_computed(needs):
    hidden, weight, bias, targets = (x.detach() for x in loss_inputs(23, 5, 17))
    results = [compute(LossInputs(hidden, weight, bias, targets, 8, F64, tuple(map(bool, needs)))) for compute in PATHS]
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def distances(result, exact_result):
    """||a - b|| / ||b|| of the gradients and of the loss."""
    gradients = [((a - b).norm() / b.norm()).item() for a, b in zip(result[2:], exact_result[2:], strict=True)]
    return {"loss": abs(result.loss / exact_result.loss - 1).item()} | dict(
        zip(("hidden", "weight", "bias"), gradients, strict=True)
    )


def compare(n, e, v, dtype, chunk_size, record_property, tolerance):
    """Both paths against float64; the largest of the fused one's distances go into the report."""
    exact_inputs = [x.detach() for x in loss_inputs(n, e, v, masked=(1, n - 1))]
    exact_inputs[1] /= e**0.5
    exact_inputs[2] *= 3
    inputs = [x.float() if x.is_floating_point() else x for x in exact_inputs]
    expected = _compute_chunks(LossInputs(*exact_inputs, chunk_size, F64, ALL))
    ours, plain = (distances(compute(LossInputs(*inputs, chunk_size, dtype, ALL)), expected) for compute in PATHS)
    for name, far in ours.items():
        record_property(name, f"{far:.1e} (plain {plain[name]:.1e})")
        # The gradient of the bias is a sum of rounded numbers here, and of those before rounding there. And the
        # interpreter does not round to bfloat16 as a GPU does, it cuts off.
        assert far < tolerance and far < max(4 * plain[name], tolerance / 2), (name, far, plain[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-6), (F16, 1e-3), (BF16, 8e-3)])
@pytest.mark.parametrize(("n", "v", "chunk_size"), [(40, 2, 16), (33, 1001, 16), (30, 9000, 10)])
def test_float32_and_half_precision_are_as_exact_as_the_plain_path(n, v, chunk_size, dtype, tolerance, record_property):
    compare(n, 20, v, dtype, chunk_size, record_property, tolerance)


@only_long
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-6), (F16, 1e-3), (BF16, 8e-3)])
@pytest.mark.parametrize("v", [30_000, 60_000, 60_001, 100_000])
def test_large_vocabularies(v, dtype, tolerance, record_property):
    compare(70, 40, v, dtype, 32, record_property, tolerance)


def test_gradients_by_finite_differences(on_the_cpu):
    hidden, weight, bias, targets = loss_inputs(3, 2, 4, masked=(1,))
    assert torch.autograd.gradcheck(
        lambda *x: linear_cross_entropy(*x, targets, chunk_size=2)[0], (hidden, weight, bias)
    )


def test_a_loss_scale_enters_in_float32(on_the_cpu):
    inputs = loss_inputs(23, 5, 17, dtype=F32)
    plain = torch.autograd.grad(linear_cross_entropy(*inputs, compute_dtype=F16)[0], inputs[:3])
    scaled = torch.autograd.grad(linear_cross_entropy(*inputs, compute_dtype=F16)[0] * 2.0**40, inputs[:3])
    for a, b in zip(plain, scaled, strict=True):
        assert a.dtype == F32 and torch.equal(a * 2.0**40, b)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_the_bias_is_not_rounded_to_half_precision(dtype):
    """A word of probability 1e-9 has a gradient, and a bias of 20.1 is not 20.125."""
    hidden, weight, _, targets = (x.detach().float() if x.is_floating_point() else x for x in loss_inputs(23, 8, 17))
    hidden, weight = torch.ones_like(hidden), weight.sign()  # exact in half precision
    bias = -20.1 - torch.arange(17.0) / 7
    _, _, _, _, found = fused_loss.compute_chunks(LossInputs(hidden, weight, bias, targets, 8, dtype, ALL))
    expected = _compute_chunks(LossInputs(hidden, weight, bias, targets, 8, F32, ALL))
    torch.testing.assert_close(found, expected.grad_bias, rtol=8 * torch.finfo(dtype).eps, atol=1e-7)
    loss = fused_loss.compute_chunks(LossInputs(hidden, weight, bias, targets, 8, dtype, (False,) * 3)).loss
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=0)


def test_one_chunk_of_logits_is_all_that_is_held(recorder, monkeypatch):
    monkeypatch.setattr(fused_loss, "check", lambda *_: None)
    monkeypatch.setattr(softmax_kernel, "launch", lambda *_, **__: None)  # the interpreter copies
    n, e, v, chunk_size = 96, 4, 400, 16
    hidden, weight, bias, targets = (x.detach() for x in loss_inputs(n, e, v, dtype=F32))
    with recorder:
        fused_loss.compute_chunks(LossInputs(hidden, weight, bias, targets, chunk_size, F32, ALL))
    assert recorder.largest == chunk_size * v
    assert recorder.made.count((chunk_size, v)) == 1, "the gradient lies in the memory of the logits"


def test_the_check_passes_here_and_finds_a_wrong_kernel(monkeypatch):
    fused_loss.check.cache_clear()
    fused_loss.check(torch.device("cpu"), F32, F16)
    launch = softmax_kernel.launch

    def wrong(logits, gradient, *arguments, **options):
        launch(logits, gradient, *arguments, **options)
        if gradient is not None:
            gradient[1, 15_000] += 900

    monkeypatch.setattr(softmax_kernel, "launch", wrong)
    fused_loss.check.cache_clear()
    with pytest.raises(fused_loss.KernelFailed, match="its gradient is off by"):
        fused_loss.check(torch.device("cpu"), F32, F16)
    fused_loss.check.cache_clear()
