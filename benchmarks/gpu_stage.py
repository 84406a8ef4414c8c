"""One stage of the reproduction, in a process of its own (gpu_reproduce.py starts it).

It sets itself up, tells that it is ready, and waits for its order, one line of JSON; then it trains with the trainer's
own tasks, engine and schedules, by the clock (gpu_plan.py), and tells events, a line of JSON each. Its weights are
written before it is evaluated. A checkpoint at intervals lets a second start go on, or the next stage begin with what
there is if this one hangs.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_loss
import numpy as np
import packed
import safetensors.torch
import torch
from gpu_plan import Clock, progress
from torch import nn

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.lm import CachedRows
from ulmfit.batches.prefetch import Prefetcher
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.device import pinned
from ulmfit.distributed.runtime import Runtime
from ulmfit.files import replacing
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import save_model
from ulmfit.run import checkpoint
from ulmfit.run.saver import Saver
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training import optim, setup
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.engine import PlainEngine
from ulmfit.training.lm_task import LanguageModelTask
from ulmfit.training.scores import all_logits
from ulmfit.training.stages import Recipe, Stage, recipe_for

LABELS = ["neg", "pos"]
WEIGHTS = "weights.safetensors"
RESOLUTION = 100_000  # of a schedule whose length is given by the clock
HELD_OUT = 200  # every so many documents of a language model's store validate it
PARENT = os.getppid()
Tell = Callable[..., None]


@dataclass(frozen=True)
class Sizes:
    """What differs between the real run and a rehearsal."""

    preset: str
    rows: int
    bptt: int
    documents: int  # of a step of the classifier
    save: float  # seconds between checkpoints
    part: int  # bytes of a part of the model
    wikipedia_lr: float


SIZES = {
    "base": Sizes("base", 256, 72, 128, 45.0, 16 * packed.MIB, 5e-3),
    "tiny": Sizes("tiny", 16, 24, 16, 10.0, packed.MIB // 2, 8e-3),
}


@dataclass
class Cycle:
    """One learning-rate cycle of a stage. `weight` is its part of the stage's seconds."""

    stage: Stage
    most_steps: int
    weight: float


class Training:
    """Trains a task through its cycles until their end, by steps or by the clock."""

    def __init__(
        self,
        task: Any,
        recipe: Recipe,
        cycles: list[Cycle],
        runtime: Runtime,
        folder: Path,
        tell: Tell,
        eps: float = 1e-8,
    ) -> None:
        self._task, self._recipe, self._cycles, self._runtime, self._eps = task, recipe, cycles, runtime, eps
        self._engine = PlainEngine(runtime)
        self._tell, self._saver = tell, Saver(folder / "checkpoints", keep=1, before=lambda: None)
        self.steps = self.tokens = self.cycle = 0
        self._over = 0.0  # progress of the present cycle
        self._data: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None
        self._skipped = torch.zeros((), device=runtime.device)

    def resume(self, state: dict[str, Any]) -> bool:
        """Go on from a checkpoint. False, and nothing is changed, if it is of other cycles: it began from nothing."""
        if state["cycles"] != self._names():
            return False
        self.steps, self.tokens, self.cycle, self._over, self._data = (
            state[name] for name in ("steps", "tokens", "cycle", "over", "data")
        )
        self._task.net.load_state_dict(state["model"])
        self._task.load_hidden_state(state["carried"])
        self._start = state
        return True

    def _names(self) -> list[str]:
        return [cycle.stage.name for cycle in self._cycles]

    def run(self, clock: Clock, end: float, save: float) -> None:
        """Train until `end` of the clock at the latest."""
        with Prefetcher(pinned(self._task.batches(self._data), self._runtime.device)) as batches:
            while self.cycle < len(self._cycles):
                left = [cycle.weight for cycle in self._cycles[self.cycle :]]
                left[0] *= 1 - self._over
                begun = clock.now()
                seconds = (end - begun) * left[0] / sum(left)
                self._run_cycle(self._cycles[self.cycle], batches, clock, begun, seconds, save)
                self.cycle, self._over = self.cycle + 1, 0.0
        self._saver.wait()

    def _run_cycle(
        self, cycle: Cycle, batches: Iterator, clock: Clock, begun: float, seconds: float, save: float
    ) -> None:
        task, stage = self._task, cycle.stage
        *_, inner = optim.begin_stage(
            task.net, task.groups, stage, weight_decay=self._recipe.weight_decay, eps=self._eps, decay_bias_norm=True
        )
        self._engine.begin_stage(task.net, inner)
        if self._start is not None:
            self._engine.load_state(self._start["engine"])
            self._start = None
        self._engine.model.train()
        begun_at, most = self._over, max(1, round(cycle.most_steps * (1 - self._over)))
        told, saved, tokens, steps, factor = begun, begun, 0, 0, 0.0
        while (over := progress(begun_at, steps, most, clock.now() - begun, seconds)) < 1:
            if os.getppid() != PARENT:
                sys.exit("the process that started this stage is gone")
            batch, self._data = next(batches)
            factor, momentum = optim.schedule(stage, int(over * RESOLUTION), RESOLUTION)
            optim.set_hyperparameters(inner, factor, momentum)
            result = task.step(self._engine, batch, self.steps)
            _, not_finite = self._engine.update(self._recipe.clip)
            self._skipped += not_finite
            steps, tokens = steps + 1, tokens + result.tokens
            self.steps, self.tokens, self._over = self.steps + 1, self.tokens + result.tokens, over
            now = clock.now()
            if now - told >= 5 or steps == 1:
                loss, correct = (result.sums / result.num_predictions).tolist()
                pace = tokens / max(clock.wall(clock.now() - begun), 1e-9)
                self._tell(
                    "train",
                    cycle=stage.name,
                    progress=round(over, 4),
                    step=self.steps,
                    tokens=self.tokens,
                    loss=loss,
                    accuracy=correct,
                    lr=stage.lr * factor,
                    tokens_per_second=round(pace),
                    skipped=int(self._skipped),
                )
                told = now
            if now - saved >= save:
                self._saver.start(self.steps, self.state())
                saved = now
        self._tell(
            "cycle",
            cycle=stage.name,
            steps=steps,
            of=cycle.most_steps,
            tokens=tokens,
            lr_at_the_end=stage.lr * factor,
            seconds=round(clock.now() - begun, 1),
            given=round(seconds, 1),
        )

    def state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "cycles": self._names(),
            "cycle": self.cycle,
            "over": self._over,
            "data": self._data,
            "model": dict(self._task.net.state_dict()),
            "carried": self._task.hidden_state(),
            "engine": self._engine.state(),
        }


def found_weights(folders: list[str]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of the first of these stages that left sound ones: finished, or of its newest checkpoint.

    Returns them and a word on them. Those of a training that diverged are passed over.
    """
    diverged = ""
    for folder in map(Path, folders):
        weights, word = {}, folder.name
        if (folder / WEIGHTS).is_file():
            weights = safetensors.torch.load_file(folder / WEIGHTS)
        elif (path := checkpoint.latest(folder / "checkpoints")) is not None:
            weights, word = checkpoint.load(path)["model"], f"{folder.name}, checkpoint of step {int(path.name[5:])}"
        if weights and all(torch.isfinite(tensor).all() for tensor in weights.values()):
            return weights, word + diverged
        diverged += f" ({folder.name} diverged)" if weights else ""
    return {}, "random weights" + diverged


def rows_of(store: TokenStore) -> tuple[TokenStore, TokenStore]:
    """The documents of a language model: for training and for validation."""
    held = np.arange(store.num_documents) % HELD_OUT == HELD_OUT // 2
    if not held.any():
        held[-1] = True
    return store.subset(np.flatnonzero(~held)), store.subset(np.flatnonzero(held))


def language_model(
    name: str, store: TokenStore, sizes: Sizes, order: dict[str, Any]
) -> tuple[Any, Recipe, list[Cycle], Runtime, str]:
    """The task of Wikipedia or IMDb, its cycles, and where its weights come from."""
    config = LMConfig(recipe="ulmfit", batch_size=sizes.rows, bptt=sizes.bptt, precision=order["precision"])
    runtime = Runtime(config)
    train, valid = rows_of(store)
    recipe = recipe_for(config, pretrained=True)
    if name == "wikipedia":
        stages = [(Stage("all groups", 0, 1, sizes.wikipedia_lr), 1.0, 1.0)]
        recipe = replace(recipe, drop_mult=0.1, weight_decay=0.01, clip=0.4)
    else:
        head, everything = recipe.stages
        stages = [(head, 1.0, 0.75), (replace(everything, lr=4e-3), order["epochs"], order["epochs"])]
        recipe = replace(recipe, drop_mult=0.5, weight_decay=0.05, clip=0.4)
    sources = CachedRows(train, batch_size=sizes.rows, bptt=sizes.bptt, seed=0, rows=range(sizes.rows))
    net = LanguageModelNet(
        AWDLSTMConfig(store.vocab_size, **PRESETS[sizes.preset]).with_dropouts("lm", recipe.drop_mult)
    )
    weights, origin = found_weights(order["from"])
    if weights:
        net.load_state_dict(weights)
    elif name == "imdb":  # frozen random layers would teach the head nothing
        stages = stages[1:]
    net = setup.to_precision(net, config, runtime)
    task = LanguageModelTask(
        net, sources, valid, None, config=config, recipe=recipe, runtime=runtime, rows=range(sizes.rows)
    )
    steps = sources.steps_per_epoch()
    return (
        task,
        recipe,
        [Cycle(stage, max(1, round(epochs * steps)), weight) for stage, epochs, weight in stages],
        runtime,
        origin,
    )


def classifier(train: TokenStore, sizes: Sizes, order: dict[str, Any]) -> tuple[Any, Recipe, list[Cycle], Runtime, str]:
    """The classifier's task with ulmfit's gradual unfreezing, 1 + 1 + 1 + 2 epochs, and where its encoder comes from."""
    config = ClassifierConfig(
        recipe="ulmfit", batch_size=sizes.documents, bptt=sizes.bptt, precision=order["precision"]
    )
    runtime = Runtime(config)
    weights, origin = found_weights(order["from"])
    recipe = recipe_for(config, pretrained=bool(weights))
    net = ClassifierNet(
        AWDLSTMConfig(train.vocab_size, **PRESETS[sizes.preset]).with_dropouts("clf", recipe.drop_mult),
        len(LABELS),
        bptt=sizes.bptt,
    )
    if weights:
        net.encoder.load_state_dict(
            {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
        )
    net = setup.to_precision(net, config, runtime)
    task = ClassifierTask(net, train, None, LABELS, config=config, recipe=recipe, runtime=runtime, pad_id=1)
    # An epoch of the head alone costs about 0.4 of one of all layers, and each further group a fifth more.
    costs = {-1: 0.4, -2: 0.6, -3: 0.8, 0: 1.0}
    cycles = [
        Cycle(stage, max(1, round(stage.epochs * task.steps_in_epoch(0))), stage.epochs * costs[stage.freeze_to])
        for stage in recipe.stages
    ]
    return task, recipe, cycles, runtime, origin


def test(task: Any, store: TokenStore, runtime: Runtime, output: Path, tell: Tell) -> None:
    """Score the test reviews, each once; their logits go into a file."""
    begun = time.perf_counter()
    logits = all_logits(task.net, store, runtime, pad_id=1)
    labels = torch.from_numpy(store.labels.astype(np.int64))
    np.savez_compressed(
        output / "test_logits.npz", logits=logits.numpy().astype(np.float32), labels=store.labels, rows=store.rows
    )
    right = (logits.argmax(1) == labels).sum().item()
    wall = time.perf_counter() - begun
    tell(
        "scores",
        reviews=len(labels),
        accuracy=right / len(labels),
        loss=nn.functional.cross_entropy(logits, labels).item(),
        documents_per_second=round(len(labels) / wall, 1),
    )


def bring_back(task: Any, tokenizer: Tokenizer, folder: Path, output: Path, sizes: Sizes, tell: Tell) -> None:
    """The classifier in 8 bits, in parts that a slow link takes."""
    save_model(folder / "model", task.net, tokenizer, {"label_names": LABELS, "text_columns": ["text"]}, bits=8)
    with tarfile.open(folder / "model.tar", "w") as archive:
        for file in sorted((folder / "model").iterdir()):
            archive.add(file, file.name)
    parts = packed.split_file(folder / "model.tar", output, most=sizes.part)
    tell("model", parts=len(parts), bytes=sum(part["bytes"] for part in parts))


def warm_up() -> None:
    """What takes seconds once in a process, before this stage's time runs: the device's context, the optimizer's imports."""
    net = nn.Linear(8, 8).to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = optim.build_optimizer(
        net, [["weight", "bias"]], [0], [1e-3], weight_decay=0.0, eps=1e-8, decay_bias_norm=True
    )
    net(torch.ones(1, 8, device=net.weight.device)).sum().backward()
    optimizer.step()


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    folder, output, sizes = Path(given["work"], name), Path(given["output"]), SIZES[given["sizes"]]
    clock = Clock(given["origin"], given["speed"])
    folder.mkdir(parents=True, exist_ok=True)
    to_parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print into the log

    def tell(event: str, **what: Any) -> None:
        print(json.dumps({"event": event} | what), file=to_parent, flush=True)

    pieces = packed.Packed([Path(path) for path in given["packed"]])
    names = {"wikipedia": ["wikipedia"], "imdb": ["unsup", "train"], "classifier": ["train"]}[name]
    store, missing = pieces.open(names, Path(given["work"], "stores", "-".join(names)), partly=name == "wikipedia")
    reviews = pieces.open(["test"], Path(given["work"], "stores", "test")).store if name == "classifier" else None
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    warm_up()
    tell("ready", documents=store.num_documents, tokens=store.num_tokens, missing=missing)
    order = json.loads(sys.stdin.readline())
    loss = order["loss"] if gpu_loss.has(order["loss"]) else "plain"
    gpu_loss.choose(loss)
    if name == "classifier":
        task, recipe, cycles, runtime, origin = classifier(store, sizes, order)
    else:
        task, recipe, cycles, runtime, origin = language_model(name, store, sizes, order)
    training = Training(task, recipe, cycles, runtime, folder, tell)
    path = checkpoint.latest(folder / "checkpoints")
    if path is not None and training.resume(checkpoint.load(path)):
        origin = f"its own checkpoint of step {training.steps}"
    tell("began", end=order["end"], weights=origin, precision=order["precision"], loss=loss)
    if order.get("stall"):
        time.sleep(clock.wall(order["stall"]))
    begun, before = time.perf_counter(), training.tokens
    training.run(clock, order["end"], sizes.save)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    with replacing(folder / WEIGHTS) as aside:
        safetensors.torch.save_file(
            {key: value.contiguous().cpu() for key, value in task.net.state_dict().items()}, aside
        )
    wall = time.perf_counter() - begun
    tell(
        "weights",
        steps=training.steps,
        tokens=training.tokens,
        tokens_per_second=round((training.tokens - before) / wall),
    )
    if reviews is None:
        tell("scores", **(task.evaluate() or {}))
    else:
        test(task, reviews, runtime, output, tell)
        bring_back(task, Tokenizer.from_file(pieces.tokenizer), folder, output, sizes, tell)
    tell("end")


if __name__ == "__main__":
    main()
