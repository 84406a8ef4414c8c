"""What comes after the last step of a run: the best weights, the calibration, the model's files, the test split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ulmfit.batches.cache import TokenStore
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import EvaluationStopped
from ulmfit.model.pretrained import save_model
from ulmfit.run.directory import MODEL, RunDirectory
from ulmfit.run.tracking import Tracker
from ulmfit.run_scores import CALIBRATION, scores_of
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.loop import Loop, TrainingFailed
from ulmfit.training.task import Task


@dataclass(frozen=True)
class Ending:
    """What the end of a run needs.

    Attributes:
        test: documents that are scored once; None for none.
        saved: entries of the model's config.json besides the architecture.
    """

    directory: RunDirectory
    tracker: Tracker
    tokenizer: Tokenizer
    test: TokenStore | None
    saved: dict[str, Any]

    def finish(self, loop: Loop) -> dict[str, int]:
        """Write the model and score the test split (a collective).

        Returns:
            {"best_step": step} if the weights are not those of the last step, else {}.

        Raises:
            EvaluationStopped: a rank was asked to stop meanwhile. The network has the weights of the last step.
            TrainingFailed: a weight is NaN or infinite.
        """
        best: dict[str, int] = {}
        directory, tracker, saved = self.directory, self.tracker, self.saved
        runtime, step = loop.runtime, loop.position.step
        with loop.engine.full_weights(), _last_weights_if_stopped(loop):
            if loop.best is not None and loop.best.step != step:
                loop.task.net.load_state_dict(loop.best.model)
                tracker.print(f"kept the weights of step {loop.best.step}, the best on the validation texts")
                best["best_step"] = loop.best.step
            _refuse_diverged(loop.task, runtime)
            if calibrated := loop.task.calibrate():
                # An event of its own: the evaluation of this step is in the log already.
                tracker.log_event(CALIBRATION, step=step, split="valid", **calibrated)
                tracker.print(
                    f"temperature {calibrated['temperature']:.3f}: calibration error on the validation texts "
                    f"{calibrated['ece_before']:.4f} before and {calibrated['ece']:.4f} after"
                )
                saved = saved | {"temperature": calibrated["temperature"]}
            saved = saved | loop.task.model_entries()
            if runtime.is_main:
                save_model(directory.path / MODEL, loop.task.net, self.tokenizer, saved)
            if self.test is not None:
                scores = loop.evaluate(self.test)
                assert scores is not None, "there is something to score"
                tracker.log_eval(step, "test", **scores)
        if runtime.is_main:
            tracker.log_result(step, scores_of(directory.path, best.get("best_step")))
        return best


@contextmanager
def _last_weights_if_stopped(loop: Loop) -> Iterator[None]:
    """Context after which an EvaluationStopped leaves the network with the weights that it had before."""
    net = loop.task.net
    replaced = loop.best is not None and loop.best.step != loop.position.step
    last = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()} if replaced else None
    try:
        yield
    except EvaluationStopped:
        if last is not None:
            net.load_state_dict(last)
        raise


def _refuse_diverged(task: Task, runtime: Runtime) -> None:
    """Check that the weights to be saved are numbers (a collective; under ZeRO and FSDP with the full weights).

    Raises:
        TrainingFailed: one is NaN or infinite. Nothing could be done with such a model, nor with a checkpoint of it.
    """
    broken = None
    if runtime.is_main:
        tensors = task.net.state_dict().items()
        broken = next((name for name, tensor in tensors if not torch.isfinite(tensor).all()), None)
    if broken := runtime.broadcast(broken):
        raise TrainingFailed(
            f"{broken} has become NaN or infinite, so the training diverged; start it afresh with a lower --lr or "
            "--clip 0.25 (--resume never)"
        )
