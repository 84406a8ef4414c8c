"""What a run tells while it runs: metrics.jsonl, TensorBoard, console, status.json. Rank 0 alone writes.

metrics.jsonl is the record: one JSON object a line, each with "event" and "step". A number that is nan
or infinite stands there as null, for JSON has no such numbers. What a resumed run writes continues the
old file as if it had never stopped: lines of steps after the checkpoint are cut, and what is logged
again at the checkpoint's own step is not written twice.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from tqdm import tqdm

from ulmfit.files import replacing, write_text

METRICS, STATUS, TENSORBOARD = "metrics.jsonl", "status.json", "tensorboard"
State = Literal["running", "done", "preempted", "failed"]


class Tracker:
    """The log of one run. With `is_main` false every method does nothing.

    Args:
        output_dir: the run directory.
        total_steps: length of the whole run, for the bar and the time left.
        start_step: the checkpoint's step on resume. At 0 an earlier log (of a run that was killed before
            its first checkpoint) is emptied.
        log_every: steps between log lines (`due`).
        task: "lm" adds the perplexity to the loss of the training steps.
        sampled: loss and accuracy of training steps are those of the sampled softmax, of which there is no perplexity;
            they are called so, and metrics.jsonl has "sampled": true beside them.
        console: where lines go, standard output by default; a terminal also gets a progress bar.
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
        console: TextIO | None = None,
    ) -> None:
        self.is_main, self.task, self.sampled = is_main, task, sampled
        self.total_steps, self.start_step, self.log_every = total_steps, start_step, log_every
        self._began = time.monotonic()
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter  # a second of imports that other ranks spare

        output_dir.mkdir(parents=True, exist_ok=True)
        self._kept = cut_metrics(output_dir / METRICS, start_step)
        self._metrics = open(output_dir / METRICS, "ab", buffering=0)
        # Points after the checkpoint's step are hidden, so that one curve remains.
        purge = start_step + 1 if start_step else 0
        self._board = SummaryWriter(str(output_dir / TENSORBOARD), purge_step=purge)
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
        )

    def due(self, step: int) -> bool:
        """Whether `step` (1-based) is logged: every `log_every` steps, and the last. Equal on all ranks."""
        return step % self.log_every == 0 or step == self.total_steps

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` finished steps."""
        if self.is_main:
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
        """One logged training step.

        Args:
            tokens: tokens read since the run's first step.
            loss: the step's global cross-entropy a token (or a document), without AR and TAR; with `sampled` not
                comparable with another's.
            lr: the highest rate; `lrs` those of the layer groups by name. They and `momentum` go to
                TensorBoard only, being functions of the step.
            data_wait: part of the time since the last logged step that was spent waiting for data, 0 to 1, on
                the rank that waited most.
            memory: MiB (`memory_mib`), on the rank that uses most.
            timing: seconds by name, under "time" in metrics.jsonl: `step`, and with several ranks the own
                `work` a step of the slowest (`slowest_rank`) and its `spread`, slowest minus fastest.
            extra: further numbers, for metrics.jsonl and TensorBoard.
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
        scalars = {name: value for name, value in line.items() if name not in ("event", "step", "stage")}
        if timing:
            line["time"] = timing
        if self.sampled:
            line["sampled"] = True
            scalars = {
                f"sampled_{name}" if name in ("loss", "accuracy") else name: value for name, value in scalars.items()
            }
        elif self.task == "lm":
            scalars["perplexity"] = _exp(loss)
        if momentum is not None:
            scalars["momentum"] = momentum
        if self._write(line):
            for name, value in scalars.items():
                self._board.add_scalar(f"train/{name}", value, step)
            for name, value in (timing or {}).items():
                self._board.add_scalar(f"time/{name}", value, step)
            for name, value in (lrs or {}).items():
                self._board.add_scalar(f"lr/{name}", value, step)
        passed, to_go = step - self.start_step, self.total_steps - step
        left = (time.monotonic() - self._began) / passed * to_go if passed > 0 else math.nan
        perplexity = f"  perplexity {scalars['perplexity']:.1f}" if "perplexity" in scalars else ""
        width = len(str(self.total_steps))
        self.print(
            f"step {step:{width}}/{self.total_steps}  epoch {_short(epoch)}  stage {stage}  "
            f"{'sampled ' if self.sampled else ''}loss {loss:.4f}{perplexity}  lr {lr:.2e}  "
            f"{tokens_per_second:,.0f} tokens/s  left {duration(left)}"
        )

    def log_eval(self, step: int, split: str, **metrics: Any) -> None:
        """An evaluation after `step` steps. Numbers become curves; `confusion` (a list of rows: true class,
        column: predicted class) a table, and a figure where matplotlib is installed, with the class names
        in `labels` if given; other values (names, lists) go to metrics.jsonl only."""
        if not self.is_main:
            return
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        if self._write({"event": "eval", "split": split, "step": step} | metrics):
            for name, value in numbers.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            if metrics.get("confusion") is not None:
                self._log_confusion(step, split, metrics["confusion"], metrics.get("labels"))
        shown = "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        self.print(f"{split} after step {step}:  {shown}")

    def log_text(self, step: int, tag: str, text: str) -> None:
        """A text for TensorBoard. Not called at all where --no-samples keeps texts out of logs."""
        if self.is_main:
            self._board.add_text(tag, _verbatim(text), step)

    def log_hparams(self, options: dict[str, Any]) -> None:
        """The options as a table in TensorBoard's text page, once a run. (`add_hparams` would make a
        sub-run with a time in its name at every start.)"""
        if self.is_main and self.start_step == 0:
            rows = [f"| {name} | {_cell(value)} |" for name, value in _leaves(options)]
            self._board.add_text("options", "\n".join(["| option | value |", "|---|---|", *rows]), 0)

    def log_event(self, event: str, *, step: int, **fields: Any) -> None:
        """Another line of metrics.jsonl. Only of what the run itself does at a step: the file is the same
        for a run that was interrupted, so interruptions have no place in it."""
        if self.is_main:
            self._write({"event": event, "step": step} | fields)

    def print(self, text: str) -> None:
        """A console line above the progress bar."""
        if self.is_main:
            self._show(lambda: tqdm.write(text, file=self._console))

    def flush(self) -> None:
        """Put everything logged so far on the disk. To be called before a checkpoint is written: a resumed
        run logs nothing again of the steps up to it."""
        if self.is_main:
            os.fsync(self._metrics.fileno())
            self._board.flush()

    def close(self) -> None:
        """Close everything; nothing is logged afterwards. Raises no OSError, so that it hides none: a full
        disk is reported by `flush`."""
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
        except (OSError, ValueError):  # the terminal or the pipe is gone: no reason to stop training
            self._console = None
            self._bar.disable = True

    def _write(self, line: dict[str, Any]) -> bool:
        line = _plain(line)
        if line["step"] == self.start_step and _key(line) in self._kept:
            return False  # logged after the checkpoint at its own step, before the interruption
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        while text:  # a disk about to be full takes a part, and raises at the next one
            text = text[self._metrics.write(text) :]
        return True

    def _log_confusion(self, step: int, split: str, rows: list[list[int]], labels: list[str] | None) -> None:
        names = [_cell(name) for name in labels or range(len(rows))]
        table = ["| true \\ predicted | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for name, row in zip(names, rows, strict=True):
            table.append(f"| {name} | " + " | ".join(map(str, row)) + " |")
        self._board.add_text(f"{split}/confusion", "\n".join(table), step)
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(2 + 0.5 * len(rows), 2 + 0.5 * len(rows)), layout="tight")
        axes = figure.add_subplot(xlabel="predicted", ylabel="true")
        axes.imshow(rows, cmap="Blues")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        if len(rows) <= 20:  # more numbers than that are not readable
            middle = max(map(max, rows)) / 2
            for i, row in enumerate(rows):
                for j, count in enumerate(row):
                    color = "white" if count > middle else "black"
                    axes.text(j, i, count, ha="center", va="center", color=color)
        self._board.add_figure(f"{split}/confusion", figure, step, close=False)


def cut_metrics(path: Path, step: int) -> set[str]:
    """Remove the lines of later steps than `step` (all lines, when it is 0) and what is not JSON, such as
    a last line torn by a kill. The file is rewritten aside and renamed. Returns the keys of the lines of
    `step` itself that stayed."""
    kept: set[str] = set()
    if not path.exists():
        return kept
    with replacing(path) as aside:
        with open(path, encoding="utf-8", errors="replace") as old, open(aside, "w", encoding="utf-8") as new:
            for text in old:
                try:
                    line = json.loads(text)
                    stays = 0 < step >= line["step"] and text.endswith("\n")
                except (ValueError, TypeError, KeyError):
                    continue
                if stays:
                    new.write(text)
                    if line["step"] == step:
                        kept.add(_key(line))
    return kept


def write_status(output_dir: Path, state: State, step: int, **fields: Any) -> None:
    """Replace status.json, which tells launchers how the run ended (they flatten exit codes)."""
    path = output_dir / STATUS
    text = json.dumps(_plain({"state": state, "step": step} | fields)) + "\n"
    try:
        write_text(path, text)
    except OSError:
        if not path.exists():
            raise
        # A full disk has no room for a second file, but what the first one occupies can be written again.
        with open(path, "r+b", buffering=0) as file:
            file.write(text.encode().ljust(os.fstat(file.fileno()).st_size))


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """What status.json says, or None where there is none that can be read."""
    try:
        status = json.loads((output_dir / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def memory_mib() -> float:
    """The most memory used so far, in MiB: torch's on the GPU, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


def _key(line: dict[str, Any]) -> str:
    """What makes a line another one than those of the same step: for training steps and evaluations, whose
    timings differ, the kind; for the rest, all of it."""
    if line["event"] in ("train", "eval"):
        return json.dumps([line["event"], line.get("split")])
    return json.dumps(line, sort_keys=True)


def _plain(value: Any) -> Any:
    """Tensors and numpy values as Python's; nan and infinities as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_number(value: Any) -> bool:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(plain, (int, float)) and not isinstance(plain, bool)


def _leaves(options: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in options.items():
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return leaves


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _verbatim(text: str) -> str:
    """Markdown that shows the text as it is: an indented block."""
    return "\n".join("    " + line for line in text.splitlines())


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


def duration(seconds: float) -> str:
    """1:02:03, or ? when unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
