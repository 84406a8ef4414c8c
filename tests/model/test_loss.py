"""The chunked loss against torch's cross-entropy, and what it must never allocate."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.model.losses import loss_inputs
from ulmfit.model.chunks import LossInputs
from ulmfit.model.loss import _compute_chunks, activation_regularization, linear_cross_entropy

N, E, V = 23, 5, 17


def problem(dtype=torch.float64, masked=(0, 4, 5, 22), n=N, e=E, v=V):
    return loss_inputs(n, e, v, dtype=dtype, masked=masked)


def plain(hidden, weight, bias, targets):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 19, 23, 100, None])
@pytest.mark.parametrize("masked", [(), (0, 4, 5, 22), range(N)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_cross_entropy(chunk_size, masked, with_bias):
    hidden, weight, bias, targets = problem(masked=masked)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    bias = bias if with_bias else None
    loss, correct = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=chunk_size)
    expected = plain(hidden, weight, bias, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert correct.dtype == torch.int64
    assert correct == (F.linear(hidden, weight, bias).argmax(1) == targets).sum()


def test_gradcheck():
    hidden, weight, bias, targets = problem()
    assert torch.autograd.gradcheck(
        lambda *x: linear_cross_entropy(*x, targets, chunk_size=5)[0], (hidden, weight, bias)
    )


def test_float32_is_as_exact_as_torch():
    exact = plain(*problem(n=300, v=1000, e=40))
    hidden, weight, bias, targets = problem(torch.float32, n=300, v=1000, e=40)
    loss, _ = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=64)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 1e-6
    ours = torch.autograd.grad(loss, (hidden, weight, bias))
    reference = problem(n=300, v=1000, e=40)
    theirs = torch.autograd.grad(plain(*reference), reference[:3])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 2e-6


def test_the_logits_are_never_whole(recorder):
    n, e, v, chunk_size = 96, 4, 400, 16
    hidden, weight, bias, targets = problem(n=n, e=e, v=v)
    with recorder:
        loss, _ = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=chunk_size)
        loss.backward()
    assert recorder.largest <= chunk_size * v < n * v
    with type(recorder)() as control:
        plain(hidden, weight, bias, targets).backward()
    assert control.largest == n * v


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [(0, 4, 5, 22), range(N)])
def test_rows_weighted_by_zero_equal_rows_left_out(dtype, masked, monkeypatch):
    """On a GPU rows that do not count are computed, for the host must not wait to learn which they are."""
    monkeypatch.setattr("ulmfit.model.chunks.cpu_multiplies_bf16", lambda: False)  # would round the sum of each chunk
    hidden, weight, bias, targets = problem(masked=masked)
    kept = targets != -100
    with torch.no_grad():
        bias[0] += 20  # word 0, which stands in for the missing targets, is the likeliest
        weighted = _compute_chunks(LossInputs(hidden, weight, bias, targets, 4, dtype, (True, True, True)))
        left = _compute_chunks(LossInputs(hidden[kept], weight, bias, targets[kept], 4, dtype, (True, True, True)))
    assert not weighted.grad_hidden[~kept].any()
    weighted = weighted._replace(grad_hidden=weighted.grad_hidden[kept])
    for ours, theirs in zip(weighted, left, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_evaluation_computes_the_loss_alone(recorder):
    hidden, weight, bias, targets = problem(v=50)
    expected, correct = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=4)
    with torch.no_grad(), recorder:
        loss, num_correct = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=4)
    assert not loss.requires_grad and torch.equal(loss, expected) and torch.equal(num_correct, correct)
    assert weight.shape not in recorder.shapes  # no gradient of the weight
    with torch.inference_mode():
        assert torch.equal(linear_cross_entropy(hidden, weight, bias, targets, chunk_size=4)[0], expected)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2), (0, 1)])
def test_gradients_that_nobody_needs_are_not_computed(frozen, recorder):
    full = problem(v=50)
    expected = torch.autograd.grad(plain(*full), full[:3])
    inputs = problem(v=50)
    for i in frozen:
        inputs[i].requires_grad_(False)
    with recorder:
        linear_cross_entropy(*inputs, chunk_size=4)[0].backward()
    for i in range(3):
        if i in frozen:
            assert inputs[i].grad is None
        else:
            torch.testing.assert_close(inputs[i].grad, expected[i], rtol=1e-12, atol=1e-13)
    assert (inputs[1].shape in recorder.shapes) == (1 not in frozen)


def test_a_loss_scale_enters_in_float32():
    inputs = problem(torch.float32)
    plain_grads = torch.autograd.grad(linear_cross_entropy(*inputs)[0], inputs[:3])
    scaled = torch.autograd.grad(linear_cross_entropy(*inputs)[0] * 2.0**40, inputs[:3])
    for a, b in zip(plain_grads, scaled, strict=True):
        assert torch.equal(a * 2.0**40, b)


def test_backward_twice():
    inputs = problem()
    loss, _ = linear_cross_entropy(*inputs)
    first = torch.autograd.grad(loss, inputs[:3], retain_graph=True)
    second = torch.autograd.grad(2 * loss, inputs[:3])
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_products_keep_float32_gradients(dtype):
    """As under CUDA autocast. A word of probability 1e-9 would have no gradient at all in float16."""
    hidden, weight, bias, targets = problem(torch.float32, masked=(3,))
    with torch.no_grad():
        bias[7] -= 20
        targets[targets == 7] = 8
    loss, _ = linear_cross_entropy(hidden, weight, bias, targets, chunk_size=6, compute_dtype=dtype)
    expected = plain(hidden, weight, bias, targets)
    tolerance = 8 * torch.finfo(dtype).eps
    assert loss.dtype == torch.float32 and abs(loss / expected - 1) < tolerance
    ours = torch.autograd.grad(loss, (hidden, weight, bias))
    for a, b in zip(ours, torch.autograd.grad(expected, (hidden, weight, bias)), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < tolerance
        if len(a) == V:
            assert 0 < b[7].norm() < 1e-7
            assert (a[7] - b[7]).norm() / b[7].norm() < 2 * tolerance


def test_hidden_in_half_precision_gets_its_gradient_in_kind():
    hidden, weight, bias, targets = problem(torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    linear_cross_entropy(half, weight, bias, targets)[0].backward()
    assert half.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    same = half.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(plain(same, weight, bias, targets), same)
    torch.testing.assert_close(half.grad.float(), expected, rtol=0.01, atol=1e-4)


def test_autocast_changes_nothing_on_a_cpu_without_matrix_units(monkeypatch):
    monkeypatch.setattr("ulmfit.model.chunks.cpu_multiplies_bf16", lambda: False)
    inputs = problem(torch.float32)
    expected, _ = linear_cross_entropy(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(*inputs)
    assert torch.equal(loss, expected)


def test_large_logits_do_not_overflow():
    hidden, weight, bias, targets = problem(torch.float32)
    hidden = (hidden * 1e4).detach().requires_grad_()
    loss, _ = linear_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(loss, plain(hidden, weight, bias, targets))
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()


def test_ar_and_tar_are_fastais(golden):
    h = golden.v1["artar.h"]
    ar_sum, tar_sum = activation_regularization(h, h, torch.ones(h.shape[:2], dtype=torch.bool))
    assert 2 * ar_sum.item() / h.numel() == pytest.approx(golden.json1["ar_tar"]["ar_alpha2"], rel=1e-6)
    assert tar_sum.item() / h[:, 1:].numel() == pytest.approx(golden.json1["ar_tar"]["tar_beta1"], rel=1e-6)


def test_ar_and_tar_count_what_counts():
    g = torch.Generator().manual_seed(0)
    dropped, raw = torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=g).unbind()
    counted = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    ar_sum, tar_sum = activation_regularization(dropped, raw, counted)
    rows = [(0, 5), (1, 3)]
    torch.testing.assert_close(ar_sum, sum(dropped[i, :n].square().sum() for i, n in rows))
    torch.testing.assert_close(tar_sum, sum(raw[i, :n].diff(dim=0).square().sum() for i, n in rows))


def test_ar_is_summed_in_float32():
    h = torch.full((4, 64, 64), 100.0, dtype=torch.float16)  # the sum is beyond float16
    ar_sum, _ = activation_regularization(h, h, torch.ones(4, 64, dtype=torch.bool))
    assert ar_sum.item() == pytest.approx(4 * 64 * 64 * 1e4)
