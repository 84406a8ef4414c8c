"""Who gets which seconds, and what is chosen from a probe: decided beforehand, so tested beforehand."""

import gpu_plan
import pytest
from gpu_plan import Limits, choose, latest_end, progress, share

TOKENS = {"wikipedia": 68_000_000, "imdb": 22_000_000}
RATES = [30e3, 100e3, 200e3, 400e3, 800e3, 1.2e6, 5e6]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("begin", [0, 20, 90, 369, 400])
def test_the_classifier_is_never_made_to_wait(rate, begin):
    limits = Limits()
    wikipedia = share("wikipedia", begin, rate, TOKENS, limits)
    assert latest_end("wikipedia", wikipedia, limits) <= limits.classifier_at
    imdb = share("imdb", wikipedia.end + gpu_plan.BETWEEN, rate, TOKENS, limits)
    assert wikipedia.end <= max(begin, limits.classifier_at) and imdb.end <= max(
        wikipedia.end + gpu_plan.BETWEEN, limits.classifier_at
    )
    assert latest_end("imdb", imdb, limits) == limits.classifier_at - gpu_plan.TO_KILL
    assert latest_end("classifier", share("classifier", 370, rate, TOKENS, limits), limits) < limits.whole


def test_slow_reads_less_of_wikipedia_and_fast_more_epochs_of_imdb():
    limits = Limits()
    seconds = [share("wikipedia", 20, rate, TOKENS, limits).end - 20 for rate in RATES]
    read = [min(wall * rate, TOKENS["wikipedia"]) for wall, rate in zip(seconds, RATES, strict=True)]
    assert read == sorted(read) and read[0] < 0.1 * TOKENS["wikipedia"]
    assert seconds[0] >= 0.3 * 338, "never less than its third"
    assert read[-1] == TOKENS["wikipedia"] and seconds[-1] < 30, "an epoch and no more"
    epochs = [share("imdb", 150, rate, TOKENS, limits).epochs for rate in RATES]
    assert epochs == sorted(epochs) and epochs[0] == gpu_plan.LEAST_EPOCHS and epochs[-1] == gpu_plan.MOST_EPOCHS
    # At the rates that a reading of the code expects, all of it fits.
    for rate in (0.45e6, 0.8e6):
        wikipedia = share("wikipedia", 20, rate, TOKENS, limits)
        assert (wikipedia.end - 20) * rate > 0.85 * TOKENS["wikipedia"]
        imdb = share("imdb", wikipedia.end + 6, rate, TOKENS, limits)
        assert (imdb.end - wikipedia.end - 6) * rate > 0.9 * 2.75 * TOKENS["imdb"]


def test_a_stage_whose_neighbour_failed_still_has_a_share():
    assert share("wikipedia", 100, 4e5, {"wikipedia": TOKENS["wikipedia"]}, Limits()).end > 200


def test_progress_goes_by_whatever_is_ahead():
    assert progress(0, 50, 100, 10, 100) == 0.5
    assert progress(0, 50, 100, 90, 100) == 0.9
    assert progress(0, 100, 100, 10, 100) == progress(0, 1, 100, 100, 100) == progress(0, 0, 100, 5, 0) == 1
    assert progress(0.6, 0, 40, 0, 30) == 0.6
    assert progress(0.6, 20, 40, 3, 30) == pytest.approx(0.8)


def rows(**right):
    """Those of a probe: bf16 fused 900, bf16 plain 600, fp16 fused 950, fp32 plain 300 thousand tokens a second."""
    nets = {
        name: right.get(name, True) for name in ("bf16_fused", "bf16_plain", "fp16_fused", "fp32_plain", "clf_bf16")
    }
    found = [{"net": "clf", "precision": "bf16", "loss": "", "right": nets.pop("clf_bf16")}]
    found += [{"net": "clf", "precision": name, "loss": "", "right": True} for name in ("fp16", "fp32")]
    for name, value in nets.items():
        precision, _, loss = name.partition("_")
        found.append({"net": "lm", "precision": precision, "loss": loss, "right": value})
    found.append({"net": "lm", "precision": "fp16", "loss": "plain", "skipped": "x"})
    paces = {
        ("bf16", "fused"): right.get("pace", 900),
        ("bf16", "plain"): 600,
        ("fp16", "fused"): 950,
        ("fp32", "plain"): 300,
    }
    steps = [
        {"batch": batch, "precision": precision, "loss": loss, "tokens/s": pace * batch}
        for (precision, loss), pace in paces.items()
        for batch in (256, 64)
    ]
    return {"correctness": found + [{"seconds": 3.0}], "step": steps + [{"seconds": 3.0}]}


@pytest.mark.parametrize(
    ("right", "precision", "loss", "pace"),
    [
        ({}, "bf16", "fused", 900),
        ({"bf16_fused": False}, "bf16", "plain", 600),
        ({"pace": 500}, "bf16", "plain", 600),  # fused, but slower
        ({"bf16_fused": False, "bf16_plain": False}, "fp16", "fused", 950),
        ({"clf_bf16": False}, "fp16", "fused", 950),
        ({"bf16_fused": False, "bf16_plain": False, "fp16_fused": False}, "fp32", "plain", 300),
    ],
)
def test_the_gates(right, precision, loss, pace):
    found = choose(rows(**right))
    assert (found["precision"], found["loss"], found["tokens_per_second"]) == (precision, loss, 256 * pace)


def test_a_probe_that_did_not_come_far_chooses_what_it_knows():
    assert choose({})["precision"] is None
    found = choose({"correctness": rows()["correctness"]})
    assert found["precision"] == "bf16" and found["loss"] == "fused" and found["tokens_per_second"] is None
