"""The encoder with 8-bit matrix products, for inference on the CPU only.

Weights have one scale per output unit (the largest absolute value of its row). Activations are LSTM outputs, which are
in (-1, 1), so their scale is fixed. torch's dynamic quantisation would take it from the batch, and a document's outputs
would depend on the other documents. Cells, gates, sums and pooled outputs stay fp32. So does the first layer's
input product, which is computed only once for each distinct word of a window.
One dependency on the batch remains: the last bit of torch's sigmoid differs at the end of a tensor whose size is not
a multiple of the vector length. This can change a byte by one, but rarely.

tanh(x) is computed as 2 sigmoid(2x) - 1, because torch's sigmoid is several times faster than its tanh. The weights of
the cell input are doubled, so that one sigmoid call computes all four gates.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ulmfit import private_api
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTM, State, WeightDropLSTM
from ulmfit.model.classifier import ClassifierNet

#: An activation x is stored as the unsigned byte ZERO + LEVELS * x, which has 7 bits. Without VNNI instructions oneDNN
#: adds pairs of products in 16 bits, and 2 x 127 x 127 just fits.
LEVELS, ZERO = 63, 64


def quantize_encoder(net: ClassifierNet) -> ClassifierNet:
    """Replace a classifier's encoder by its 8-bit version. The net is changed and can no longer be trained.

    Raises:
        UserError: the net is not on the CPU or not in fp32, or torch was built without oneDNN.
    """
    weight = net.encoder.embedding.weight
    if weight.device.type != "cpu":
        raise UserError(
            f"int8 runs on the CPU and this model is on {weight.device.type}; leave out int8, or hide the "
            "GPU by CUDA_VISIBLE_DEVICES="
        )
    if weight.dtype != torch.float32:
        raise UserError(
            f"int8 is for models in fp32 and this one is in {str(weight.dtype).removeprefix('torch.')}; leave out int8"
        )
    if not torch.backends.mkldnn.is_available():
        raise UserError("int8 needs oneDNN, which this build of torch lacks; leave out int8, or install another build")
    net.requires_grad_(False)
    try:
        encoder = Int8AWDLSTM(net.encoder)
        encoder(torch.zeros(1, 1, dtype=torch.long), encoder.init_state(1))
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"int8 is not to be had with this processor and build of torch ({str(error).splitlines()[0]}); "
            "leave out int8"
        ) from error
    net.encoder = encoder  # type: ignore[assignment]  # has the part of AWDLSTM's interface that inference needs
    return net


class Int8AWDLSTM(nn.Module):
    """Replacement of an AWDLSTM, without masks. Its states have another format than AWDLSTM's."""

    rows_of_a_core = 128

    def __init__(self, encoder: AWDLSTM) -> None:
        super().__init__()
        self.config, self.embedding = encoder.config, encoder.embedding
        self._layers = [
            _Layer(cast(WeightDropLSTM, layer), first=i == 0, last=i + 1 == len(encoder.layers))
            for i, layer in enumerate(encoder.layers)
        ]

    def init_state(self, batch_size: int) -> State:
        """For every layer the output [batch_size, H], bytes 0 to 127, and twice the cell [batch_size, H], float32."""
        return [
            (torch.full((batch_size, layer.size), ZERO, dtype=torch.uint8), torch.zeros(batch_size, layer.size))
            for layer in self._layers
        ]

    def forward(self, tokens: Tensor, state: State, masks: None = None, window: int = 0) -> tuple[Tensor, State]:
        """Read tokens [B, T] (int64) from `state` on. Returns output [B, T, E] (float32, last layer) and new state."""
        assert masks is None, "an encoder of 8 bits does not train"
        words, inputs = tokens.T.unique(return_inverse=True)
        vectors = self.embedding(words)
        new_state: State = []
        for layer, (h, c) in zip(self._layers, state, strict=True):
            inputs, halves, layer_state = layer.read(inputs, vectors, h, c)
            new_state.append(layer_state)
        return halves.mul_(2).transpose(0, 1), new_state


class _Layer:
    """One LSTM layer. The input of the first layer is indices into word vectors, that of the others is bytes."""

    def __init__(self, layer: WeightDropLSTM, *, first: bool, last: bool) -> None:
        weight_ih, weight_hh, bias = (
            _double_cell(weight.detach())
            for weight in (layer.weight_ih, layer.weight_hh, layer.bias_ih + layer.bias_hh)
        )
        self.size = layer.weight_hh.shape[1]
        self._first, self._last, self._bias = first, last, bias
        # oneDNN's product, because each of its rows is independent of the number of rows, unlike torch's default.
        self._weight_ih = private_api.packed_weight(weight_ih) if first else None
        # Later layers multiply [input, previous output] in one product.
        self._product = Int8Product(weight_hh if first else torch.cat([weight_ih, weight_hh], 1))

    def __getstate__(self) -> dict[str, Any]:
        """For pickles and copies, e.g. to hand a classifier to worker processes."""
        packed = self._weight_ih
        return vars(self) | {"_weight_ih": None if packed is None else private_api.unpacked_weight(packed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._weight_ih is not None:
            self._weight_ih = private_api.packed_weight(self._weight_ih)

    def read(
        self, inputs: Tensor, vectors: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Read a window, time first: inputs int64 [T, B] or bytes [T, B, I].

        Returns the outputs [T, B, H] as bytes (invalid for the last layer), half the outputs as float32 (valid only
        for the last layer), and the new state.
        """
        steps, (rows, size) = len(inputs), c.shape
        width = 0 if self._first else inputs.shape[2]
        table = None
        if self._weight_ih is not None:
            table = private_api.packed_linear(vectors, self._weight_ih, self._bias)
        joined = h.new_empty(rows, width + size)
        seen, hidden = joined[:, :width], joined[:, width:]
        hidden.copy_(h)
        c = c.clone()
        gates, scaled, middle = torch.empty(rows, 4 * size), torch.empty_like(c), torch.tensor(ZERO + 0.5)
        write, remember, cell, show = gates.chunk(4, 1)
        # The output that is not used is written to one time step again and again, to save memory.
        outputs = h.new_empty(1 if self._last else steps, rows, size).expand(steps, rows, size)
        halves = c.new_empty(steps if self._last else 1, rows, size).expand(steps, rows, size)
        for x, output, half in zip(inputs, outputs, halves, strict=True):
            if table is not None:
                torch.index_select(table, 0, x, out=gates)
            else:
                gates.copy_(self._bias)
                seen.copy_(x)
            self._product.add_to(gates, joined)
            gates.sigmoid_()
            # c = remember * c + write * (2 cell - 1), all doubled; then show * (2 sigmoid(c) - 1), halved.
            c.mul_(remember).addcmul_(write, cell, value=4).sub_(write, alpha=2)
            torch.sigmoid(c, out=scaled).sub_(0.5)
            torch.mul(scaled, show, out=half)
            torch.add(middle, half, alpha=2 * LEVELS, out=scaled)
            hidden.copy_(scaled)  # truncates; `middle` includes 0.5 and values are positive, so this rounds
            output.copy_(hidden)
        return outputs, halves, (hidden.clone(), c)


class Int8Product:
    """Product of byte activations and a weight [M, K], given as float32 and packed as int8."""

    def __init__(self, weight: Tensor) -> None:
        self._scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self._zero = torch.zeros(len(weight), dtype=torch.int32)
        rounded = (weight / self._scale.unsqueeze(1)).round().to(torch.int8)
        self._weight = private_api.packed_int8_weight(rounded)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_weight": private_api.unpacked_int8_weight(self._weight)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._weight = private_api.packed_int8_weight(self._weight)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total [n, M] (float32) += a W^T with a = (x - ZERO) / LEVELS for bytes x [n, K]."""
        private_api.add_int8_product(total, x, self._weight, self._scale, self._zero, x_scale=1 / LEVELS, x_zero=ZERO)


def _double_cell(weight: Tensor) -> Tensor:
    """Multiply the rows of the cell input by two (the third of torch's gates: input, forget, cell, output)."""
    weight = weight.clone()
    weight.chunk(4)[2].mul_(2)
    return weight
