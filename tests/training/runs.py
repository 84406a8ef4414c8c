"""Short real runs on the embedded sample, and what is compared between them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ulmfit.config import ClassifierConfig, LMConfig, TrainConfig
from ulmfit.data import sample
from ulmfit.distributed.stop import StopRequest

ROOT = Path(__file__).parents[2]
# Of real processes: threads that spin are many times slower where another program wants a core.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LM = {"max_steps": 12, "batch_size": 16, "bptt": 12, "log_every": 1, "save_every": 0, "samples": False, "threads": 1}
CLF = {"max_steps": 12, "batch_size": 8, "bptt": 24, "log_every": 1, "save_every": 0, "samples": False, "threads": 1}
TIMINGS = {"tokens_per_second", "data_wait", "memory", "time"}


def write_reviews(path: Path, number: int, *, first: int = 0) -> Path:
    """Reviews of the embedded sample, from the first one on, as a CSV file: columns text and label (neg, pos)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for row in islice(sample.generate("train"), first, first + number):
            table.writerow([row["text"], sample.LABELS[row["label"]]])
    return path


def rows_of(path: Path | str, separator: str = ",") -> list[dict[str, str]]:
    """Of a table with a line of names."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def content(file: Path) -> dict[str, Any]:
    """Of a JSON file of a run or a job."""
    return json.loads(file.read_text())


def write_splits(folder: Path, **numbers: int) -> Path:
    """`write_reviews` into FOLDER/SPLIT.csv, by split the number. Returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, number in numbers.items():
        write_reviews(folder / f"{name}.csv", number)
    return folder


def environment(cache: Path, **more: str) -> dict[str, str]:
    """That of this process, for a command with a token cache of its own."""
    return os.environ | ENVIRONMENT | {"ULMFIT_CACHE": str(cache)} | more


def lm_config(output_dir: Path, **options) -> LMConfig:
    return LMConfig(output_dir=str(output_dir), **(LM | options))


def clf_config(output_dir: Path, **options) -> ClassifierConfig:
    return ClassifierConfig(output_dir=str(output_dir), **(CLF | options))


def arguments(config: TrainConfig) -> list[str]:
    """A configuration as command-line options."""
    given = type(config)()
    result = []
    for name, value in vars(config).items():
        flag = name.replace("_", "-")
        if value != getattr(given, name):
            switch = {True: [f"--{flag}"], False: [f"--no-{flag}"]}
            result += switch[value] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return result


def whole_recipe(task: str, data: Path, pretrained: Path, output_dir: Path, **options) -> tuple[str, dict]:
    """A run with all that could depend on the number of processes: (trainer, its options).

    `task` is lm, sampled, stream, clf, mixture and mixed stream (of `data` and others.csv beside it), or labels: a
    classifier of several labels a row. The whole blog recipe with its stages and every dropout at full strength,
    fine-tuned from `pretrained`; AR and TAR; clipping that acts at nearly every step; an epoch that ends inside a
    stage; bptt jitter; for the classifier documents longer than what is pooled, label smoothing, class weights and
    steps smaller than 4 ranks x 4 micro-batches.
    """
    shared = {
        "data": str(data),
        "recipe": "blog",
        "drop_mult": 1.0,
        "threads": 1,
        "log_every": 1,
        "eval_every": 20,
        "save_every": 0,
        "samples": False,
        "output_dir": str(output_dir),
    }
    lm = {"init": str(pretrained), "max_steps": 66, "batch_size": 16, "bptt": 12, "lr": 4e-3, "clip": 0.2}
    clf = {
        "encoder": str(pretrained),
        "batch_size": 8,
        "bptt": 40,
        "max_len": 60,
        "clip": 4.0,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
    }
    if task in ("mixture", "mixed stream"):
        shared["data"] = f"most=0.7:{data},some=0.3:{data.with_name('others.csv')}"
    own = {
        "mixture": ("lm", lm | {"bptt_jitter": True, "max_steps": 12}),
        "mixed stream": ("lm", lm | {"streaming": True, "max_steps": 12}),
        "lm": ("lm", lm | {"bptt_jitter": True}),
        "sampled": ("lm", lm | {"sampled_softmax": 100}),
        "stream": ("lm", lm | {"streaming": True}),
        "clf": ("clf", clf),
        "labels": ("clf", clf | {"label_separator": ","}),
    }
    trainer, more = own[task]
    return trainer, shared | more | options


def weights(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's model by name, or of a job's several models by folder and name."""
    model = run / "model"
    files = sorted(model.rglob("model.safetensors"))
    assert files, f"no model in {run}"
    return {
        str(file.parent.relative_to(model) / name): tensor
        for file in files
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what is measured in time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def events(run: Path, event: str) -> list[dict]:
    return [line for line in metrics(run) if line["event"] == event]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in events(run, "train")]


def largest_relative_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative difference of a tensor by its norm; nan if there is one anywhere."""
    assert a.keys() == b.keys()
    return (
        torch.stack(
            [(a[name].double() - b[name].double()).norm() / a[name].double().norm().clamp(min=1e-30) for name in a]
        )
        .max()
        .item()
    )


def one_rank(rank: int, world_size: int, sum: Callable[[Tensor], Tensor] = lambda values: values) -> Any:
    """What scoring needs of a Runtime, for one of several ranks without the others: `sum` gives its own values."""
    return SimpleNamespace(
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        sum=sum,
        progress=SimpleNamespace(now=lambda _: None),
        accelerator=SimpleNamespace(autocast=nullcontext),
        leaves_scoring=lambda: False,
        end_scoring=lambda unfinished: None,
    )


class StopAtCall(StopRequest):
    """Asks to stop when it is asked for the n-th time; the loop asks once a step or less."""

    def __init__(self, call: int, *, ctrl_c: bool = False) -> None:
        super().__init__()
        self._calls_left, self._ctrl_c = call, ctrl_c

    def requested(self) -> bool:
        self._calls_left -= 1
        asked = self._calls_left <= 0
        self.interrupted = asked and self._ctrl_c
        return asked

    def ends_evaluations(self) -> bool:
        return False  # the calls are counted between steps
