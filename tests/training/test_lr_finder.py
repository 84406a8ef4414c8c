"""The range test's schedule, smoothing, end, and what its rules read off a curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import golden
from ulmfit.config import ClassifierConfig
from ulmfit.config_check import check
from ulmfit.errors import UserError
from ulmfit.training.lr_finder import RangeTest, rate_at, suggest
from ulmfit.training.lr_finder import tested_stage as stage_of
from ulmfit.training.stages import recipe_for


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


def curve_of(losses):
    """A test that has recorded a curve without smoothing."""
    test = RangeTest(100)
    test.rates, test.losses = [rate_at(k, 100) for k in range(len(losses))], list(losses)
    test._raw = test.losses
    return test


def test_a_rule_that_takes_noise_for_a_descent_is_left_out():
    """The loss falls between steps 50 and 80. A jump at the start, before it falls, draws two rules there."""
    losses = [5.0] * 50 + [5 - 0.1 * k for k in range(30)] + [2.0 + 0.2 * k for k in range(15)]
    noisy = list(losses)
    noisy[20] += 0.3
    found = suggest(curve_of(noisy).rates[10:-5], noisy[10:-5])
    assert found["steep"] == rate_at(20, 100) and found["min_gradient"] < rate_at(25, 100)
    marks = curve_of(noisy).marks
    assert "valley" in marks and not {"steep", "min_gradient"} & marks.keys()
    assert all(rate_at(50, 100) < rate <= rate_at(80, 100) for rate in marks.values())
    assert marks == {rule: found[rule] for rule in marks}
    assert {"steep", "min_gradient"} <= curve_of(losses).marks.keys()


def test_a_loss_that_falls_at_no_rate_is_told():
    for losses in ([2.0 + 0.01 * k for k in range(95)], [2.0] * 60 + [2.0 + 0.1 * k for k in range(35)]):
        with pytest.raises(UserError, match="no rate at which the loss falls"):
            _ = curve_of(losses).marks


@pytest.mark.parametrize("easy", [[0.3], [0.59 + 0.001 * k for k in range(12)], [0.55, 0.7, 0.5, 0.72] * 3])
def test_easy_batches_at_the_start_do_not_hide_a_descent(easy):
    """They put the first point of the smoothed curve below all others, although the loss falls between steps 45 and 75."""
    falls = [0.69 - 0.002 * (k - 45) for k in range(45, 75)]
    losses = easy + [0.69] * (45 - len(easy)) + falls + [0.63 * 1.1**k for k in range(25)]
    test = RangeTest(100)
    for loss in losses:
        if not test.record(loss):
            break
    assert min(test.losses[10:-5]) == test.losses[10]
    assert rate_at(45, 100) < next(iter(test.marks.values())) < rate_at(80, 100)


def test_a_noisy_curve_has_the_default_rule_and_is_called_so():
    losses = [2.0 + 0.5 * (k % 7 == 0) - 0.001 * k for k in range(95)]
    test = curve_of(losses)
    assert test.is_noisy and list(test.marks) == ["valley"] and "the curve is noisy" in test.report()
    assert not curve_of([5.0] * 50 + [5 - 0.1 * k for k in range(45)]).is_noisy


def test_the_stage_is_the_one_whose_rate_lr_sets_or_the_named_one():
    recipe = recipe_for(ClassifierConfig(recipe="blog"), pretrained=True)
    assert stage_of(recipe, None) is recipe.stages[-1]
    assert stage_of(recipe, "head") is recipe.stages[0]
    with pytest.raises(
        UserError, match="--lr-find-stage 'neck' is no stage .*; give one of head, last 2 groups, last 3"
    ):
        stage_of(recipe, "neck")
    with pytest.raises(UserError, match="give that too"):
        check(ClassifierConfig(lr_find_stage="head"))


def test_the_curve_is_drawn_once_for_each_stage(tmp_path):
    pytest.importorskip("matplotlib")
    for stage in ("head", "last 2 groups", "last 2 groups"):
        test = RangeTest(100, stage=stage)
        while test.record(3 / (1 + test.next_rate * 100) + test.next_rate):
            pass
        path = test.save(tmp_path / "lr_find")
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in (tmp_path / "lr_find").glob("*.png")} == {"head.png", "last-2-groups.png"}
    events = EventAccumulator(str(tmp_path / "lr_find"))
    events.Reload()
    for stage in ("head", "last 2 groups"):
        assert len(events.Images(f"learning-rate finder/{stage}")) == 1
