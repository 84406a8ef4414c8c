"""Logs of a run: metrics.jsonl, TensorBoard, console. Only rank 0 writes.

For metrics.jsonl see `run.metrics_file`. nan and infinite numbers are written there as null, because JSON does not have
them.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import torch
from tqdm import tqdm

from ulmfit.console import duration
from ulmfit.errors import without_keys
from ulmfit.run.board import Board, final_tags, rate_tags, score_tag, table, train_tags
from ulmfit.run.metrics_file import begun_curves, cut_metrics, key_of
from ulmfit.run.status import plain
from ulmfit.run.time_left import TimeLeft
from ulmfit.run_scores import METRICS

TENSORBOARD = "tensorboard"


class Mirror(Protocol):
    """Where a run's numbers go besides, as with --report-to. It is never given a text of the data."""

    def begin(self, options: Mapping[str, str | float]) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...


class Tracker:
    """The logs of one run. If `is_main` is False, all methods do nothing.

    Args:
        output_dir: the run directory.
        total_steps: steps of the whole run, for the progress bar and the time left.
        start_step: step of the checkpoint to resume from. With 0 an earlier log is emptied (of a run that was killed
            before its first checkpoint).
        log_every: steps between log lines (`due`).
        task: with "lm", training steps also have a perplexity.
        sampled: loss and accuracy of training steps are those of the sampled softmax. They are labelled so, there is
            no perplexity, and metrics.jsonl has "sampled": true.
        stages: names of the stages, for the console; metrics.jsonl has their numbers.
        console: the stream for lines, standard output by default. On a terminal there is also a progress bar, which
            then shows the time left instead of the lines.
        mirror: gets the same numbers as TensorBoard. Whoever made it closes it.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        is_main: bool,
        total_steps: int,
        start_step: int = 0,
        log_every: int,
        task: Literal["lm", "clf"] = "lm",
        sampled: bool = False,
        stages: Sequence[tuple[str, int, float]] = (),
        console: TextIO | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.is_main, self.task, self.sampled = is_main, task, sampled
        self.total_steps, self.start_step, self.log_every = total_steps, start_step, log_every
        self._stages = [name for name, _, _ in stages]
        self._left = TimeLeft([(steps, work) for _, steps, work in stages] or [(total_steps, 1.0)], start_step)
        if not is_main:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        self._kept = cut_metrics(output_dir / METRICS, start_step)
        # A run that begins with the checkpoint of another one (stages by hand) has no log yet.
        self._is_new = start_step == 0 or not (output_dir / METRICS).exists()
        self._curves = begun_curves(output_dir / METRICS)
        self._metrics = open(output_dir / METRICS, "ab", buffering=0)
        self._board, self._mirror = Board(output_dir / TENSORBOARD, task=task, start_step=start_step), mirror
        if self._is_new:
            self._board.lay_out()
        self._console: TextIO | None = sys.stdout if console is None else console
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            file=self._console,
            unit="step",
            smoothing=0.05,
            dynamic_ncols=True,
            leave=False,
            disable=not self._console.isatty(),
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def due(self, step: int) -> bool:
        """Whether `step` (1-based) is logged: every `log_every` steps and at the last. Equal on all ranks."""
        return step % self.log_every == 0 or step == self.total_steps

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` finished steps."""
        self._left.passed(step)
        if self.is_main:
            if not self._bar.disable:
                self._bar.set_postfix_str(f"left {duration(self._left.seconds(step))}", refresh=False)
            self._show(lambda: self._bar.update(step - self._bar.n))

    def log_train(
        self,
        step: int,
        *,
        stage: int | str,
        epoch: float,
        tokens: int,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens_per_second: float,
        data_wait: float,
        memory: float,
        timing: dict[str, float] | None = None,
        momentum: float | None = None,
        lrs: dict[str, float] | None = None,
        **extra: float,
    ) -> None:
        """Log a training step.

        Args:
            tokens: tokens read since the run's first step.
            loss: global cross-entropy in nats per token (or document), without AR and TAR. With `sampled` it is not
                comparable with that of other runs.
            lr: the highest learning rate. `lrs` (those of the layer groups by name, from the lowest group on) and
                `momentum` are logged to TensorBoard only, because they are functions of the step.
            data_wait: share of the time since the last logged step spent waiting for data, 0 to 1, on the rank that
                waited most.
            memory: MiB (`memory_mib`), on the rank that uses most.
            timing: seconds by name, under "time" in metrics.jsonl: `step`; with several ranks also `work` (own work
                per step of the slowest rank, `slowest_rank`) and `spread` (slowest minus fastest).
            extra: other numbers for metrics.jsonl and TensorBoard.
        """
        if not self.is_main:
            return
        line = {
            "event": "train",
            "step": step,
            "stage": stage,
            "epoch": epoch,
            "tokens": tokens,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_second": tokens_per_second,
            "data_wait": data_wait,
            "memory": memory,
        } | extra
        scalars: dict[str, Any] = {name: value for name, value in line.items() if _is_number(value)}
        if timing:
            line["time"] = timing
        if self.sampled:
            line["sampled"] = True
            scalars = {
                f"sampled {name}" if name in ("loss", "accuracy") else name: value for name, value in scalars.items()
            }
        elif self.task == "lm":
            scalars["perplexity"] = _exp(loss)
        if momentum is not None:
            scalars["momentum"] = momentum
        if self._write(line):
            points = train_tags(self.task, scalars | (timing or {}))
            self._add(step, "train", points | rate_tags(lrs or {}))
        perplexity = f"  perplexity {scalars['perplexity']:.1f}" if "perplexity" in scalars else ""
        width = len(str(self.total_steps))
        stage_name = self._stages[stage] if isinstance(stage, int) and stage < len(self._stages) else stage
        left = f"  left {duration(self._left.seconds(step))}" if self._bar.disable else ""
        self.print(
            f"step {step:{width}}/{self.total_steps}  epoch {_short(epoch)}  stage {stage_name}  "
            f"{'sampled ' if self.sampled else ''}loss {loss:.4f}{perplexity}  lr {lr:.2e}  "
            f"{tokens_per_second:,.0f} tokens/s{left}"
        )

    def log_eval(self, step: int, split: str, **metrics: Any) -> None:
        """Log an evaluation after `step` steps.

        Numbers become curves, but for those of the test split, which is scored once. `confusion` (a list of rows; row:
        true class, column: predicted class) with the class names of `labels`, and `bins` (of
        `training.calibration.bin_table`) become figures. Other values (names, lists) are written to metrics.jsonl only.
        """
        if not self.is_main:
            return
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        line = {"event": "eval", "split": split, "step": step} | metrics
        if not self._is_logged(line):
            self._board.evaluation(step, split, metrics)
            # The checkpoint of this step may be written already. A run that resumes there repeats the evaluation, and
            # logs it unless the line is in metrics.jsonl. So the line comes after the curves, and at once: of a run that
            # is killed in between, TensorBoard shows the point twice. Figures, which take a second to draw, come first.
            if split != "test":
                self._add(step, split, {score_tag(self.task, name, split): value for name, value in numbers.items()})
            self._board.flush()
            self._write(line)
        shown = "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        self.print(f"{split} after step {step}:  {shown}")

    def log_text(self, step: int, tag: str, markdown: str) -> None:
        """Log a text that belongs to the evaluation after `step`, before it, to TensorBoard alone.

        It is not called with --no-samples, which keeps texts out of logs.
        """
        if self.is_main and not self._is_logged({"event": "eval", "split": "valid", "step": step}):
            self._board.text(step, tag, markdown)

    def log_hparams(self, options: dict[str, Any], compared: Mapping[str, str | float]) -> None:
        """Log what the run is, once per run: all options as a table, and those that runs are compared by.

        Args:
            options: dicts in it are flattened.
            compared: the columns of TensorBoard's page of hyperparameters.
        """
        if self.is_main:
            if self._is_new:
                self._board.text(0, "settings", table(["option", "value"], _leaves(options)))
                self._board.begin_session(compared)
            if self._mirror is not None:
                self._mirror.begin(compared)

    def log_table(self, tag: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table about the run to TensorBoard, once per run."""
        if self.is_main and self._is_new:
            self._board.text(0, tag, table(header, rows))

    def log_result(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the scores of the finished model, by split. A run that was killed at its end may do so again."""
        if self.is_main:
            self._board.end_session(step, metrics)
            if self._mirror is not None:
                self._mirror.log(step, final_tags(metrics))

    def log_event(self, event: str, *, step: int, **fields: Any) -> None:
        """Write an event to metrics.jsonl. It must not depend on interruptions, because the file must be the same for
        a run that was interrupted and resumed."""
        if self.is_main:
            self._write({"event": event, "step": step} | fields)

    def print(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.is_main:
            self._show(lambda: tqdm.write(text, file=self._console))

    def flush(self) -> None:
        """Flush all logs to disk. Must be called before a checkpoint is completed, because a resumed run does not log
        earlier steps again."""
        if self.is_main:
            os.fsync(self._metrics.fileno())
            self._board.flush()

    def close(self) -> None:
        """Close all logs. Raises no OSError, so that it does not hide another error; `flush` reports a full disk."""
        if self.is_main:
            self.is_main = False
            self._show(self._bar.close)
            self._metrics.close()
            with suppress(OSError):
                self._board.close()

    def _show(self, action: Callable[[], Any]) -> None:
        if self._console is None:
            return
        try:
            action()
            self._console.flush()
        except (OSError, ValueError):  # the terminal or pipe is closed; training continues
            self._console = None
            self._bar.disable = True

    def _is_logged(self, line: dict[str, Any]) -> bool:
        """Whether the line was logged at the checkpoint's step, before the interruption."""
        return line["step"] == self.start_step and key_of(plain(line)) in self._kept

    def _write(self, line: dict[str, Any]) -> bool:
        if self._is_logged(line):
            return False
        line = plain(line)
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        while text:  # an almost full disk may write only a part, and raises next time
            text = text[self._metrics.write(text) :]
        return True

    def _add(self, step: int, curve: str, points: Mapping[str, float]) -> None:
        """Add points to the charts of training steps ("train") or of a split's evaluations.

        Where the only point would be that of the last step, TensorBoard gets none: a chart of one dot tells nothing.
        """
        if self._mirror is not None:
            self._mirror.log(step, points)
        if step >= self.total_steps and curve not in self._curves:
            return
        self._curves.add(curve)
        self._board.points(step, points)


def memory_mib() -> float:
    """Peak memory so far in MiB: on a GPU that of torch's allocator, else the process's resident set size."""
    if torch.cuda.is_initialized():  # not where there is a GPU and the launcher was told to use the CPU
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


def _is_number(value: Any) -> bool:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(plain, (int, float)) and not isinstance(plain, bool)


def _leaves(options: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in options.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((prefix + name, without_keys(value) if isinstance(value, str) else value))
    return leaves


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _number(value: Any) -> str:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4f}"


def _short(epoch: float) -> str:
    return str(epoch) if isinstance(epoch, int) else f"{epoch:.2f}"
