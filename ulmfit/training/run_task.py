"""Run a prepared task: open the run directory, train, save the model, score the test split. For both tasks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ulmfit.batches.cache import TokenStore
from ulmfit.config import LMConfig, TrainConfig, options
from ulmfit.console import warnings_above_bars
from ulmfit.distributed.memory import fit_micro_batches
from ulmfit.distributed.runtime import Runtime
from ulmfit.distributed.stop import StopRequest
from ulmfit.distributed.watchdog import Watchdog
from ulmfit.errors import EvaluationStopped, StoppedEarly, TrainingInterrupted, UserError
from ulmfit.excerpts import failure
from ulmfit.identity import differences, identity
from ulmfit.model.awd_lstm import fp32_in_bf16
from ulmfit.model.pretrained import fault_of
from ulmfit.run.directory import MODEL, RunDirectory
from ulmfit.run.tracking import Tracker
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.by_hand import ByHand
from ulmfit.training.class_scores import class_table
from ulmfit.training.ending import Ending
from ulmfit.training.estimate import estimate, sentences, work_of_stages
from ulmfit.training.loop import Loop
from ulmfit.training.lr_finder import FOLDER, RangeTest, run_finder, tested_stage
from ulmfit.training.mirror import Mirrors, mirrors
from ulmfit.training.privacy import SAMPLES
from ulmfit.training.result import TrainingResult, result_of
from ulmfit.training.session import Session, open_session
from ulmfit.training.shown import hyperparameters, stage_table
from ulmfit.training.stages import Recipe
from ulmfit.training.task import PlannedStage, Task, plan_stages


def run_session(
    train: Callable[[Any, Session], TrainingResult],
    config: TrainConfig,
    stop: StopRequest | None,
    by_hand: ByHand | None = None,
) -> TrainingResult:
    """Train within a session. Raise TrainingInterrupted after Ctrl-C, once the session is closed.

    A script that is stopped before the first step gets a result of step 0; nothing was written to the run directory.

    Args:
        train: called with the session's configuration and the session.
        by_hand: stages instead of the recipe's.

    Raises:
        TrainingInterrupted: stopped by Ctrl-C on some rank; raised on all ranks.
    """
    try:
        with open_session(config, stop) as session:
            session.by_hand = by_hand
            result = train(session.config, session)
            # Also where it came too late to stop anything: what follows in a notebook or a script is not to run.
            interrupted = any(session.runtime.max([session.stop.interrupted]))
    except StoppedEarly:
        run_dir = Path(config.output_dir)
        return TrainingResult(config.task, "preempted", 0, run_dir, run_dir / MODEL)
    if interrupted:
        raise TrainingInterrupted(result.run_dir, result.step)
    return result


def run(
    task: Task,
    recipe: Recipe,
    session: Session,
    *,
    tokenizer: Tokenizer,
    test: TokenStore | None,
    saved: dict[str, Any],
    fingerprints: dict[str, str | None],
    keep_best: bool = False,
    resolved: dict[str, Any] | None = None,
) -> TrainingResult:
    """Open the run directory, train from its newest checkpoint, save the model and score the test split.

    Args:
        test: scored once, at the end.
        saved: entries of the model's config.json besides the architecture.
        fingerprints: of the input files. Together with the options they identify the run.
        keep_best: save the weights of the best evaluation instead of the last. Unless the user asks for that, only if it is
            better by more than chance.
        resolved: by option, the values of options that depend on the data.
    """
    config, runtime, by_hand = session.config, session.runtime, session.by_hand
    plan = session.begun.plan(config) if session.begun and by_hand is None else None
    if by_hand is not None:
        by_hand.check(len(task.groups))
        recipe, test = replace(recipe, stages=by_hand.stages), None  # a test split is not scored after every stage
        fingerprints = fingerprints | {"start": runtime.on_main(by_hand.fingerprint)}
    with session.stop.interruptible():  # with --bptt-jitter and many epochs it takes minutes
        plan = plan or plan_stages(task, recipe.stages, config.max_steps)
    total_steps = sum(planned.num_steps for planned in plan)
    best_clearly = keep_best and task.judged > 0 and config.keep_best is None and not config.stop_after
    resolved = (resolved or {}) | {
        "batch_size": recipe.batch_size,
        "bptt": recipe.bptt,
        "drop_mult": recipe.drop_mult,
        "weight_decay": recipe.weight_decay,
        "clip": recipe.clip,
        "vocabulary": len(tokenizer),
        "parameters": sum(p.numel() for p in task.net.parameters()),
        "architecture": vars(task.net.config),
        "keep_best": keep_best,
        "stages": [vars(planned.stage) | {"steps": planned.num_steps} for planned in plan],
    }
    if best_clearly:  # runs of versions up to 0.2.0 kept the best of all
        resolved["best_clearly"] = True
    processes = "1 process" if runtime.world_size == 1 else f"{runtime.world_size} processes"
    session.say(
        f"{task.name}: {resolved['parameters']:,} parameters, vocabulary {len(tokenizer):,}, {total_steps:,} "
        f"steps of {recipe.batch_size} rows, {processes}, {config.precision}"
    )
    if config.precision == "bf16" and (exception := fp32_in_bf16(task.net.config, runtime.device.type)):
        session.say(f"--precision bf16: {exception}")
    if config.lr_find:
        tested_stage(recipe, config.lr_find_stage)  # refused on all ranks before the collectives of training begin
        goes_on = by_hand is not None and by_hand.start is not None
        if by_hand is not None and goes_on:
            task.net.load_state_dict(runtime.on_main(by_hand.checkpoint)["model"])
        session.end_set_up()
        return _found(run_finder(task, recipe, config=config, runtime=runtime, goes_on=goes_on), session)

    run_identity = identity(config, _became(config, resolved, plan), **fingerprints)
    refuse_another_run(run_identity, config, runtime)
    directory = RunDirectory(config, run_identity, runtime, notice=session.say, fault_of=fault_of)
    guests: Mirrors | None = None
    try:
        if directory.finished:
            session.say(
                f"{directory.path} holds this run, finished; --init or --encoder starts another from it, "
                "--resume never the same one afresh"
            )
            return result_of(config.task, "done", total_steps, directory.path, runtime)
        if session.begun is not None:
            session.begun.check_rebuilt(resolved)
        if config.micro_batches == "auto":
            _choose_micro_batches(task, session, directory)
            resolved["micro_batches"] = task.micro_batches
        start = directory.load_checkpoint()
        if start is None and by_hand is not None and by_hand.start is not None:
            start = runtime.on_main(by_hand.checkpoint)
        directory.write_config(config, run_identity, resolved)
        if runtime.is_main:
            tokenizer.save(directory.path / "tokenizer.json")
        sampled = config.sampled_softmax if isinstance(config, LMConfig) else None
        guests = mirrors(config.report_to, directory.path, session.say) if runtime.is_main else None
        tracker = Tracker(
            directory.path,
            is_main=runtime.is_main,
            total_steps=total_steps,
            log_every=config.log_every,
            start_step=start["position"]["step"] if start else 0,
            task=config.task,
            sampled=sampled is not None,
            stages=[
                (planned.stage.name, planned.num_steps, work)
                for planned, work in zip(plan, work_of_stages(task, plan, config), strict=True)
            ],
            mirror=guests,
        )
        if start is None and "mixture" in resolved:
            tracker.log_event("mixture", step=0, sources=resolved["mixture"])
        tracker.log_hparams({"options": options(config), "resolved": resolved}, hyperparameters(config, resolved))
        tracker.log_table("stages", *stage_table(task, plan))
        if runtime.device.type == "cpu" and start is None:
            needs = estimate(task, plan, config=config, runtime=runtime)
            for sentence in sentences(needs, world_size=runtime.world_size, sampled=sampled):
                session.say(sentence)
        loop = Loop(
            task,
            plan,
            recipe,
            config=config,
            runtime=runtime,
            stop=session.stop,
            tracker=tracker,
            directory=directory,
            start=start,
            keep_best=keep_best,
            best_clearly=best_clearly,
        )
        del start  # the loop frees these tensors after it has loaded them
        session.stop.watch(directory.path, config.max_time, session.started)
        session.end_set_up()
        if not config.samples or directory.stored.get("options", {}).get(SAMPLES) is False:
            saved = saved | {SAMPLES: False}
        with warnings_above_bars():
            state, step = _guarded(loop, Ending(directory, tracker, tokenizer, test, saved))
        result = result_of(config.task, state, step, directory.path, runtime)
        for line in class_table(result.metrics) if state == "done" else ():
            session.say(line)
        return result
    finally:
        directory.close()
        if guests is not None:  # when all else is done: it may take a while
            guests.close()


def _found(test: RangeTest, session: Session) -> TrainingResult:
    """Tell the suggestions of the learning-rate finder and draw its curve. The run directory is not begun by it."""
    run_dir = Path(session.config.output_dir)
    session.say(test.report())

    def save() -> Path | None:
        try:
            return test.save(run_dir / FOLDER)
        except ImportError:
            return None
        except OSError as error:
            raise UserError(
                f"--output-dir {run_dir} cannot be written ({error.strerror}), so there is no picture of the curve; name "
                "a directory you may write to"
            ) from None

    picture = session.runtime.on_main(save)
    if picture is None:
        session.say("no picture of the curve, for matplotlib is not installed; pip install matplotlib")
    else:
        session.say(f"the curve is in {picture}, and in TensorBoard: tensorboard --logdir {run_dir}")
    return TrainingResult(
        session.config.task, "found", 0, run_dir, run_dir / MODEL, suggestions=test.suggestions, picture=picture
    )


def _became(config: TrainConfig, resolved: dict[str, Any], plan: list[PlannedStage]) -> dict[str, Any]:
    """The values used for options that may be left out, for the identity of the run."""
    sizes, last = resolved["architecture"], plan[-1].stage
    found = {
        "preset": "/".join(str(sizes[name]) for name in ("embedding_size", "hidden_size", "num_layers")),
        "valid": resolved.get("valid_rows", config.valid),
        "epochs": None,
        "max_steps": sum(planned.num_steps for planned in plan),
        "lr": last.lr,
        "schedule": last.schedule,
    }
    found |= {"metric": None if resolved.get("metric") == "accuracy" else resolved.get("metric")}
    if resolved.get("masks", 1) != 1:  # runs of definition 1 do not tell
        found["masks"] = resolved["masks"]
    names = ("batch_size", "bptt", "drop_mult", "weight_decay", "clip", "stages", "keep_best", "text_column",
             "label_column", "vocab_size")  # fmt: skip
    found |= {name: resolved[name] for name in names if name in resolved}
    if resolved.get("best_clearly"):
        found["keep_best"] = "where clearly better"
    if resolved["keep_best"] or config.stop_after:
        found["eval_every"] = config.eval_every  # it decides which steps can be the best one
    return found


def refuse_another_run(mine: dict[str, Any], config: TrainConfig, runtime: Runtime) -> None:
    """Check that all ranks have the same options and input files (a collective). Disks may be local to a machine.

    Raises:
        UserError: a rank differs from rank 0; raised on all ranks.
    """
    (first, found), *others = runtime.gather_objects([(socket.gethostname(), mine)])
    for rank, (host, theirs) in enumerate(others, 1):
        if changed := differences(found, theirs, type(config)):
            raise UserError(
                f"rank {rank} (host {host}) would train another run than rank 0 (host {first}); {'; '.join(changed)}; "
                "start all ranks by the same command, on copies of the same files",
                rank=rank,
            )


def _choose_micro_batches(task: Task, session: Session, directory: RunDirectory) -> None:
    """Set `task.micro_batches` to the smallest number that fits into memory.

    A resumed run with the same number of processes keeps its former number, so that results stay bit-equal.
    """
    if directory.resumed and directory.stored.get("world_size") == session.runtime.world_size:
        task.micro_batches = directory.stored["resolved"].get("micro_batches", 1)
        return
    if session.runtime.device.type != "cuda":
        session.say("--micro-batches auto: no GPU here, so 1")
        return
    session.say(f"--micro-batches auto: {fit_micro_batches(task, session.runtime)} micro-batch(es) a process fit")


def _guarded(loop: Loop, ending: Ending) -> tuple[Literal["done", "preempted"], int]:
    """Train, and write the outcome to status.json in every case. Returns the state and the step."""
    best: dict[str, int] = {}
    directory, tracker = ending.directory, ending.tracker
    runtime, limit = loop.runtime, 60 * loop.config.watchdog
    directory.status("running", loop.position.step)

    def tell(sentence: str) -> None:
        directory.failed(loop.position.step, sentence)

    watchdog = (
        Watchdog(
            runtime.progress,
            rank=runtime.rank,
            world_size=runtime.world_size,
            store=runtime.store(),
            limit=limit,
            tell=tell,
        )
        if limit
        else None
    )
    try:
        loop.stop.in_loop = True
        state = loop.run()
        if state == "done":
            try:
                best = ending.finish(loop)
            except EvaluationStopped:
                loop.save()  # after the evaluation of the last step, which is not to be done again
                loop.finish_saving()
                state = "preempted"
            tracker.flush()  # before status.json says that all is there
        loop.stop.in_loop = False
        tracker.close()
    except BaseException as error:
        with suppress(OSError):  # a full disk must not hide the first error
            loop.saver.wait()
        with suppress(OSError):
            told = runtime.group.lost_rank(error) or error
            directory.failed(loop.position.step, failure(told), rank=runtime.rank)
        raise
    finally:
        if watchdog is not None:
            watchdog.close()
    reason = {"reason": loop.stop.reason or "asked of another rank"} if state == "preempted" else {}
    directory.status(state, loop.position.step, **reason, **best)
    return state, loop.position.step
