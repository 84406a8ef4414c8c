"""TensorBoard: what a run shows there, and under which names (docs/training.md lists them).

TensorBoard sorts charts and figures by name and opens the first two groups. So the groups are, in this order:
"classifier" (loss and accuracy of training and validation), "final", "language model", "metrics" (with the figures),
"optimizer", "pace", and last "rates by layer". Of the texts "errors" and "samples" come first. The names differ between the
two tasks, because their losses do not compare. Of the same task they are the same in every run, so that runs in one logdir
lie in one chart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ulmfit.markdown import as_markdown
from ulmfit.run import figures

TASKS = {"lm": "language model", "clf": "classifier"}
FINAL = "final"
MAIN = ("accuracy", "f1", "loss", "micro_f1", "perplexity")  # in the group of the task; other scores are in "metrics"
TIMES = {
    "tokens_per_second": "pace/tokens a second",
    "data_wait": "pace/share of time waiting for data",
    "memory": "pace/memory in MiB",
    "step": "pace/seconds a step",
    "work": "pace/seconds a step of the slowest process",
    "spread": "pace/seconds between slowest and fastest process",
    "slowest_rank": "pace/slowest process",
}
_OPTIMIZER = {
    "lr": "optimizer/learning rate",
    "grad_norm": "optimizer/gradient norm",
    "momentum": "optimizer/momentum",
    "skipped": "optimizer/skipped steps in a row",
}
_NOT_SHOWN = ("event", "step", "stage", "epoch", "tokens")  # straight lines
_RESULT = ".result"  # suffix of the event file that is written at the end
_WIDTH = 100  # characters of a line of text


def score_tag(task: Literal["lm", "clf"], name: str, split: str) -> str:
    """The name of the chart of a score, as in "classifier/loss/valid"."""
    known = name in MAIN or name.removeprefix("sampled ") in MAIN
    return f"{TASKS[task] if known else 'metrics'}/{name}/{split}"


def train_tags(task: Literal["lm", "clf"], numbers: Mapping[str, float]) -> dict[str, float]:
    """The points of a training step, by the names of their charts."""
    fixed = _OPTIMIZER | TIMES
    return {
        fixed.get(name) or score_tag(task, name, "train"): value
        for name, value in numbers.items()
        if name not in _NOT_SHOWN
    }


def rate_tags(rates: Mapping[str, float]) -> dict[str, float]:
    """The learning rates of the layer groups, numbered from the lowest one."""
    return {f"rates by layer/{number} {name}": rate for number, (name, rate) in enumerate(rates.items(), 1)}


def _encodable(text: str) -> str:
    """A text that can be written as UTF-8: the name of a file may not be so."""
    return text.encode("utf-8", "backslashreplace").decode()


class Board:
    """The event files of one run.

    Args:
        folder: of the event files.
        task: "lm" or "clf".
        start_step: step of the checkpoint to resume from. Points of later steps are hidden, because these steps are run
            again.
    """

    def __init__(self, folder: Path, *, task: Literal["lm", "clf"], start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, which other ranks do not need

        self._folder, self._task = folder, task
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else 0)

    def lay_out(self) -> None:
        """Write the page of custom scalars, once per run."""
        self._writer.add_custom_scalars(_layout(self._task))

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of these charts."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Add a text. TensorBoard shows it as markdown."""
        self._writer.add_text(tag, _encodable(markdown), step)

    def evaluation(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Add the figures of an evaluation: confusion matrix and calibration curve, where the metrics have them."""
        drawn: dict[str, Any] = {}
        with suppress(ImportError):  # of an installation without dependencies: curves and metrics.jsonl are complete
            if (rows := metrics.get("confusion")) is not None:
                names = metrics.get("labels") or range(len(rows))
                drawn["confusion matrix"] = figures.confusion_figure(rows, list(names))
            if metrics.get("bins"):
                drawn["calibration curve"] = figures.calibration_figure(metrics["bins"], metrics["ece"])
            for name, figure in drawn.items():
                self._writer.add_image(f"metrics/{name}/{split}", figures.pixels(figure), step, dataformats="HWC")

    def begin_session(self, options: Mapping[str, str | float]) -> None:
        """Add the run to the page of hyperparameters, once per run.

        torch's `add_hparams` is not used, because it makes another run, with a time in its name, at every start. The
        experiment names the scores of both tasks: of several runs in one logdir TensorBoard takes the first one's.
        """
        from torch.utils.tensorboard.summary import hparams

        names = ("accuracy", "f1", "loss", "perplexity")
        scores = {f"{FINAL}/{name}/{split}": 0.0 for name in names for split in ("valid", "test")}
        told = {name: _encodable(value) if isinstance(value, str) else value for name, value in options.items()}
        experiment, session, _ = hparams(told, scores)
        for summary in (experiment, session):
            assert self._writer.file_writer is not None
            self._writer.file_writer.add_summary(summary, 0)

    def end_session(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the scores of the finished model: level lines under "final", and the columns of the hyperparameters.

        They have an event file of their own in the same folder, which replaces an earlier one: a run that was killed at
        its end writes them again.

        Args:
            metrics: by split.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        for earlier in self._folder.glob(f"events.*{_RESULT}"):
            earlier.unlink()
        with SummaryWriter(str(self._folder), filename_suffix=_RESULT) as writer:
            for tag, value in final_tags(metrics).items():
                for at in (0, step):
                    writer.add_scalar(tag, value, at)
            assert writer.file_writer is not None
            writer.file_writer.add_summary(hparams({}, {})[2], step)

    def flush(self) -> None:
        """Write what is buffered to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def final_tags(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The scores of a finished model by the names of their charts.

    Args:
        metrics: by split.
    """
    return {
        f"{FINAL}/{name}/{split}": float(scores[name])
        for split, scores in metrics.items()
        for name in (*MAIN, "recall", "ece")
        if isinstance(scores.get(name), int | float)
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in markdown. Cells are shown as they are."""
    lines = [header, ["---"] * len(header), *([as_markdown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verbatim(text: str) -> str:
    """Markdown that shows a text unchanged, but for long lines, which are wrapped: an indented block."""
    lines = [
        part for line in text.splitlines() for part in textwrap.wrap(line, _WIDTH, replace_whitespace=False) or [""]
    ]
    return "\n".join("    " + line for line in lines)


def _layout(task: Literal["lm", "clf"]) -> dict[str, Any]:
    """The page of custom scalars: training and validation in one chart, and all layers in one.

    TensorBoard joins the pages of the runs in a logdir, in the order of their names: charts of an equal group come together,
    a group that is new comes last. So both tasks have the same two groups, and the rates stay last.
    """
    names = ["loss", "accuracy", *(["perplexity"] if task == "lm" else ["f1"])]
    scores = {
        f"{name} of the {TASKS[task]}": ["Multiline", [rf"^{TASKS[task]}/(sampled )?{name}/.*"]] for name in names
    }
    return {"loss and accuracy": scores, "learning rates": {"by layer": ["Multiline", ["^rates by layer/.*"]]}}
