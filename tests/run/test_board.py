"""What TensorBoard gets: names in the order they are looked at, figures, hyperparameters, and texts as they are."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import markdown
import numpy as np
import pytest

from tests.run.test_tracking import board, curve, log_step, text_of, tracker
from ulmfit.run import board as boards
from ulmfit.run import figures, tracking
from ulmfit.training.calibration import BINS

EVALUATION = {
    "loss": 0.5,
    "accuracy": 0.875,
    "f1": 0.8,
    "recall": 0.7,
    "ece": 0.1,
    "confusion": [[3, 1], [0, 4]],
    "labels": ["neg|$x$", "pos"],
    "bins": [{"number": 0, "confidence": None, "accuracy": None}] * (BINS - 1)
    + [{"number": 8, "confidence": 0.99, "accuracy": 0.875}],
}


def test_what_is_looked_at_first_comes_first_and_the_rates_by_layer_last(tmp_path):
    for task in ("lm", "clf"):
        log = tracker(tmp_path / task, task=task)
        for step in (10, 20):
            log_step(log, step, accuracy=0.5, momentum=0.8, skipped=0, timing={"step": 0.1},
                     lrs={"embedding": 0.0, **{f"lstm {n}": 1e-4 for n in range(1, 4)}, "head": 1e-3})  # fmt: skip
            log.log_eval(step, "valid", **({"loss": 2.0, "perplexity": 7.4} if task == "lm" else EVALUATION))
        log.log_result(20, {"valid": EVALUATION, "test": {"loss": 0.25, "accuracy": 0.9, "labels": ["a"]}})
        log.close()
    tags = [tag for task in ("lm", "clf") for tag in board(tmp_path / task).Tags()["scalars"]]
    groups = sorted({tag.split("/")[0] for tag in tags})
    assert groups == ["classifier", "final", "language model", "metrics", "optimizer", "pace", "rates by layer"]
    first = sorted(tag for tag in tags if tag.startswith("classifier/"))
    assert first == [f"classifier/{name}" for name in (
        "accuracy/train", "accuracy/valid", "f1/valid", "loss/train", "loss/valid")]  # fmt: skip
    assert sorted(tag for tag in tags if tag.startswith("rates"))[::2] == [
        f"rates by layer/{name}" for name in ("1 embedding", "2 lstm 1", "3 lstm 2", "4 lstm 3", "5 head")
    ]
    points = {(tag, len(curve(tmp_path / task, tag))) for task in ("lm", "clf") for tag in
              board(tmp_path / task).Tags()["scalars"]}  # fmt: skip
    assert {number for _, number in points} == {2}
    assert curve(tmp_path / "clf", "final/accuracy/test") == [(0, 0.9), (20, 0.9)]
    assert "labels" not in str(tags)


def test_custom_scalars_of_a_whole_job_begin_with_loss_and_accuracy_and_end_with_the_rates(tmp_path):
    """As TensorBoard's own plugin joins the pages of the two runs; of the classifier's it reads first."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    for task in ("lm", "clf"):
        tracker(tmp_path / task, task=task).close()
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(tmp_path))
    page = json.loads(CustomScalarsPlugin(TBContext(data_provider=provider)).layout_impl(RequestContext(), ""))
    assert [(group["title"], [chart["title"] for chart in group["chart"]]) for group in page["category"]] == [
        ("loss and accuracy", ["loss of the classifier", "accuracy of the classifier", "f1 of the classifier",
                               "loss of the language model", "accuracy of the language model",
                               "perplexity of the language model"]),
        ("learning rates", ["by layer"]),
    ]  # fmt: skip


@pytest.mark.parametrize("resumed", [False, True])
def test_no_chart_of_a_single_dot(tmp_path, resumed):
    """Neither from the only logged step of a short run nor from its only evaluation, on a later start too."""
    log = tracker(tmp_path, total_steps=10, task="clf")
    log_step(log, 10)
    log.flush()
    if resumed:
        log.close()
        log = tracker(tmp_path, total_steps=10, task="clf", start_step=10)
    log.log_eval(10, "valid", **EVALUATION)
    log.log_eval(10, "test", **EVALUATION)
    log.close()
    assert board(tmp_path).Tags()["scalars"] == []
    assert len((tmp_path / tracking.METRICS).read_text().splitlines()) == 3


def test_a_curve_that_has_begun_ends_with_its_last_step(tmp_path):
    log = tracker(tmp_path, total_steps=15, task="clf")
    log_step(log, 10)
    log.log_eval(10, "valid", loss=1.0)
    log.flush()
    log.close()
    log = tracker(tmp_path, total_steps=15, task="clf", start_step=10)
    log_step(log, 15)
    log.log_eval(15, "valid", loss=0.5)
    log.close()
    assert curve(tmp_path, "classifier/loss/valid") == [(10, 1.0), (15, 0.5)]
    assert [step for step, _ in curve(tmp_path, "classifier/loss/train")] == [10, 15]


def test_a_run_that_is_killed_while_it_draws_the_figures_has_each_point_once(tmp_path, monkeypatch):
    """The figures of an evaluation take a second, in which what was given to TensorBoard before may reach the disk."""

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    log = tracker(tmp_path, total_steps=30, task="clf")
    log_step(log, 10)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(boards.Board, "evaluation", killed)
        log.log_eval(10, "valid", loss=1.0)
    log.close()
    log = tracker(tmp_path, total_steps=30, task="clf", start_step=10)
    log.log_eval(10, "valid", loss=1.0)
    log.log_eval(20, "valid", loss=0.5)
    log.close()
    assert curve(tmp_path, "classifier/loss/valid") == [(10, 1.0), (20, 0.5)]


def test_the_scores_at_the_end_are_written_once_however_often(tmp_path):
    for start in (0, 100, 100):
        log = tracker(tmp_path, task="clf", start_step=start)
        log.log_hparams({"a": 1}, {"lr": 0.001, "recipe": "quick"})
        if not start:
            log_step(log, 100)
            log.flush()
        log.log_result(100, {"valid": EVALUATION})
        log.close()
    assert curve(tmp_path, "final/accuracy/valid") == [(0, 0.875), (100, 0.875)]
    assert {"lr", "recipe"} == hyperparameters(tmp_path).keys()


def hyperparameters(directory):
    """As the plugin reads them: the values of the session, if the run's folder has an experiment and an end too."""
    from tensorboard.plugins.hparams import metadata

    summaries = board(directory).PluginTagToContent("hparams")
    contents = {tag: metadata.parse_session_start_info_plugin_data if tag == metadata.SESSION_START_INFO_TAG else None
                for tag in summaries}  # fmt: skip
    assert set(contents) == {metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
    experiment = metadata.parse_experiment_plugin_data(summaries[metadata.EXPERIMENT_TAG])
    assert "final/accuracy/test" in [info.name.tag for info in experiment.metric_infos]
    started = metadata.parse_session_start_info_plugin_data(summaries[metadata.SESSION_START_INFO_TAG])
    return dict(started.hparams)


def test_an_evaluation_has_figures(tmp_path):
    pytest.importorskip("matplotlib")
    log = tracker(tmp_path, task="clf")
    log.log_eval(50, "valid", **EVALUATION)
    log.log_eval(60, "valid", loss=1.0, ece=math.nan, labels=["a"])  # several labels: no matrix, no confidence
    log.close()
    found = board(tmp_path)
    assert found.Tags()["images"] == ["metrics/confusion matrix/valid", "metrics/calibration curve/valid"]
    assert [image.step for image in found.Images("metrics/confusion matrix/valid")] == [50]


def test_the_discs_of_a_calibration_curve_are_whole():
    pytest.importorskip("matplotlib")
    axes = figures.calibration_figure(EVALUATION["bins"], 0.1).axes[0]
    (discs,) = axes.collections
    assert discs.get_offsets().tolist() == [[0.99, 0.875]] and not discs.get_clip_on(), (
        "cut off at the edge of the axes"
    )


@pytest.mark.slow
def test_figures_are_drawn_without_pyplot():
    pytest.importorskip("matplotlib")
    for classes in (1, 2, 6, 77, 200):
        rows = np.diag(range(classes)) + 1
        drawn = figures.pixels(
            figures.confusion_figure(rows.tolist(), [f"a long name of class {n}" * 3 for n in range(classes)])
        )
        assert drawn.shape[2] == 4 and drawn.dtype == np.uint8 and max(drawn.shape) <= 1300
        assert drawn[..., :3].std() > 1
    empty = [{"number": 0, "confidence": None, "accuracy": None}] * BINS
    assert figures.pixels(figures.calibration_figure(empty, math.nan)).size
    code = (
        "import sys, ulmfit.run.board, ulmfit.run.tracking; from ulmfit.run import figures as f\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert f.png(f.confusion_figure([[1]], ['a']))[:4] == b'\\x89PNG' and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_board_without_matplotlib_has_its_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    log = tracker(tmp_path, task="clf")
    log.log_eval(50, "valid", **EVALUATION)
    log.close()
    assert board(tmp_path).Tags()["images"] == [] and curve(tmp_path, "classifier/loss/valid") == [(50, 0.5)]


def test_texts_are_shown_verbatim_and_wrapped(tmp_path):
    log = tracker(tmp_path)
    log.log_text(5, "samples", boards.verbatim("# no heading\n*none*\n\n" + "word " * 60))
    log.close()
    lines = text_of(tmp_path, "samples").split("\n")
    assert lines[:3] == ["    # no heading", "    *none*", "    "]
    assert len(lines) == 6 and max(map(len, lines)) <= 104 and " ".join(lines[3:]).split() == ["word"] * 60


def test_a_table_shows_its_cells_as_they_are(tmp_path):
    cell = "a|b <b>*c*</b> [l](x) `d` \\ _e_ &amp; #1\nnext"
    log = tracker(tmp_path)
    log.log_hparams({"lr": 1e-3, "stages": [1, 2], "model": {"bptt": 70, "path": cell}}, {"lr": 0.001})
    log.close()
    html = markdown.markdown(text_of(tmp_path, "settings"), extensions=["markdown.extensions.tables"])
    cells = [part.split("</td>")[0] for part in html.split("<td>")[1:]]
    assert cells == ["lr", "0.001", "stages", "[1, 2]", "model.bptt", "70", "model.path",
                     "a|b &lt;b&gt;*c*&lt;/b&gt; [l](x) `d` \\ _e_ &amp;amp; #1 next"]  # fmt: skip


def test_a_run_that_begins_with_another_ones_checkpoint_tells_what_it_is(tmp_path):
    for start in (40, 50):
        log = tracker(tmp_path, task="clf", start_step=start)
        log.log_hparams({"a": start}, {"lr": 0.001})
        log_step(log, start + 10)
        log.flush()
        log.close()
    assert text_of(tmp_path, "settings").splitlines()[2:] == ["| a | 40 |"]
    assert len(board(tmp_path).Tensors("settings/text_summary")) == 1
    assert [step for step, _ in curve(tmp_path, "classifier/loss/train")] == [50, 60]
