"""The task of the language model: its batches, steps and hidden state, for the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.lm import MOST_JITTER, CachedRows, LMBatch, StreamedRows, merge_states
from ulmfit.batches.mixed_stream import MixedStreamedRows
from ulmfit.batches.mixture import MixedStore
from ulmfit.config import LMConfig
from ulmfit.device import to_device
from ulmfit.distributed.runtime import Runtime
from ulmfit.errors import UserError
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.sampled_softmax import Candidates, inclusion_probabilities
from ulmfit.run.board import verbatim
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.engine import Passes
from ulmfit.training.masks import DEFINITION, Masks, derive_seed, draw_words
from ulmfit.training.scores import score_language_model
from ulmfit.training.stages import Recipe
from ulmfit.training.task import StepResult

Rows = CachedRows | StreamedRows | MixedStreamedRows

SAMPLE_WORDS = 40
PROMPT_WORDS = 6


class LanguageModelTask:
    """The language model's batches, steps and hidden state, for the loop.

    A rank holds `rows` of the global batch and keeps their hidden state between steps. `--micro-batches` divides
    these rows further. Losses are summed and divided by the global number of targets, so the result does not depend
    on the number of ranks or micro-batches.
    """

    name = "language model"

    def __init__(
        self,
        net: LanguageModelNet,
        source: Rows,
        valid: TokenStore | None,
        tokenizer: Tokenizer,
        *,
        config: LMConfig,
        recipe: Recipe,
        runtime: Runtime,
        rows: range,
        masks: int = DEFINITION,
    ) -> None:
        self.net, self.groups = net, net.layer_groups()
        self._source, self._valid, self._tokenizer = source, valid, tokenizer
        self._config, self._recipe, self._runtime, self._rows = config, recipe, runtime, rows
        self._masks = masks
        self.micro_batches = 1 if config.micro_batches == "auto" else config.micro_batches
        self._inclusion: Tensor | None = None  # [V], probability that a word is a candidate of the sampled softmax
        if config.sampled_softmax is not None:
            self._inclusion = inclusion_probabilities(net.config.vocab_size, config.sampled_softmax)
            self._log_inclusion = self._inclusion.log().to(runtime.device, dtype=net.decoder_bias.dtype)
        self.reset_hidden()

    @property
    def source_names(self) -> Sequence[str]:
        """The sources of a mixture; empty for one corpus."""
        texts = self._source.store if isinstance(self._source, CachedRows) else self._source
        return texts.names if isinstance(texts, MixedStore | MixedStreamedRows) else ()

    @property
    def most_micro_batches(self) -> int:
        """The largest possible number of micro-batches: the largest power of two that divides this rank's rows."""
        return len(self._rows) & -len(self._rows)

    def largest_batch(self) -> LMBatch:
        """A batch of the size that needs most memory, with dummy tokens."""
        length = self._recipe.bptt + (MOST_JITTER if self._config.bptt_jitter else 0)
        tokens = torch.zeros(len(self._rows), length, dtype=torch.long)
        return LMBatch(tokens, tokens, tokens.numel(), True, 0, 0)

    def mean_tokens(self) -> float:
        """Tokens of a global step."""
        return self._recipe.batch_size * self._recipe.bptt

    def trained_windows(self) -> list[list[tuple[int, int]]]:
        """For each micro-batch of the largest step: (rows, tokens a row) of each encoder call with gradient."""
        return [[(-(-len(self._rows) // self.micro_batches), self._recipe.bptt)]]

    def reset_hidden(self) -> None:
        """Set the hidden state to zeros."""
        self._state = self.net.init_state(len(self._rows))

    def steps_in_epoch(self, epoch: int) -> int | None:
        """Steps of an epoch of the cached corpus; None for a stream."""
        return None if self._config.streaming else self._source.steps_per_epoch(epoch)

    def batches(self, state: dict[str, Any] | None) -> Iterator[tuple[LMBatch, dict[str, Any]]]:
        """Endless batches from a position on (None: from the start), each with the position after it."""
        return self._source.batches(state)

    def global_position(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The position of all rows, merged from those of all ranks, on rank 0; None on the others (a collective)."""
        states = self._runtime.collect_objects(state)
        return None if states is None else merge_states(states)

    def step(self, engine: Passes, batch: LMBatch, number: int) -> StepResult:
        """Forward and backward pass of this rank's rows. The gradients are those of the global mean loss."""
        runtime, config, device = self._runtime, self._config, self._runtime.device
        tokens, targets = to_device(batch.tokens, device), to_device(batch.targets, device)
        if batch.reset:
            self.reset_hidden()
        cuts = torch.arange(len(self._rows)).chunk(self.micro_batches)
        candidates = None
        if self._inclusion is not None:
            words = draw_words(config.seed, number, self._inclusion)
            candidates = Candidates(to_device(words, device), self._log_inclusion)
        masks = Masks(
            config.seed,
            number,
            num_rows=self._recipe.batch_size,
            rows=self._rows,
            device=device,
            definition=self._masks,
        )
        pairs = max(1, batch.num_targets - self._recipe.batch_size)  # neighbouring targets, for TAR
        width = self.net.config.embedding_size
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        states = []
        for index, cut in enumerate(cuts):
            part = slice(int(cut[0]), int(cut[-1]) + 1)
            with engine.accumulate(last=index == len(cuts) - 1):
                out = engine.model(
                    tokens[part],
                    targets[part],
                    [(h[part], c[part]) for h, c in self._state],
                    masks.for_rows(self._rows[part]),
                    candidates,
                )
                loss = (
                    out.ce_sum / batch.num_targets
                    + config.alpha * out.ar_sum / (batch.num_targets * width)
                    + config.beta * out.tar_sum / (pairs * width)
                )
                # DDP averages gradients over ranks, but the loss is already divided by the global count.
                engine.backward(loss * runtime.world_size)
            states.append(out.state)
            sums += torch.stack([out.ce_sum.detach().double(), out.num_correct.double()])
        self._state = [
            (torch.cat([h for h, _ in layer]), torch.cat([c for _, c in layer])) for layer in zip(*states, strict=True)
        ]
        if batch.sources is not None:
            sums = torch.cat([sums, to_device(batch.sources, device).double()])
        return StepResult(sums, batch.num_targets, batch.num_targets)

    def evaluate(self, store: TokenStore | None = None) -> dict[str, Any] | None:
        """Loss (nats), perplexity and accuracy on a store (default: the validation split); None if there is none."""
        store = store or self._valid
        if store is None:
            return None
        return score_language_model(
            self.net,
            store,
            self._runtime,
            num_rows=self._recipe.batch_size,
            bptt=self._recipe.bptt,
            backwards=self._config.backwards,
        )

    def calibrate(self) -> dict[str, float]:
        """{}: a language model has no temperature of its own."""
        return {}

    def model_entries(self) -> dict[str, Any]:
        """Empty: nothing of a language model's config.json is found in training."""
        return {}

    @property
    def judged(self) -> int:
        """0: the loss is no share of texts."""
        return 0

    def quality(self, metrics: dict[str, Any]) -> list[float]:
        """The negative loss: a lower loss is better."""
        return [-metrics["loss"]]

    def samples(self) -> list[tuple[str, str]]:
        """For TensorBoard, name and text in markdown: the beginning of a validation text with a generated continuation
        (rank 0). --no-samples turns it off, for private data."""
        if self._config.backwards:
            return []  # a backward model writes text in reverse, which nobody can read
        store = self._valid
        prompt = store.document(0)[: PROMPT_WORDS + 1].tolist() if store is not None else [self._tokenizer.bos_id]
        seed = derive_seed(self._config.seed, "sample")
        generator = torch.Generator(self._runtime.device).manual_seed(seed)
        try:
            ids = self.net.generate_ids(
                [prompt], max_new_tokens=SAMPLE_WORDS, banned=self._tokenizer.banned_ids, generator=generator
            )[0]
        except UserError:  # the training diverges, which the losses tell
            return []
        return [("samples", verbatim(self._tokenizer.decode(prompt + ids)))]

    def hidden_state(self) -> dict[str, Any]:
        """The hidden state of all rows of the global batch, on rank 0 and on its CPU (a collective).

        The other ranks get None in place of each tensor: with hundreds of ranks the whole takes gigabytes.
        """
        collect = self._runtime.collect
        return {"hidden": [[collect(h), collect(c)] for h, c in self._state]}

    def load_hidden_state(self, state: dict[str, Any]) -> None:
        """Load this rank's rows of a saved hidden state. The number of ranks may have changed since."""
        mine = slice(self._rows.start, self._rows.stop)
        self._state = [(h[mine].to(self._runtime.device), c[mine].to(self._runtime.device)) for h, c in state["hidden"]]
