"""The training loop of the language model and the classifier.

A task (lm_task.py, clf_task.py) makes the batches and computes loss and gradients of a step. This file does
the rest: stages, schedules, clipping, skipped steps, logging, evaluation, checkpoints and stopping.
The path of one step: batches/ -> Task.step -> model/ -> engine.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.config import TrainConfig
from ulmfit.device import pinned
from ulmfit.distributed.memory import advice, is_out_of_memory
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import EvaluationStopped
from ulmfit.run.directory import RunDirectory
from ulmfit.run.saver import Saver
from ulmfit.run.tracking import Tracker
from ulmfit.training import optim
from ulmfit.training.agreement import Agreed, Agreement
from ulmfit.training.engine import build_engine
from ulmfit.training.loop_state import Best, Position, Stale
from ulmfit.training.stages import Recipe
from ulmfit.training.step_log import StepLog
from ulmfit.training.task import PlannedStage, StepResult, Task

MAX_SKIPPED = 50  # consecutive steps without a finite gradient after which the run fails


class TrainingFailed(RuntimeError):
    """Training cannot continue. The message gives the step and a remedy."""


class Loop:
    """Trains from a position to the end of the plan, or until a stop is requested.

    Args:
        task: the language model's or the classifier's task.
        plan: its stages.
        recipe: gives weight decay and clipping.
        start: state of the checkpoint to resume from, or None.
        keep_best: keep the weights of the best evaluation in `best`.
        best_clearly: but those of the last one, unless the best is better by more than chance.

    Attributes:
        best: the best evaluation and its weights; None before the first evaluation or without `keep_best`.
    """

    def __init__(
        self,
        task: Task,
        plan: list[PlannedStage],
        recipe: Recipe,
        *,
        config: TrainConfig,
        runtime: Runtime,
        stop: StopRequest,
        tracker: Tracker,
        directory: RunDirectory,
        start: dict[str, Any] | None,
        keep_best: bool = False,
        best_clearly: bool = False,
    ) -> None:
        self.task, self.plan, self.recipe, self.config = task, plan, recipe, config
        self.runtime, self.stop, self.tracker, self.directory = runtime, stop, tracker, directory
        self.total_steps = sum(planned.num_steps for planned in plan)
        self.engine = build_engine(runtime)
        self.saver = Saver(directory.path / "checkpoints", keep=config.keep, before=tracker.flush, more=directory.kept)
        self.position = Position()
        self.best: Best | None = None
        self._keep_best, self._best_clearly = keep_best, best_clearly
        self._stale = Stale() if start is None else Stale(**start.get("stale", {}))  # 0.2.0 had none
        self._start = start
        self._skipped = torch.zeros((), device=runtime.device)
        self.log = StepLog(runtime)
        if start is not None:
            self.position = Position(**start["position"])
            task.net.load_state_dict(start["model"])
            task.load_hidden_state(start["carried"])
            if start.get("best") is not None:  # checkpoints of version 0.1 have none
                self.best = Best(**start["best"])
        # Whether the evaluation of the current step is still to come. Earlier versions evaluated before they saved, so
        # their checkpoints do not tell.
        self._evaluation_due = start is not None and bool(start.get("evaluation_due", False))
        self._saved = (self.position.step, self._evaluation_due) if start is not None else None
        self._agreement = Agreement(runtime, stop, self.saver, config.save_minutes)
        runtime.stop_scoring = stop.ends_evaluations

    def run(self) -> Literal["done", "preempted"]:
        """Train. Returns "done", or "preempted" after a stop request. In both cases a checkpoint is written."""
        with Prefetcher(pinned(self.task.batches(self.position.data), self.runtime.device)) as batches:
            try:
                done = self._run_stages(batches)
            except EvaluationStopped:  # the resumed run begins with it
                done = False
            if not done:
                self.save()
        self.finish_saving()
        return "done" if done else "preempted"

    def _run_stages(self, batches: Iterator[tuple[Any, dict[str, Any]]]) -> bool:
        """Train to the end of the plan. False after a stop request."""
        position = self.position
        while self._run_stage(self.plan[position.stage], batches):
            if position.stage == len(self.plan) - 1:  # the position stays one that a checkpoint can hold
                return True
            position.stage += 1
            position.step_in_stage = 0
        return False

    def _run_stage(self, planned: PlannedStage, batches: Iterator[tuple[Any, dict[str, Any]]]) -> bool:
        position, stage, task = self.position, planned.stage, self.task
        self.log.write()  # of the stage before
        trained, rates, inner = optim.begin_stage(
            task.net,
            task.groups,
            stage,
            weight_decay=self.recipe.weight_decay,
            eps=self.config.adam_eps,
            decay_bias_norm=self.config.decay_bias_norm,
        )
        self.engine.begin_stage(task.net, inner)
        if self._start is not None:
            self.engine.load_state(self._start["engine"])
            self._skipped.fill_(self._start["skipped"])
            self._start = None
            if self._evaluation_due:
                self._evaluate()
        # A checkpoint may lie at the end of a stage, as it does between stages by hand: there is nothing to tell of.
        if len(self.plan) > 1 and position.step_in_stage < planned.num_steps:
            self.tracker.print(self._stage_line(planned, trained))
        if position.step_in_stage == 0:
            self.tracker.log_event(
                "stage",
                step=position.step,
                name=stage.name,
                index=position.stage,
                steps=planned.num_steps,
                lr=rates,
                trained_groups=trained,
            )
        self.engine.model.train()
        self._agreement.begin_stage(position.step)
        while position.step_in_stage < planned.num_steps and not self._stopped_early():
            asked = time.perf_counter()
            self.runtime.progress.begin_step(position.step)
            batch, data_state = next(batches)
            self.runtime.progress.now("computing")
            waited = time.perf_counter() - asked
            factor, momentum = optim.schedule(stage, position.step_in_stage, planned.num_steps)
            factor *= batch.lr_scale
            optim.set_hyperparameters(inner, factor, momentum)
            result, norm, found_inf = self._step(batch)
            self._skipped = (self._skipped + found_inf) * found_inf
            position.step += 1
            position.step_in_stage += 1
            position.tokens += result.tokens
            position.data = data_state
            self.log.count(result.tokens, waited)
            self._after_step(batch, result, norm, momentum)
            if self._stop_agreed():
                return False
        if self._heed(self._agreement.rest()):
            return False
        if self._stopped_early():
            self.tracker.print(
                f"stopped after step {position.step:,} of {self.total_steps:,}: no better evaluation than that of step "
                f"{self._stale.step:,} in the last {self._stale.evaluations}"
            )
            self.save()
        return True

    def _stopped_early(self) -> bool:
        """Whether --stop-after evaluations have brought nothing better. Not while an evaluation is still to come."""
        return 0 < self.config.stop_after <= self._stale.evaluations

    def _stage_line(self, planned: PlannedStage, trained: Sequence[int]) -> str:
        """A line for the console at the start of a stage, also of one that a resumed run goes on with."""
        begun = f" from step {self.position.step_in_stage + 1:,}" if self.position.step_in_stage else ""
        return (
            f"stage {self.position.stage + 1} of {len(self.plan)}, {planned.stage.name}: {planned.num_steps:,} "
            f"steps{begun}, trains {len(trained)} of {len(self.task.groups)} layer groups, lr {planned.stage.lr:.1e}"
        )

    def _step(self, batch: Any) -> tuple[StepResult, Tensor, Tensor]:
        try:
            result = self.task.step(self.engine, batch, self.position.step)
            return result, *self.engine.update(self.recipe.clip)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingFailed(
                f"out of memory at step {self.position.step + 1} on rank {self.runtime.rank}: "
                f"{advice(self.task.micro_batches, self.task.most_micro_batches)}"
            ) from error

    def _after_step(self, batch: Any, result: StepResult, norm: Tensor, momentum: float) -> None:
        position, config = self.position, self.config
        last = position.step == self.total_steps
        self.log.write()  # of the step before, which the device has done or is doing
        if self.tracker.due(position.step):
            self._record(batch, result, norm, momentum)
        self.tracker.advance(position.step)
        in_epoch = self.task.steps_in_epoch(batch.epoch)
        ends_epoch = in_epoch is not None and batch.step_in_epoch + 1 == in_epoch
        due = position.step % config.eval_every == 0 if config.eval_every else ends_epoch
        self._evaluation_due = due or last
        # Saved before the evaluation, which may take long or fail: no step is lost by it.
        every = config.steps_between_saves
        if last or (every and position.step % every == 0) or (due and (every or config.save_minutes)):
            self.save()
        if self._evaluation_due:
            self._evaluate()

    def _record(self, batch: Any, result: StepResult, norm: Tensor, momentum: float) -> None:
        """Let the step just submitted be logged (a collective)."""
        position, in_epoch = self.position, self.task.steps_in_epoch(batch.epoch)
        epoch = batch.epoch + (batch.step_in_epoch + 1) / in_epoch if in_epoch else float(batch.epoch)
        torch_groups = self.engine.optimizer.param_groups
        by_group = {group["layer_group"]: group["lr"] for group in torch_groups}
        fields = {
            "step": position.step,
            "stage": position.stage,
            "epoch": round(epoch, 4),
            "tokens": position.tokens,
            "lr": torch_groups[-1]["lr"],
            "momentum": momentum,
            "lrs": {name: by_group.get(i, 0.0) for i, name in enumerate(optim.group_names(self.task.groups))},
        }
        at = f"stage '{self.plan[position.stage].stage.name}', data position {position.data}"
        self.log.record(
            result.sums,
            result.num_predictions,
            skipped=self._skipped,
            norm=norm,
            log=lambda numbers, read: self._write_line(fields | numbers, read, at),
        )

    def _write_line(self, line: dict[str, Any], read: list[float], at: str) -> None:
        for name, part in zip(self.task.source_names, read, strict=True):
            line[f"share/{name}"] = part / sum(read)
        self.tracker.log_train(**line)
        if line["skipped"] >= MAX_SKIPPED:
            raise TrainingFailed(
                f"no finite gradient in the last {line['skipped']} steps, up to step {line['step']} ({at}); lower --lr "
                "or set --clip 0.25"
            )

    def _evaluate(self) -> None:
        self.log.write()
        begun = time.perf_counter()
        self.task.net.eval()
        with self.engine.full_weights():
            metrics = self.evaluate()
            for tag, text in self.task.samples() if self.config.samples and self.runtime.is_main else ():
                self.tracker.log_text(self.position.step, tag, text)
            if metrics is not None:
                self.tracker.log_eval(self.position.step, "valid", **metrics)
                self._compare(metrics)
        self.task.net.train()
        self._evaluation_due = False
        self.log.exclude(time.perf_counter() - begun)

    def evaluate(self, store: TokenStore | None = None) -> dict[str, Any] | None:
        """`Task.evaluate`, in which running out of memory is told with a remedy (a collective).

        Raises:
            TrainingFailed: out of memory.
        """
        try:
            return self.task.evaluate(store)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingFailed(
                f"out of memory in the evaluation after step {self.position.step} on rank {self.runtime.rank}; start "
                "the same command on more processes, which share the validation texts, or on a CPU with fewer "
                "--threads; its checkpoint loses no step"
            ) from error

    def _compare(self, metrics: dict[str, Any]) -> None:
        """Keep the weights if this evaluation is the best so far.

        Must be called inside `full_weights`. The metrics are equal on all ranks. An evaluation with a NaN, as of a
        training that diverges, is worse than any other: NaN itself compares as neither better nor worse.
        """
        quality = self.task.quality(metrics)
        if any(map(math.isnan, quality)):
            quality = [-math.inf] * len(quality)
        if self.config.stop_after:
            if self._stale.quality is None or quality > self._stale.quality:
                self._stale = Stale(quality, self.position.step)
            elif self.position.stage == len(self.plan) - 1:
                self._stale.evaluations += 1
        if not self._keep_best:
            return
        if self.best is not None and quality <= self.best.quality:
            if not self._ends_by_chance(self.best, quality):
                return
            self.tracker.print(
                f"kept the last weights: the evaluation of step {self.best.step} was better on the validation texts, but by no "
                "more than chance (--keep-best keeps the best of all)"
            )
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.task.net.state_dict().items()}
        self.best = Best(self.position.step, quality, weights)

    def _ends_by_chance(self, best: Best, quality: list[float]) -> bool:
        """Whether this is the evaluation of the last step, and the best one was better by chance alone."""
        stage, position = self.plan[-1], self.position
        at_end = position.stage == len(self.plan) - 1 and position.step_in_stage == stage.num_steps
        return self._best_clearly and at_end and best.is_by_chance(quality, self.task.judged)

    def _stop_agreed(self) -> bool:
        """Whether any rank has a stop request (a collective). Also heeds requests to write a checkpoint.

        Raises:
            OSError: a checkpoint could not be written.
        """
        return self._heed(self._agreement.after_step(self.position.step))

    def _heed(self, agreed: Agreed | None) -> bool:
        """Do what the ranks agreed on, and return whether to stop. All ranks call it at the same step."""
        if agreed is None:
            return False
        if agreed.failed:
            self.finish_saving()
        if (written := self.saver.written()) is not None:
            self.directory.status("running", written)
        if agreed.save:
            self.stop.take_save_request()
            self.save()
        return agreed.stop

    def save(self) -> None:
        """Start to write a checkpoint of the current position. All ranks call it; rank 0 writes, in the background.

        It also tells whether the evaluation of this step is still to come. A resumed run then begins with it.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.log.write()  # a resumed run does not log this step again
        now = (self.position.step, self._evaluation_due)
        if self._saved == now:
            return
        self._saved = now
        self._agreement.saved()
        begun = time.perf_counter()
        assert self.position.data is not None, "a checkpoint comes after a step"
        position = vars(self.position) | {"data": self.task.global_position(self.position.data)}
        with self.engine.full_weights():
            state = {
                "position": position,
                "model": dict(self.task.net.state_dict()),
                "engine": self.engine.state(),
                "carried": self.task.hidden_state(),
                "skipped": self._skipped.item(),
                "best": vars(self.best) if self.best is not None else None,
                "evaluation_due": self._evaluation_due,
            }
            if self.config.stop_after:
                state["stale"] = vars(self._stale)
            self.directory.guard(lambda: self.saver.start(self.position.step, state))
        self.log.exclude(time.perf_counter() - begun)

    def finish_saving(self) -> None:
        """Wait on all ranks until the last checkpoint is completely written.

        Raises:
            OSError: it could not be written.
        """
        self.directory.guard(self.saver.wait)
