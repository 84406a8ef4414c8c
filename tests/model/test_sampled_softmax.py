"""The sampled softmax against a plain reference, the full softmax, and the true distribution it must lead to."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.model.losses import loss_inputs
from ulmfit.model.loss import linear_cross_entropy
from ulmfit.model.sampled_softmax import Candidates, inclusion_probabilities, sampled_cross_entropy
from ulmfit.training.masks import draw_words

N, E, V = 23, 5, 200


def problem(dtype=torch.float64, masked=(0, 4, 5, 22), n=N, e=E, v=V):
    *inputs, targets = loss_inputs(n, e, v, dtype=dtype, masked=masked)
    targets[7] = targets[8]  # a rare word twice
    return *inputs, targets


def draw(number=64, v=V, dtype=torch.float64, step=0):
    probabilities = inclusion_probabilities(v, number)
    return Candidates(draw_words(0, step, probabilities), probabilities.log().to(dtype))


def plain(hidden, weight, bias, targets, candidates):
    """By autograd, with a mask over whole corrected logits."""
    logits = F.linear(hidden, weight, bias) - candidates.log_probability
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept[:, candidates.words] = True
    kept.scatter_(1, targets.clamp(min=0).unsqueeze(1), True)
    logits = logits.masked_fill(~kept, -torch.inf)
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100), (logits.argmax(1) == targets).sum()


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 23, 100, None])
@pytest.mark.parametrize("masked", [(), (0, 4, 5, 22), range(N)])
def test_equals_a_plain_reference(chunk_size, masked):
    inputs, candidates = problem(masked=masked), draw()
    *_, targets = inputs
    among = torch.isin(targets[targets >= 0], candidates.words)
    assert len(among) == 0 or (among.any() and not among.all())
    loss, correct = sampled_cross_entropy(*inputs, candidates, chunk_size=chunk_size)
    expected, expected_correct = plain(*inputs, candidates)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    assert correct == expected_correct and correct.dtype == torch.int64
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, inputs[:3]), torch.autograd.grad(3 * expected, inputs[:3]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_all_words_are_the_full_softmax():
    inputs, candidates = problem(), draw(number=V)
    assert torch.equal(candidates.words, torch.arange(V)) and not candidates.log_probability.any()
    loss, correct = sampled_cross_entropy(*inputs, candidates)
    expected, expected_correct = linear_cross_entropy(*inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    assert correct == expected_correct
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs[:3]), torch.autograd.grad(expected, inputs[:3]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("number", [4, 5.5, 7])
def test_at_the_true_distribution_there_is_nothing_to_learn(number):
    """The expected gradient over all sets of candidates and all targets, enumerated: zero, however few the candidates.

    Another distribution has one, and so does the true one where the correction is left out.
    """
    g = torch.Generator().manual_seed(0)
    v = 7
    true = torch.rand(v, generator=g, dtype=torch.float64).softmax(0)
    inclusion = inclusion_probabilities(v, number)
    weight = torch.zeros(v, 1, dtype=torch.float64, requires_grad=True)

    def expected_gradient(logits, correction):
        bias, total = logits.clone().requires_grad_(), torch.zeros(v, dtype=torch.float64)
        for chosen in itertools.product([False, True], repeat=v):
            chosen = torch.tensor(chosen)
            chance = torch.where(chosen, inclusion, 1 - inclusion).prod()
            if chance == 0:
                continue
            candidates = Candidates(chosen.nonzero().squeeze(1), correction)
            for target in range(v):
                loss, _ = sampled_cross_entropy(
                    torch.zeros(1, 1, dtype=torch.float64), weight, bias, torch.tensor([target]), candidates
                )
                total += chance * true[target] * torch.autograd.grad(loss, bias)[0]
        return total

    torch.testing.assert_close(
        expected_gradient(true.log(), inclusion.log()), torch.zeros(v, dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert expected_gradient(torch.zeros(v, dtype=torch.float64), inclusion.log()).abs().max() > 1e-2
    if number < v:
        assert expected_gradient(true.log(), torch.zeros(v, dtype=torch.float64)).abs().max() > 1e-3


@pytest.mark.parametrize(("v", "number"), [(60_000, 8192), (60_000, 64), (60_000, 59_999), (200, 64), (65, 64), (3, 1)])
def test_inclusion_probabilities(v, number):
    p = inclusion_probabilities(v, number)
    assert p.dtype == torch.float64 and p.shape == (v,)
    assert p.sum().item() == pytest.approx(number, rel=1e-9)
    assert p.max() <= 1 and p.min() > 0 and (p.diff() <= 1e-15).all()
    rare = (p < 1).nonzero().squeeze(1)
    share = p[rare] / torch.log((rare + 2.0) / (rare + 1.0).double())
    torch.testing.assert_close(share, share[:1].expand_as(share), rtol=1e-6, atol=0)


def test_words_are_drawn_as_often_as_they_should_be():
    p, draws = inclusion_probabilities(400, 100), 2000
    counts = torch.zeros(400, dtype=torch.float64)
    sizes = []
    for step in range(draws):
        words = draw_words(3, step, p)
        counts[words] += 1
        sizes.append(len(words))
    deviation = (counts / draws - p) / (p * (1 - p) / draws).sqrt().clamp(min=1e-12)
    assert deviation.abs().max() < 4.5 and deviation.std() < 1.2  # of 400 about normal numbers
    assert (counts[p == 1] == draws).all() and len(set(sizes)) > 1
    assert torch.equal(draw_words(3, 7, p), draw_words(3, 7, p))
    assert not torch.equal(draw_words(4, 7, p), draw_words(3, 7, p))


def test_float32_is_as_exact_as_torch():
    exact, _ = plain(*problem(n=300, v=1000, e=40), draw(200, 1000))
    inputs = problem(torch.float32, n=300, v=1000, e=40)
    loss, _ = sampled_cross_entropy(*inputs, draw(200, 1000, torch.float32), chunk_size=64)
    assert loss.dtype == torch.float32 and abs(loss.item() / exact.item() - 1) < 1e-6
    reference = problem(n=300, v=1000, e=40)
    theirs = torch.autograd.grad(plain(*reference, draw(200, 1000))[0], reference[:3])
    for a, b in zip(torch.autograd.grad(loss, inputs[:3]), theirs, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() / b.norm() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_products_keep_float32_gradients(dtype):
    """As under autocast. A word of probability 1e-9 would have no gradient at all in float16."""
    *inputs, targets = problem(torch.float32, masked=(3,))
    with torch.no_grad():
        inputs[2][0] -= 20  # word 0 is always a candidate
        targets[targets == 0] = 8
    candidates = draw(dtype=torch.float32)
    loss, _ = sampled_cross_entropy(*inputs, targets, candidates, chunk_size=6, compute_dtype=dtype)
    expected, _ = plain(*inputs, targets, candidates)
    tolerance = 8 * torch.finfo(dtype).eps
    assert loss.dtype == torch.float32 and abs(loss / expected - 1) < tolerance
    ours, theirs = (torch.autograd.grad(value, inputs) for value in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() / b.norm() < tolerance
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert 0 < b[0].norm() < 1e-7 and (a[0] - b[0]).norm() / b[0].norm() < 2 * tolerance


def test_neither_logits_nor_the_dense_gradient_are_made_in_the_forward_pass(recorder):
    n, e, v, chunk_size = 96, 40, 4000, 16
    inputs, candidates = problem(n=n, e=e, v=v), draw(100, v)
    with recorder:
        loss, _ = sampled_cross_entropy(*inputs, candidates, chunk_size=chunk_size)
    most = max(v, n * e, e * len(candidates.words), chunk_size * len(candidates.words))
    assert recorder.largest <= most < min(n * v, v * e)
