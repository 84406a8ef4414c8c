"""The AWD-LSTM encoder (Merity, Keskar, Socher 2017, arXiv 1708.02182) and its dropouts.

There are five dropouts: on whole words of the embedding, on the recurrent weights (DropConnect), and on the input,
between the layers and on the output (one mask for all time steps each). The caller gives the masks by an object with
the two methods of `DropoutMasks`. Without it there is no dropout: train() and eval() of the module have no effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ulmfit import private_api
from ulmfit.device import cpu_multiplies_bf16
from ulmfit.errors import UserError

State = list[tuple[Tensor, Tensor]]

#: Architectures by name. `base` is fastai's, `blog` that of the 2019 blog post. The hidden size of `wide`
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
    """A source of scaled Bernoulli masks: values 0 or 1 / (1 - p), on the model's device; None if p is 0.

    A mask is a function of its `place` (what it acts on, layer, window): two calls with one place give one mask.
    """

    def shared(self, p: float, shape: tuple[int, ...], *place: int | str) -> Tensor | None:
        """A mask of `shape`, the same for all rows of the batch."""

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        """A mask [rows, width], different for each row of the batch."""


@dataclass(frozen=True)
class AWDLSTMConfig:
    """Sizes and dropout probabilities. Layer sizes are embedding -> hidden -> ... -> hidden -> embedding.

    Raises:
        UserError: a size below 1, or a probability outside [0, 1).
    """

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

    @property
    def num_parameters(self) -> int:
        """Parameters of the encoder: embedding and LSTM layers, whose outer sizes are those of the embedding."""

        def layer(inputs: int, outputs: int) -> int:
            return 4 * outputs * (inputs + outputs) + 8 * outputs

        outer, hidden = self.embedding_size, self.hidden_size
        inner = layer(outer, hidden) + (self.num_layers - 2) * layer(hidden, hidden) + layer(hidden, outer)
        return self.vocab_size * outer + (layer(outer, outer) if self.num_layers == 1 else inner)

    def with_dropouts(self, task: Literal["lm", "clf"], drop_mult: float) -> AWDLSTMConfig:
        """A copy with fastai's dropout probabilities for the task, multiplied by `drop_mult`."""
        dropouts: dict[str, Any] = {name: p * drop_mult for name, p in _DROPOUTS[task].items()}
        return replace(self, **dropouts)


#: LSTM layers of at most this many units run in a kernel of their own in cuDNN, which torch chooses for every dtype but
#: float64 (use_rnn_persist_small_h of aten/src/ATen/native/cudnn/RNN.cpp). cuDNN does not promise bfloat16 there.
SMALL_IN_CUDNN = 192


def recurrence_dtype(
    device: str, weights: torch.dtype, autocast: torch.dtype | None, *, hidden_size: int, has_bf16: bool
) -> torch.dtype:
    """The dtype in which the LSTM runs: autocast's where the device has an LSTM in it, else that of the parameters.

    Args:
        device: type of the device: cuda, cpu.
        weights: dtype of the parameters.
        autocast: the dtype of autocast on that device; None without autocast.
        hidden_size: units of the layer.
        has_bf16: whether cuDNN, or oneDNN on this CPU, has a fast bfloat16 LSTM.

    The choice is not left to torch, whose autocast always runs cuDNN's LSTM in float16
    (aten/src/ATen/cudnn/AutocastRNN.cpp); with bfloat16 there is no loss scale, which float16 needs. The parameters'
    dtype is used where there is no bfloat16 LSTM, and in cuDNN in small layers too (SMALL_IN_CUDNN).
    """
    if autocast is None or weights == torch.float64:
        return weights
    if device == "cpu":
        return autocast if autocast == torch.bfloat16 and has_bf16 else weights
    if autocast == torch.bfloat16 and not (has_bf16 and hidden_size > SMALL_IN_CUDNN):
        return weights
    return autocast


def _has_bf16(device: str) -> bool:
    """Whether LSTMs run in bfloat16 on this type of device."""
    return _bf16_in_cudnn() if device == "cuda" else cpu_multiplies_bf16()


@cache
def _bf16_in_cudnn() -> bool:
    """Whether torch runs a bfloat16 LSTM by cuDNN on this GPU.

    If not, torch would use its own slow kernels, one time step at a time (aten/src/ATen/native/RNN.cpp, use_cudnn).
    """
    return (torch.backends.cudnn.version() or 0) >= 91300 and torch.cuda.get_device_capability() >= (8, 0)


def fp32_in_bf16(config: AWDLSTMConfig, device: str, *, has_bf16: bool | None = None) -> str | None:
    """A sentence on what --precision bf16 computes in fp32 on this device; None if nothing.

    Args:
        device: type of the device: cuda, cpu.
        has_bf16: as of `recurrence_dtype`; None: look.
    """
    has_bf16 = _has_bf16(device) if has_bf16 is None else has_bf16
    if device != "cuda":
        if has_bf16:
            return None
        return (
            "this CPU has no matrix units for bf16 (AMX): the model computes in fp32, with the bits of --precision fp32"
        )
    if not has_bf16:
        return "the LSTM computes in fp32, because this GPU or this version of cuDNN has none in bf16"
    if min(config.embedding_size, config.hidden_size) <= SMALL_IN_CUDNN:  # the sizes of the last and the other layers
        return f"LSTM layers of at most {SMALL_IN_CUDNN} units compute in fp32, because cuDNN may have none in bf16"
    return None


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Multiply x [B, T, F] by a mask [B, F], the same for all time steps (variational dropout: Gal & Ghahramani 2016).

    Without a mask x is returned unchanged.
    """
    return x if mask is None else x * mask.unsqueeze(1)


class WeightDropLSTM(nn.Module):
    """One LSTM layer with an optional mask on its recurrent weight (DropConnect).

    The mask is applied to a copy of the weight that exists only during the call. The parameter itself never changes,
    so the module can be copied, wrapped by DDP and evaluated at any time. The layer has both biases of torch's LSTM,
    as every published checkpoint does. Initial values are torch's: U(-1/sqrt(H), 1/sqrt(H)).
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
        """x [B, T, input], state (h [B, H], c [B, H]) -> output [B, T, H] and the last state, detached."""
        weight_hh = self.weight_hh if weight_mask is None else self.weight_hh * weight_mask
        weights = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        kept, dtype = self.weight_hh.dtype, self._dtype(x)
        # Casts are explicit, without autocast (see recurrence_dtype). Gradients get the parameters' dtype. The state
        # does too, because it is carried over many calls and saved, and rounding errors would add up.
        with torch.autocast(x.device.type, enabled=False):
            x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
            state = (state[0].to(dtype), state[1].to(dtype))
            if x.shape[1] == 1 and not torch.is_grad_enabled():
                # Generation: oneDNN and cuDNN would rearrange the weights for every token.
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
            device,
            self.weight_hh.dtype,
            autocast,
            hidden_size=self.weight_hh.shape[1],
            has_bf16=autocast is not None and _has_bf16(device),
        )


def _contiguous_chunk(weights: list[Tensor]) -> list[Tensor]:
    """Copy the weights into views of one buffer, as cuDNN needs them. Otherwise torch copies them and warns."""
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    pieces = flat.split([weight.numel() for weight in weights])
    return [piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]


class AWDLSTM(nn.Module):
    """Embedding and LSTM layers. Initial weights come from torch's default generator.

    Dropout acts if and only if `masks` is given to `forward`; train() and eval() have no effect. The reason: a mask is
    a function of seed and step, drawn for the global batch, so that any division of the batch into ranks and
    micro-batches trains the same model. Module-internal random numbers would depend on the division.
    """

    #: Number of rows with the highest throughput without gradient on one CPU core (measured: 32 to 64 are equal).
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
        """Zero (h, c), each [batch_size, H], for every layer, in the parameters' dtype and device."""
        weights: list[Tensor] = [cast(WeightDropLSTM, layer).weight_hh for layer in self.layers]
        return [
            (weight.new_zeros(batch_size, weight.shape[1]), weight.new_zeros(batch_size, weight.shape[1]))
            for weight in weights
        ]

    def forward(
        self, tokens: Tensor, state: State, masks: DropoutMasks | None = None, window: int = 0
    ) -> tuple[Tensor, State]:
        """Read tokens [B, T] (int64), starting from `state`.

        Returns the last layer's output [B, T, E], before output dropout, and the new state. The state is detached, so
        back-propagation does not cross calls. `window` numbers the calls of one step, each with other masks.

        Under autocast the output has the dtype of `recurrence_dtype`, of the last layer. The state always has the
        parameters' dtype.
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
        """Embeddings of the tokens with embedding dropout and input dropout.

        Embedding dropout drops whole words (Gal & Ghahramani 2016). Its mask [V] is indexed by the tokens, so the
        V x E matrix is not copied.
        """
        x = self.embedding(tokens)
        if masks is None:
            return x
        word_mask = masks.shared(self.config.embed_p, (self.config.vocab_size,), "embedding", window)
        if word_mask is not None:
            x = x * word_mask[tokens].unsqueeze(2)
        return apply_mask(x, masks.per_row(self.config.input_p, x.shape[2], "input", window))
