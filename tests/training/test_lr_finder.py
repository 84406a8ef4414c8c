"""The range test's schedule, smoothing, end, and what its rules read off a curve."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import golden
from ulmfit.errors import UserError
from ulmfit.training.lr_finder import RangeTest, rate_at, suggest


def test_the_schedule_is_fastais():
    expected = golden.table(1)["lrfind_v1_sched"]
    assert [rate_at(k, 100) for k in range(101)] == pytest.approx(expected, rel=1e-12)


def test_the_rules_give_what_fastai_gives():
    curve, expected = (golden.table(2)[name] for name in ("lrfind_curve", "lrfind_suggest"))
    found = suggest(curve["lrs"][10:-5], curve["losses"][10:-5])  # as `RangeTest.suggestions` cuts it
    for name in ("valley", "slide", "minimum", "steep"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert found["min_gradient"] == pytest.approx(expected["v1_min_numerical_gradient"], rel=1e-6)
    assert found["minimum"] == pytest.approx(expected["v1_min_loss_div10"], rel=1e-6)


def quadratic_valley(y) -> int:
    """The same rule by the textbook's quadratic recurrence."""
    lengths = [1] * len(y)
    for i in range(len(y)):
        lengths[i] = 1 + max([lengths[j] for j in range(i) if y[j] > y[i]], default=0)
    longest = max(lengths)
    start = lengths.index(longest) - longest
    return max(0, start + int(longest / 3) + int(longest / 3 / 2))


def test_the_longest_valley_of_any_curve():
    random = np.random.RandomState(0)
    for n in range(2, 60):
        y = random.randint(0, 12, n) / 4 + np.linspace(3, 0, n) * random.rand()
        rates = list(range(1, n + 1))
        assert suggest(rates, y)["valley"] == rates[quadratic_valley(y)]


def test_rules_on_curves_that_are_known():
    rates = [10.0 ** (k / 10) for k in range(-60, 0)]
    falling = suggest(rates, np.linspace(5, 1, 60))
    assert falling["minimum"] == pytest.approx(rates[-1] / 10)
    assert falling["slide"] == rates[44]  # the slope never changes: the window stays at the end
    kink = [4.0] * 30 + [4.0 - 0.1 * k for k in range(30)]
    kink[45] -= 0.5
    assert suggest(rates, kink)["steep"] == rates[44]
    assert suggest(rates, kink)["min_gradient"] == rates[44]


def test_what_comes_after_a_loss_that_is_no_number_is_left_out():
    rates = [10.0 ** (k / 10) for k in range(40)]
    losses = list(np.linspace(5, 1, 30)) + [math.nan] + [0.0] * 9
    assert suggest(rates, losses) == suggest(rates[:30], losses[:30])
    assert suggest(rates, [math.nan] * 40) == {} and suggest([], []) == {} and suggest([1.0], [1.0]) == {}
    assert "slide" not in suggest(rates[:15], losses[:15]) and "slide" in suggest(rates[:16], losses[:16])


def test_smoothing_has_no_bias_at_the_start():
    test = RangeTest(50)
    losses = [4.0, 2.0, 7.0]
    for loss in losses:
        assert test.record(loss)
    weights = np.array([0.98**2, 0.98, 1.0])
    assert test.losses[0] == pytest.approx(4.0)
    assert test.losses[2] == pytest.approx((weights * losses).sum() / weights.sum())
    assert test.rates == [rate_at(k, 50) for k in range(3)]


def test_it_ends_after_the_last_step():
    test = RangeTest(20)
    assert [test.record(1.0) for _ in range(20)] == [True] * 19 + [False]


def test_it_ends_when_the_loss_has_grown_to_four_times_its_best():
    test = RangeTest(10_000)
    for _ in range(100):
        assert test.record(1.0)
    while test.record(5.0):
        assert test.losses[-1] <= 4
    assert test.losses[-1] > 4 and 3.95 < test.losses[-2] <= 4


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_it_ends_at_a_loss_that_is_no_number(loss):
    test = RangeTest(100)
    assert test.record(1.0) and not test.record(loss)
    with pytest.raises(UserError, match="after 2 steps"):
        _ = test.suggestions


def test_the_report_names_the_default_rule_first():
    test = RangeTest(100)
    while test.record(3 / (1 + test.next_rate * 100) + test.next_rate):
        pass
    skipped = suggest(test.rates[10:-5], test.losses[10:-5])
    assert test.suggestions == skipped
    assert 1e-4 < skipped["valley"] < 1
    lines = test.report().splitlines()
    assert lines[1].split()[:2] == ["valley", f"{skipped['valley']:.2e}"]
    assert lines[-1] == f"try --lr {skipped['valley']:.1e}"
