"""The trainers' own steps on made-up text: no corpus, no tokenizer, no run directory, and so no `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit.batches.lm import LMBatch
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.device import pinned
from ulmfit.distributed.runtime import Runtime
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training import optim, setup
from ulmfit.training.clf_task import ClassifierTask
from ulmfit.training.engine import PlainEngine
from ulmfit.training.lm_task import LanguageModelTask
from ulmfit.training.stages import recipe_for

VOCAB, SPECIAL = 2000, 10
SIZES = AWDLSTMConfig(VOCAB, embedding_size=64, hidden_size=128, num_layers=2)


class Chain:
    """An endless source of language-model batches: each word is followed by one of three."""

    def __init__(self, rows: int, bptt: int, vocab: int = VOCAB) -> None:
        self._shape, self._vocab = (rows, bptt), vocab

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        rows, bptt = self._shape
        rng = np.random.default_rng(0)
        word = rng.integers(0, self._vocab - SPECIAL, rows)
        for step in range(10**9):
            text = [word]
            for choice in rng.integers(0, 3, (bptt, rows)):
                text.append((7 * text[-1] + choice) % (self._vocab - SPECIAL))
            word = text[-1]
            text = torch.from_numpy(np.stack(text, 1) + SPECIAL)
            if step >= (state or {"step": 0})["step"]:
                yield (
                    LMBatch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), rows * bptt, step == 0, 0, step),
                    {"step": step + 1},
                )


class Documents:
    """A token store in memory. Documents of class 1 have other words than those of class 0, for the most part."""

    def __init__(self, number: int, longest: int) -> None:
        rng = np.random.default_rng(0)
        self.num_documents = number
        self.lengths = rng.integers(5, longest, number)
        self.labels = (np.arange(number) % 2).astype(np.int32)
        self._ids = [
            SPECIAL + (rng.integers(0, VOCAB // 2, n) + label * VOCAB // 3)
            for n, label in zip(self.lengths, self.labels, strict=True)
        ]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = [np.empty(0, np.int64), *(self._ids[index] for index in indices)]
        return np.concatenate(ids), self.lengths[indices]


class Trainer:
    """A task and its engine, all layers trained at one rate, and `step`."""

    def __init__(
        self,
        name: str,
        precision: str,
        *,
        rows: int = 16,
        bptt: int = 24,
        micro_batches: int = 1,
        deterministic: bool = False,
        rate: float = 3e-3,
        sizes: AWDLSTMConfig = SIZES,
    ) -> None:
        kind = {"lm": LMConfig, "clf": ClassifierConfig}[name]
        config = kind(
            recipe="ulmfit",
            batch_size=rows,
            bptt=bptt,
            drop_mult=0.3,
            micro_batches=micro_batches,
            precision=precision,
            deterministic=deterministic,
        )
        self.runtime = runtime = Runtime(config)
        recipe, sizes = recipe_for(config, pretrained=False), sizes.with_dropouts(name, 0.3)
        if name == "lm":
            net = setup.to_precision(LanguageModelNet(sizes), config, runtime)
            self.task = LanguageModelTask(
                net,
                Chain(rows, bptt, sizes.vocab_size),
                None,
                None,
                config=config,
                recipe=recipe,
                runtime=runtime,
                rows=range(rows),
            )
        else:
            net = setup.to_precision(ClassifierNet(sizes, 2, bptt=bptt, max_len=3 * bptt), config, runtime)
            documents = Documents(8 * rows, 5 * bptt)
            self.task = ClassifierTask(
                net, documents, documents, ["neg", "pos"], config=config, recipe=recipe, runtime=runtime, pad_id=1
            )
        groups = self.task.groups
        optimizer = optim.build_optimizer(
            net, groups, range(len(groups)), [rate] * len(groups), weight_decay=0.01, eps=1e-8, decay_bias_norm=True
        )
        self.net, self.engine, self.number = net, PlainEngine(runtime), 0
        self.engine.begin_stage(net, optimizer)
        self.seek(0)

    def seek(self, number: int) -> None:
        """Go on with the batch of a step."""
        items = self.task.batches(None)
        for _ in range(number):
            next(items)
        self._items = pinned(items, self.runtime.device)
        self.number = number

    def step(self) -> Tensor:
        """One step; its mean loss, on the device."""
        batch, _ = next(self._items)
        result = self.task.step(self.engine, batch, self.number)
        self.engine.update(0.25)
        self.number += 1
        return result.sums[0] / result.num_predictions

    def state(self) -> dict[str, Any]:
        """What the loop would save."""
        return {
            "model": dict(self.net.state_dict()),
            "engine": self.engine.state(),
            "carried": self.task.hidden_state(),
            "step": self.number,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as the loop does."""
        self.net.load_state_dict(state["model"])
        self.task.load_hidden_state(state["carried"])
        self.engine.load_state(state["engine"])
        self.seek(state["step"])
