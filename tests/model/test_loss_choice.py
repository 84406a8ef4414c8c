"""Which path the loss takes and how large its chunks are, where no GPU is needed to tell."""

from __future__ import annotations

import pytest
import torch

from tests.model.losses import loss_inputs
from ulmfit.model import chunks, fused_loss
from ulmfit.model.chunks import chunk_rows
from ulmfit.model.loss import linear_cross_entropy

GIB = 2**30


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "memory", "expected"),
    [
        (4608, 60_000, None, 512),
        (100, 60_000, None, 512),  # of a CPU, whose results stay what they were
        (4608, 60_000, 140 * GIB, 2304),  # batch 64: never the whole of a step
        (18_432, 60_000, 140 * GIB, 8192),
        (73_728, 60_000, 140 * GIB, 8192),
        (73_728, 250_000, 140 * GIB, 2147),  # 2 GiB
        (73_728, 60_000, 8 * GIB, 2236),  # a sixteenth of a small GPU
        (73_728, 2_000_000_000, 8 * GIB, 1),
        (2, 10, 140 * GIB, 1),
        (1, 10, 140 * GIB, 1),
        (0, 10, 140 * GIB, 1),
    ],
)
def test_rows_of_a_chunk(num_rows, num_columns, memory, expected):
    assert chunk_rows(num_rows, num_columns, 4, memory) == expected


def test_a_weight_on_the_cpu_has_the_chunks_of_a_cpu():
    assert chunks.rows_of_a_chunk(100_000, 60_000, torch.empty(2, 2)) == 512


@pytest.mark.parametrize(
    ("device", "switch", "failure", "chosen"),
    [
        ("cuda", None, None, True),
        ("cuda", "plain", None, False),
        ("cuda", "", None, True),
        ("cuda", None, "no compiler", False),
        ("cpu", None, None, False),
        ("mps", None, None, False),
    ],
)
def test_the_kernel_is_chosen_on_cuda(device, switch, failure, chosen):
    assert fused_loss.is_chosen(device, switch=switch, failure=failure) == chosen


@pytest.fixture
def gpu(monkeypatch):
    """The loss believes that its weight is on a GPU whose kernel has not failed yet."""
    monkeypatch.setattr(fused_loss, "_failure", None)
    in_use = fused_loss.in_use
    monkeypatch.setattr(fused_loss, "in_use", lambda device: in_use(torch.device("cuda")))


def test_without_triton_the_plain_path_is_taken_and_told_once(gpu, monkeypatch, capsys):
    monkeypatch.setattr(fused_loss, "find_spec", lambda name: None)
    monkeypatch.setattr(fused_loss, "compute_chunks", lambda *_: pytest.fail("there is no triton"))
    for _ in range(2):
        linear_cross_entropy(*loss_inputs(23, 5, 17))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "the loss is computed without its Triton kernel, which is slower: triton is not installed"


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler.\nSet CC"), ImportError("no such driver")])
def test_a_kernel_that_fails_is_tried_once_and_told(error, gpu, monkeypatch, capsys):
    tried = []

    def launch(*_, **__):
        tried.append(1)
        raise error

    module = type(fused_loss)("softmax_kernel")
    module.launch = launch
    monkeypatch.setitem(__import__("sys").modules, "ulmfit.model.softmax_kernel", module)
    monkeypatch.setattr(fused_loss, "find_spec", lambda name: True)
    fused_loss.check.cache_clear()
    inputs = loss_inputs(23, 5, 17)
    expected = torch.autograd.grad(linear_cross_entropy(*inputs)[0], inputs[:3])
    again = torch.autograd.grad(linear_cross_entropy(*inputs)[0], inputs[:3])
    assert len(tried) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{type(error).__name__}: {error.args[0].splitlines()[0]}" in line
    monkeypatch.setenv("ULMFIT_LOSS", "plain")
    plain = torch.autograd.grad(linear_cross_entropy(*inputs)[0], inputs[:3])
    for a, b, c in zip(expected, again, plain, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_out_of_memory_is_no_fault_of_the_kernel(gpu, monkeypatch):
    def launch(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module = type(fused_loss)("softmax_kernel")
    module.launch = launch
    monkeypatch.setitem(__import__("sys").modules, "ulmfit.model.softmax_kernel", module)
    monkeypatch.setattr(fused_loss, "find_spec", lambda name: True)
    fused_loss.check.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        linear_cross_entropy(*loss_inputs(23, 5, 17))
    assert fused_loss._failure is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_added_in_the_wider_dtype(dtype, monkeypatch):
    monkeypatch.setattr(chunks, "cpu_multiplies_bf16", lambda: False)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 40, generator=g).to(dtype), torch.randn(40, 3, generator=g).to(dtype)
    total = torch.ones(5, 3)
    chunks.add_product(total, a, b, 0.25)
    torch.testing.assert_close(total, 1 + 0.25 * (a.float() @ b.float()))
    wide = torch.ones(5, 3)
    chunks.add_product(wide, a.float(), b.float(), 0.25)
    torch.testing.assert_close(wide, total)


@pytest.mark.skipif(not chunks.cpu_multiplies_bf16(), reason="this CPU has no matrix units for bf16")
def test_matrix_units_of_a_cpu_round_a_product_once():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 300, generator=g).bfloat16(), torch.randn(300, 48, generator=g).bfloat16()
    exact = a.double() @ b.double()
    found = chunks.product(a, b, torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    # Half a unit of bfloat16's last place, and float32's error in sums of numbers of opposite signs.
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_where_addmm_does_not_widen_it_is_not_used(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("self and mat2 must have the same dtype")

    device = torch.device("cpu")
    chunks._adds_in_float32.cache_clear()
    monkeypatch.setattr(torch, "addmm", refuse)
    assert not chunks._adds_in_float32(device, torch.bfloat16)
    chunks._adds_in_float32.cache_clear()
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, *, alpha, out, **_: out)  # computes nothing
    assert not chunks._adds_in_float32(device, torch.bfloat16)
    chunks._adds_in_float32.cache_clear()
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, *, alpha, out, **_: out.add_(a.float() @ b.float() * alpha))
    assert chunks._adds_in_float32(device, torch.bfloat16)
    chunks._adds_in_float32.cache_clear()
