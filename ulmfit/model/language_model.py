"""The language model: AWD-LSTM with an output layer tied to the embedding, and text generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTM, AWDLSTMConfig, DropoutMasks, State, apply_mask
from ulmfit.model.chunks import IGNORE
from ulmfit.model.loss import activation_regularization, linear_cross_entropy
from ulmfit.model.sampled_softmax import Candidates, sampled_cross_entropy


class LMOutput(NamedTuple):
    """Sums (0-d) over the counted positions of one call. The caller divides them by the counts of the global batch."""

    ce_sum: Tensor
    """Cross-entropy in nats; that of the sampled softmax if candidates were given."""
    num_correct: Tensor
    """int64: number of positions whose target has the largest logit (with candidates: the largest corrected one)."""
    ar_sum: Tensor
    """Squared outputs after output dropout: AR = alpha * ar_sum / (positions * E)."""
    tar_sum: Tensor
    """Squared differences of neighbouring outputs, before dropout: TAR = beta * tar_sum / (neighbouring pairs * E)."""
    state: State


class LanguageModelNet(nn.Module):
    """AWD-LSTM language model. The output layer shares its weight with the embedding and has its own bias.

    Dropout acts if and only if `masks` is given to `forward`; train() and eval() have no effect. The reason: a mask is
    a function of seed and step, so that any division of the batch into ranks and micro-batches trains the same model.
    """

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AWDLSTM(config)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        #: What the output layer uses in place of the embedding's weight, given that weight; None for the weight itself.
        #: By it the two parts of the weight's gradient can be told apart.
        self.output_weight: Callable[[Tensor], Tensor] | None = None

    def init_state(self, batch_size: int) -> State:
        """The hidden state before the first token: zeros, as `AWDLSTM.init_state`."""
        return self.encoder.init_state(batch_size)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State,
        masks: DropoutMasks | None = None,
        candidates: Candidates | None = None,
    ) -> LMOutput:
        """Loss sums of predicting targets [B, T] from tokens [B, T] (int64; target -100 is not counted).

        With `candidates` the loss is the sampled softmax, for training only; else it is the full softmax.
        """
        raw, state = self.encoder(tokens, state, masks)
        mask = None
        if masks is not None:
            mask = masks.per_row(self.config.output_p, self.config.embedding_size, "output", 0)
        dropped = apply_mask(raw, mask)
        weight = self.encoder.embedding.weight
        if self.output_weight is not None:
            weight = self.output_weight(weight)
        output = (dropped.flatten(0, 1), weight, self.decoder_bias, targets.flatten())
        if candidates is None:
            ce_sum, num_correct = linear_cross_entropy(*output)
        else:
            ce_sum, num_correct = sampled_cross_entropy(*output, candidates)
        ar_sum, tar_sum = activation_regularization(dropped, raw, targets != IGNORE)
        return LMOutput(ce_sum, num_correct, ar_sum, tar_sum, state)

    def layer_groups(self) -> list[list[str]]:
        """Parameter names by layer group, as in fastai: each LSTM layer, then embedding and decoder."""
        layers = [
            [f"encoder.layers.{i}.{name}" for name, _ in layer.named_parameters()]
            for i, layer in enumerate(self.encoder.layers)
        ]
        return [*layers, ["encoder.embedding.weight", "decoder_bias"]]

    def next_logits(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read tokens [B, T], starting from `state`. Returns logits [B, V] of the next token, and the new state."""
        output, state = self.encoder(tokens, state)
        return self._logits(output[:, -1]), state

    def _logits(self, output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            weight = self.encoder.embedding.weight
            return F.linear(output.to(weight.dtype), weight, self.decoder_bias)

    @torch.inference_mode()
    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.75,
        top_k: int | None = None,
        min_p: float | None = None,
        banned: Collection[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Continue each prompt. The time is linear in the length, because the hidden state is kept between tokens.

        Args:
            prompts: token ids, one non-empty sequence for each prompt. Lengths may differ.
            max_new_tokens: number of tokens added to each prompt.
            temperature: divides the logits; with 0 the most probable token is taken.
            top_k: sample from the k most probable tokens.
            min_p: exclude tokens with less than min_p times the highest probability.
            banned: ids that are never chosen (xxunk, xxpad, xxfake).
            generator: on the model's device; torch's default generator if None.

        Returns:
            The new ids of each prompt, in the order of `prompts`.

        Raises:
            UserError: a setting is out of range, or the model's training has diverged.
        """
        _check_sampling(max_new_tokens, temperature, top_k, min_p, banned, self.config.vocab_size)
        if not prompts:
            return []
        logits, state = self._read_prompts(prompts)
        forbidden = torch.tensor(sorted(banned), dtype=torch.long, device=logits.device)
        output: list[list[int]] = [[] for _ in prompts]
        for step in range(max_new_tokens):
            chosen = _sample(logits, temperature, top_k, min_p, forbidden, generator)
            for ids, token in zip(output, chosen.tolist(), strict=True):
                ids.append(token)
            if step + 1 == max_new_tokens:
                break
            logits, state = self.next_logits(chosen.unsqueeze(1), state)
        return output

    def _read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Logits of the next token and hidden state at the end of each prompt, in the order of `prompts`.

        All prompts are read together up to the length of the shortest. Prompts that end there leave the batch, and
        the others are read on. So padding is never read.
        """
        lengths = [len(prompt) for prompt in prompts]
        assert min(lengths) > 0, "a prompt holds at least one token (xxbos)"
        order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
        device = self.decoder_bias.device
        start, live = 0, len(prompts)
        state = self.init_state(live)
        finished: list[tuple[Tensor, State]] = []
        while live:
            stop = lengths[order[live - 1]]
            tokens = torch.tensor([list(prompts[i][start:stop]) for i in order[:live]], device=device)
            output, state = self.encoder(tokens, state)
            longer = sum(lengths[i] > stop for i in order[:live])
            finished.append((output[longer:, -1], [(h[longer:], c[longer:]) for h, c in state]))
            state = [(h[:longer], c[:longer]) for h, c in state]
            start, live = stop, longer
        finished.reverse()
        back = torch.tensor(order, device=device).argsort()
        last = torch.cat([output for output, _ in finished])[back]
        layers = zip(*(state for _, state in finished), strict=True)
        state = [(torch.cat([h for h, _ in parts])[back], torch.cat([c for _, c in parts])[back]) for parts in layers]
        return self._logits(last), state


_COLDEST = 1e-6  # temperature below which the likeliest token is taken; quotients by it could overflow


def _sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    min_p: float | None,
    forbidden: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Sample one token per row: logits [B, V] -> ids [B]. Raises UserError if a logit is NaN or infinite."""
    if not torch.isfinite(logits).all():
        raise UserError(
            "the model computes no finite numbers, because its training has diverged; train it again with a lower --lr"
        )
    logits = logits.index_fill(1, forbidden, -math.inf)
    if temperature < _COLDEST:
        return logits.argmax(1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if min_p:
        least = logits.amax(1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def _check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    min_p: float | None,
    banned: Collection[int],
    vocab_size: int,
) -> None:
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}; give 0 or more")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"temperature is {temperature}; give 0 (always the likeliest word) or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; give 1 or more, or leave it out")
    if min_p is not None and not 0 <= min_p <= 1:
        raise UserError(f"min_p is {min_p}; give a number from 0 to 1, or leave it out")
    if len(set(banned)) >= vocab_size:
        raise UserError("every word of the vocabulary is banned; ban fewer")
