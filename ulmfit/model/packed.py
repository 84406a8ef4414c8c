"""The encoder for inference on the CPU: the arithmetic of AWDLSTM, laid out for reading and never for training.

What it saves, in order of weight:

- Each distinct word of a window meets the first layer's input weight once, however often the word stands there.
- Weights are packed for oneDNN's matrix product when the encoder is made and not at each call.
- tanh(x) is 2 sigmoid(2x) - 1: torch's sigmoid is several times faster than its tanh, and the doubling of the cell's
  input goes into the weights, so that one sigmoid serves all four gates.

With int8 the matrix products of the recurrence, and of every layer's input but the first's, run in 8 bits. Weights have
a scale for each output unit (the largest absolute value of its row). Activations are outputs of LSTMs, which lie in
(-1, 1): their scale is fixed, and not taken from the batch as in torch's dynamic quantisation, so that a row does not
depend on the rows beside it. Cells, gates, sums and the pooled outputs stay in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTM, State
from ulmfit.model.classifier import ClassifierNet

#: Steps of an activation between 0 and 1, and what stands for 0, in unsigned bytes. 7 bits: where a machine lacks
#: VNNI instructions oneDNN adds pairs of products in 16 bits, which 127 x 127 twice just fits.
LEVELS, ZERO = 63, 64


def pack_encoder(net: ClassifierNet, *, int8: bool = False) -> ClassifierNet:
    """Give a classifier the packed encoder in place of its own; the net can then be read but not trained.

    In fp32 it does nothing on devices and in precisions that oneDNN does not serve, and logits move by 1e-6 or so.

    Raises:
        UserError: int8 is asked for and this is no classifier in fp32 on the CPU.
    """
    weight = net.encoder.embedding.weight
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if int8 and not fits:
        where = f"on {weight.device.type} in {str(weight.dtype).removeprefix('torch.')}"
        raise UserError(f"int8 is for fp32 models on the CPU, and this one is {where}: leave out int8, or hide the GPU "
                        "by CUDA_VISIBLE_DEVICES=")
    if fits:
        net.requires_grad_(False)
        net.encoder = PackedAWDLSTM(net.encoder, int8=int8)
    return net


class PackedAWDLSTM(nn.Module):
    """Stands in for an AWDLSTM whose masks are None. Its states, of its own dtype and meaning, fit only itself."""

    def __init__(self, encoder: AWDLSTM, *, int8: bool) -> None:
        super().__init__()
        self.config, self.embedding, self.int8 = encoder.config, encoder.embedding, int8
        first, *others = encoder.layers
        self._words = _Product(_double_cell(first.weight_ih), _double_cell(first.bias_ih + first.bias_hh), int8=False)
        # Later layers read [input, hidden] in one product; the first one's input is looked up in a table.
        self._products = [_Product(_double_cell(first.weight_hh), None, int8=int8)]
        self._products += [_Product(_double_cell(torch.cat([layer.weight_ih, layer.weight_hh], 1)),
                                    _double_cell(layer.bias_ih + layer.bias_hh), int8=int8) for layer in others]
        self._sizes = [layer.weight_hh.shape[1] for layer in encoder.layers]

    def init_state(self, batch_size: int) -> State:
        """(h, c) of [batch_size, H] for every layer: h as the products read it (float32, or bytes), c float32."""
        h = torch.full((), ZERO, dtype=torch.uint8) if self.int8 else torch.zeros(())
        return [(h.repeat(batch_size, size), torch.zeros(batch_size, size)) for size in self._sizes]

    def forward(self, tokens: Tensor, state: State, masks: None = None, window: int = 0) -> tuple[Tensor, State]:
        """Read tokens [B, T] (int64) on from `state`: the last layer's output, float32 [B, T, E], and the new state."""
        assert masks is None, "a packed encoder does not train"
        words, places = tokens.T.unique(return_inverse=True)
        table = self._words(self.embedding(words))
        inputs: Tensor = places  # [T, B, ...]: of the first layer places in the table, then outputs
        new_state: State = []
        for i, (product, (h, c)) in enumerate(zip(self._products, state, strict=True)):
            last = i + 1 == len(self._products)
            inputs, *layer_state = self._read(product, table if i == 0 else None, inputs, h, c, last)
            new_state.append(tuple(layer_state))
        return inputs.transpose(0, 1), new_state

    def _read(self, product: _Product, table: Tensor | None, inputs: Tensor, h: Tensor, c: Tensor,
              last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One layer over a window: outputs [T, B, H] (as the next layer reads them, float32 of the last), h, c."""
        steps, (rows, size) = inputs.shape[0], c.shape
        width = 0 if table is not None else inputs.shape[2]
        joined = h.new_empty(rows, width + size)
        hidden = joined[:, width:]
        hidden.copy_(h)
        outputs = torch.empty(steps, rows, size, dtype=torch.float32 if last else h.dtype)
        c, tanh = c.clone(), torch.empty(rows, size)
        for x, output in zip(inputs, outputs, strict=True):
            if table is not None:
                gates = product(joined, table.index_select(0, x))
            else:
                joined[:, :width] = x
                gates = product(joined)
            write, remember, cell, show = gates.sigmoid_().chunk(4, 1)
            c.mul_(remember).addcmul_(write, cell, value=2).sub_(write)
            torch.mul(c, 2, out=tanh).sigmoid_().mul_(2).sub_(1).mul_(show)
            if last:
                output.copy_(tanh)
            if self.int8:
                tanh.mul_(LEVELS).add_(ZERO + 0.5)  # the conversion cuts off: all are positive, so this rounds
            hidden.copy_(tanh)
            if not last:
                output.copy_(hidden)
        return outputs, hidden.clone(), c


class _Product:
    """x [n, K] -> x W^T + bias, float32 [n, M], of a weight packed once; with int8, x are bytes of activations."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, int8: bool) -> None:
        self._bias, self._int8 = bias, int8
        if int8:
            self._scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
            self._zero = torch.zeros(len(weight), dtype=torch.int32)
            rounded = (weight / self._scale.unsqueeze(1)).round().to(torch.int8)
            self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        else:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """With `other` [n, M], x W^T + other; `other` may be overwritten."""
        if self._int8:
            packed = (x, 1 / LEVELS, ZERO, self._weight, self._scale, self._zero)
            if other is None:
                return torch.ops.onednn.qlinear_pointwise(*packed, self._bias, 1.0, 0, torch.float32, "none", [], "")
            return torch.ops.onednn.qlinear_pointwise.binary(*packed, other, None, 1.0, 0, torch.float32, 1.0, 0,
                                                             "sum", 1.0, "none", [], "")
        if other is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, None, "add")


def _double_cell(weight: Tensor) -> Tensor:
    """The rows of the cell's input (the third of torch's gates: input, forget, cell, output) times two."""
    weight = weight.detach().clone()
    weight.chunk(4)[2].mul_(2)
    return weight
