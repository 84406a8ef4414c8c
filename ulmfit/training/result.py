"""The result of a call of a training or of the whole job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt, listed
from ulmfit.run.status import read_status
from ulmfit.run_scores import scores_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ulmfit.generation import LanguageModel
    from ulmfit.inference import TextClassifier


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended and where its model is. Equal on all processes of a launch.

    Attributes:
        task: "lm" or "clf".
        state: "done"; "preempted" by a time limit, a stop file or a signal to a script, with a checkpoint from which
            the same call resumes, or at step 0 before the first step, without one; "found" after a learning-rate search,
            which begins no run.
        step: optimizer steps since the start of the run; with stop_after it may be fewer than were planned.
        run_dir: the run directory.
        model_dir: its model/, which exists if the state is "done".
        metrics: by split, "valid" and "test" if the data has them. They belong to the weights in model_dir; if
            preempted, to the last evaluation. `loss` is the mean cross-entropy in nats (per token or document), `step`
            the step of the evaluation, `by_class` precision, recall, F1 and support of each class. A number that is not finite is None, as in metrics.jsonl.
        best_step: step of the evaluation whose weights are in model_dir; None if these are the last weights.
        suggestions: after a search learning rates by rule, the default rule first (of valley, slide, minimum, steep and
            min_gradient those that found a descent); else empty.
        picture: the PNG file of a search's curve; else None.
    """

    task: Literal["lm", "clf"]
    state: Literal["done", "preempted", "found"]
    step: int
    run_dir: Path
    model_dir: Path
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_step: int | None = None
    suggestions: dict[str, float] = field(default_factory=dict)
    picture: Path | None = None

    def model(self, **options: Any) -> LanguageModel | TextClassifier:
        """Load the trained model, a LanguageModel or a TextClassifier. Each call loads a new one.

        Args:
            options: keyword arguments of its `from_pretrained`, such as device.

        Raises:
            UserError: the state is not "done".
        """
        if self.state != "done":
            cure = "call it again to go on" if self.state == "preempted" else "call it without lr_find to train"
            raise UserError(f"this training is not done and has no model; {cure}")
        return _loaded(self.model_dir, self.task, options)

    def plot_confusion_matrix(self, split: str = "valid") -> Figure:
        """Draw how often each class (rows) was taken for each class (columns) in the last evaluation of a split.

        A notebook with %matplotlib inline shows it; elsewhere it is written by `savefig`.

        Args:
            split: "valid" or "test".

        Raises:
            UserError: there is no such evaluation, or it is not of a classifier with one label a row.
        """
        return _confusion(self.metrics, split)


def _confusion(metrics: dict[str, dict[str, Any]], split: str) -> Figure:
    found = metrics.get(split, {})
    if "confusion" not in found:
        have = listed(name for name, scores in metrics.items() if "confusion" in scores)
        raise UserError(
            f"this training has no confusion matrix of the split {excerpt(split)}; "
            + (f"there is one of {have}" if have else "only classifiers with one label a row have them")
        )
    from ulmfit.run.figures import confusion_figure

    return confusion_figure(found["confusion"], [scores["label"] for scores in found["by_class"]])


@dataclass(frozen=True)
class FitResult:
    """How the whole job ended. Equal on all processes of a launch.

    Attributes:
        state: "done", or "preempted" with checkpoints from which the same call goes on.
        run_dir: the output directory.
        model_dir: its model/, which exists if the state is "done": the classifier, or the language model if the corpus
            has no labels.
        language_model: the result of its training; None if that was not reached.
        classifier: likewise; None too if the corpus has no labels. With several (`ensemble`) that of the first one.
        summary: the content of summary.json; empty if the state is not "done".
        members: the results of all classifiers that were reached.
        metrics: by split the scores of the model, as those of `TrainingResult`; of several classifiers, or n-grams, of
            their mean. Empty if the state is not "done" or the corpus has no labels.
    """

    state: Literal["done", "preempted"]
    run_dir: Path
    model_dir: Path
    language_model: TrainingResult | None = None
    classifier: TrainingResult | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    members: tuple[TrainingResult, ...] = ()
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    def model(self, **options: Any) -> LanguageModel | TextClassifier:
        """Load the model, a TextClassifier if the corpus has labels. Each call loads a new one.

        Args:
            options: keyword arguments of its `from_pretrained`, such as device.

        Raises:
            UserError: the state is not "done".
        """
        if self.state != "done":
            raise UserError("this job is not done and has no model; call it again to go on")
        return _loaded(self.model_dir, "lm" if self.classifier is None else "clf", options)

    def plot_confusion_matrix(self, split: str = "valid") -> Figure:
        """As that of `TrainingResult`, of the model of the job."""
        return _confusion(self.metrics, split)


def _loaded(folder: Path, task: Literal["lm", "clf"], options: dict[str, Any]) -> LanguageModel | TextClassifier:
    """Load the model of a task."""
    from ulmfit.generation import LanguageModel
    from ulmfit.inference import TextClassifier

    kind = LanguageModel if task == "lm" else TextClassifier
    return kind.from_pretrained(folder, **options)


def result_of_job(
    state: Literal["done", "preempted"],
    path: Path,
    language_model: TrainingResult | None,
    members: Sequence[TrainingResult],
    summary: dict[str, Any] | None = None,
    together: dict[str, dict[str, Any]] | None = None,
) -> FitResult:
    """The result of a job in a directory, from those of its trainings.

    Args:
        together: scores of the mean of the members, where the model is one; empty or None where it is the first member.
    """
    first = members[0] if members else None
    metrics = together or (first.metrics if first else {})
    return FitResult(
        state, path, path / "model", language_model, first, summary or {}, tuple(members),
        metrics if state == "done" else {},
    )  # fmt: skip


def result_of(
    task: Literal["lm", "clf"], state: Literal["done", "preempted"], step: int, run_dir: Path, runtime: Runtime
) -> TrainingResult:
    """Read the result of a run from its directory (a collective: only rank 0 may have the directory)."""
    best, ended, metrics = runtime.on_main(lambda: read_metrics(run_dir))
    if state == "done":  # --stop-after may have ended it before its last step
        step = ended or step
    return TrainingResult(task, state, step, run_dir, run_dir / "model", metrics, best)


def read_metrics(run_dir: Path) -> tuple[int | None, int | None, dict[str, dict[str, Any]]]:
    """Of a run directory: the step of the best evaluation, the last step, and the scores by split."""
    status = read_status(run_dir) or {}
    best, ended = (status[name] if isinstance(status.get(name), int) else None for name in ("best_step", "step"))
    return best, ended, scores_of(run_dir, best)
