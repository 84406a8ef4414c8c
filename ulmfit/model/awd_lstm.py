"""The AWD-LSTM encoder (Merity, Keskar, Socher 2017, arXiv 1708.02182) and its dropouts.

Five dropouts act on it: whole words of the embedding, the recurrent weights (DropConnect), and one
mask for all time steps on the input, between the layers and on the output. All masks come from
outside, from an object with the two methods of `DropoutMasks`: without one there is no dropout, so
that training and evaluation are told apart by the argument and not by a mode of the module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ulmfit import private_api
from ulmfit.errors import UserError

State = list[tuple[Tensor, Tensor]]

#: Architectures by name: fastai's is `base`, the blog post of 2019 used `blog`. The hidden size of `wide`
#: meets the conditions of cuDNN's persistent kernels (at most 1024, a multiple of 128).
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"embedding_size": 64, "hidden_size": 128, "num_layers": 2},
    "small": {"embedding_size": 200, "hidden_size": 512, "num_layers": 2},
    "base": {"embedding_size": 400, "hidden_size": 1152, "num_layers": 3},
    "blog": {"embedding_size": 400, "hidden_size": 1150, "num_layers": 3},
    "wide": {"embedding_size": 512, "hidden_size": 1024, "num_layers": 3},
}

#: fastai's dropout probabilities for drop_mult = 1 (awd_lstm_lm_config and awd_lstm_clas_config).
_DROPOUTS = {
    "lm": {"input_p": 0.25, "hidden_p": 0.15, "weight_p": 0.2, "embed_p": 0.02, "output_p": 0.1},
    "clf": {"input_p": 0.4, "hidden_p": 0.3, "weight_p": 0.5, "embed_p": 0.05, "output_p": 0.4},
}


class DropoutMasks(Protocol):
    """Where masks come from: scaled Bernoulli masks (0 or 1 / (1 - p)), None where p is 0.

    A mask is a function of its `place` (what it acts on, layer, window), so asking twice gives the same.
    Masks live on the device of the model.
    """

    def shared(self, p: float, shape: tuple[int, ...], *place: int | str) -> Tensor | None:
        """A mask of `shape`, the same for all rows of the batch."""

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        """A mask [rows, width], each row of the batch its own."""


@dataclass(frozen=True)
class AWDLSTMConfig:
    """Sizes and dropout probabilities. Layers map embedding -> hidden -> ... -> hidden -> embedding."""

    vocab_size: int
    embedding_size: int = 400
    hidden_size: int = 1152
    num_layers: int = 3
    pad_id: int = 1
    input_p: float = 0.25
    hidden_p: float = 0.15
    weight_p: float = 0.2
    embed_p: float = 0.02
    output_p: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a positive number")
        for name in _DROPOUTS["lm"]:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{name} is {getattr(self, name):g} but a dropout probability must be at least 0 and less than 1; "
                    "choose a smaller drop_mult"
                )

    def with_dropouts(self, task: Literal["lm", "clf"], drop_mult: float) -> AWDLSTMConfig:
        """The same sizes with fastai's dropouts for the task, all multiplied by `drop_mult`."""
        dropouts: dict[str, Any] = {name: p * drop_mult for name, p in _DROPOUTS[task].items()}
        return replace(self, **dropouts)


def recurrence_dtype(
    device: str, weights: torch.dtype, autocast: torch.dtype | None, *, bf16_in_cudnn: bool
) -> torch.dtype:
    """In which dtype the LSTM runs.

    Args:
        device: type of the device: cuda, cpu.
        weights: dtype of the parameters.
        autocast: the dtype of autocast on that device, None outside it.
        bf16_in_cudnn: whether cuDNN has the LSTM in bfloat16.

    Autocast's, on CUDA: torch's own autocast would run cuDNN's LSTM in float16 whatever dtype it was asked for
    (aten/src/ATen/cudnn/AutocastRNN.cpp), without the loss scale that float16 needs. Where cuDNN has no bfloat16
    LSTM, and on the CPU, whose library has one on few machines only, the recurrence keeps the parameters' dtype.
    """
    if device != "cuda" or autocast is None or (autocast == torch.bfloat16 and not bf16_in_cudnn):
        return weights
    return autocast


@cache
def _bf16_in_cudnn() -> bool:
    """Elsewhere torch would step through time with kernels of its own (aten/src/ATen/native/RNN.cpp, use_cudnn)."""
    return (torch.backends.cudnn.version() or 0) >= 91300 and torch.cuda.get_device_capability() >= (8, 0)


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, T, F] times one mask [B, F] for all time steps (variational dropout, Gal & Ghahramani 2016)."""
    return x if mask is None else x * mask.unsqueeze(1)


class WeightDropLSTM(nn.Module):
    """One LSTM layer whose recurrent weight may be masked for the length of a call (DropConnect).

    The mask multiplies a copy that only this call sees: the parameter is never replaced, so the module can
    be copied, wrapped by DDP and evaluated without care. Both biases of torch's LSTM are kept, as in every
    published checkpoint. Initial values are torch's: U(-1/sqrt(H), 1/sqrt(H)).
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        self.weight_ih = uniform(4 * hidden_size, input_size)
        self.weight_hh = uniform(4 * hidden_size, hidden_size)
        self.bias_ih = uniform(4 * hidden_size)
        self.bias_hh = uniform(4 * hidden_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], weight_mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, T, input], state ([B, H], [B, H]) -> output [B, T, H] and the last state, detached."""
        weight_hh = self.weight_hh if weight_mask is None else self.weight_hh * weight_mask
        weights = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        kept, dtype = self.weight_hh.dtype, self._dtype(x)
        # Casts are ours and not autocast's (recurrence_dtype). Gradients come back in the parameters' dtype, and so
        # does the state: what is carried over many calls and saved is rounded no further.
        with torch.autocast(x.device.type, enabled=False):
            x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
            state = (state[0].to(dtype), state[1].to(dtype))
            if x.shape[1] == 1 and not torch.is_grad_enabled():
                # Generation: oneDNN and cuDNN would lay out the weights anew for every token.
                h, c = private_api.lstm_cell(x[:, 0], state, weights)
                output = h.unsqueeze(1)
            else:
                if x.is_cuda:
                    weights = _contiguous_chunk(weights)
                hx = (state[0].unsqueeze(0), state[1].unsqueeze(0))
                output, h, c = private_api.lstm(x, hx, weights, training=torch.is_grad_enabled())
                h, c = h.squeeze(0), c.squeeze(0)
        return output, (h.detach().to(kept), c.detach().to(kept))

    def _dtype(self, x: Tensor) -> torch.dtype:
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return recurrence_dtype(
            device, self.weight_hh.dtype, autocast, bf16_in_cudnn=device == "cuda" and _bf16_in_cudnn()
        )


def _contiguous_chunk(weights: list[Tensor]) -> list[Tensor]:
    """The weights as pieces of one buffer, which is how cuDNN wants them (it would copy and warn)."""
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    pieces = flat.split([weight.numel() for weight in weights])
    return [piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]


class AWDLSTM(nn.Module):
    """Embedding and LSTM layers. Initial weights depend on torch's default generator alone."""

    #: Rows at which one core of a CPU reads most tokens a second without gradient (measured: 32 to 64 alike).
    rows_of_a_core = 32

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.config = config
        initial = torch.empty(config.vocab_size, config.embedding_size).uniform_(-0.1, 0.1)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, _weight=initial)
        inner = [config.hidden_size] * (config.num_layers - 1)
        sizes = [config.embedding_size, *inner, config.embedding_size]
        self.layers = nn.ModuleList(map(WeightDropLSTM, sizes[:-1], sizes[1:]))

    def init_state(self, batch_size: int) -> State:
        """Zeros: (h, c) of [batch_size, H] for every layer, of the parameters' dtype and device."""
        weights: list[Tensor] = [cast(WeightDropLSTM, layer).weight_hh for layer in self.layers]
        return [
            (weight.new_zeros(batch_size, weight.shape[1]), weight.new_zeros(batch_size, weight.shape[1]))
            for weight in weights
        ]

    def forward(
        self, tokens: Tensor, state: State, masks: DropoutMasks | None = None, window: int = 0
    ) -> tuple[Tensor, State]:
        """Read tokens [B, T] (int64) on from `state`.

        Returns the last layer's output [B, T, E], before output dropout, and the new state. The state is
        detached: back-propagation ends at the borders of a call. `window` tells apart the calls of one step,
        each of which has masks of its own.

        Under autocast the output is of the dtype of `recurrence_dtype`, the state of the parameters'.
        """
        assert len(state) == len(self.layers) and state[0][0].shape[0] == tokens.shape[0]
        x = self._embed(tokens, masks, window)
        new_state: State = []
        for i, layer in enumerate(self.layers):
            weight_mask = None
            if masks is not None:
                shape = cast(WeightDropLSTM, layer).weight_hh.shape
                weight_mask = masks.shared(self.config.weight_p, tuple(shape), "weight", i, window)
            x, layer_state = layer(x, state[i], weight_mask)
            new_state.append(layer_state)
            if masks is not None and i + 1 < len(self.layers):
                x = apply_mask(x, masks.per_row(self.config.hidden_p, x.shape[2], "hidden", i, window))
        return x, new_state

    def _embed(self, tokens: Tensor, masks: DropoutMasks | None, window: int) -> Tensor:
        """Looked-up rows with embedding and input dropout. Whole words are dropped (Gal & Ghahramani 2016):
        the mask [V] is looked up like the rows, so the V x E matrix is never copied."""
        x = self.embedding(tokens)
        if masks is None:
            return x
        word_mask = masks.shared(self.config.embed_p, (self.config.vocab_size,), "embedding", window)
        if word_mask is not None:
            x = x * word_mask[tokens].unsqueeze(2)
        return apply_mask(x, masks.per_row(self.config.input_p, x.shape[2], "input", window))
