"""8-bit weights for ONNX Runtime's DynamicQuantizeLSTM, such that a document does not depend on its batch.

That operator rounds its inputs and its own outputs to bytes at every step, over the range that it finds in them. So the
range, and with it every rounding, would depend on the other documents of the batch. Two more units in each layer
prevent that: their gates are fixed by the biases such that they always give 1 and -1, the limits of an LSTM's output.
No weight reads them, so they change nothing but the range. Words get two more components likewise.

A matrix has one scale per unit. A column of the embedding has one scale, which its column of the first layer's input
weight takes over, so the words' bytes are the layer's input and are not rounded again.

Weights have 7 bits. Without VNNI instructions ONNX Runtime adds pairs of products in 16 bits, and 2 x 255 x 64 just
fits; with 8 bits sums would saturate on such processors (onnxruntime#5747).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEVELS = 63  # of a weight, on each side of 0
SMALLEST_BYTE, LARGEST_BYTE = -128, 127  # of a word; their range has the scale 1, so bytes are rounded to themselves
_SURE = 50.0  # logistic(50) is 1 in float32, and logistic(-50) is as good as 0
_FULL = 20.0  # tanh(20) is 1 in float32


class Int8Weight(NamedTuple):
    """values [M, K], int8, times scales [M], float32."""

    values: np.ndarray
    scales: np.ndarray


class Int8Layer(NamedTuple):
    """An LSTM layer with two more units, gates in torch's order; `output` and `cell` [H + 2] begin a document."""

    weight_ih: Int8Weight
    weight_hh: Int8Weight
    bias: np.ndarray
    output: np.ndarray
    cell: np.ndarray


def int8_layers(tensors: Mapping[str, np.ndarray], num_layers: int) -> tuple[np.ndarray, list[Int8Layer]]:
    """The embedding, int8 [V, E + 2], and the layers of an encoder, whose tensors have the names of its state dict."""
    embedding = np.asarray(tensors["encoder.embedding.weight"], np.float32)
    input_scales = np.maximum(np.abs(embedding).max(0), np.finfo(np.float32).tiny) / LARGEST_BYTE
    table = np.empty((len(embedding), embedding.shape[1] + 2), np.int8)
    table[:, :-2] = np.round(embedding / input_scales)
    table[:, -2:] = LARGEST_BYTE, SMALLEST_BYTE
    layers = []
    for i in range(num_layers):
        prefix = f"encoder.layers.{i}"
        weight_ih, weight_hh, bias_ih, bias_hh = (
            np.asarray(tensors[f"{prefix}.{name}"], np.float32)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if i == 0:
            weight_ih = weight_ih * input_scales
        bias = _with_two_units((bias_ih + bias_hh)[:, None])[:, 0]
        size = len(bias) // 4
        write, forget, _, show = (bias[k * size : (k + 1) * size] for k in range(4))
        write[-2:], forget[-2:], show[-2:] = -_SURE, _SURE, _SURE
        limits = np.zeros(size, np.float32)
        limits[-2:] = 1, -1
        layers.append(
            Int8Layer(
                _quantized(_with_two_units(np.pad(weight_ih, ((0, 0), (0, 2))))),
                _quantized(_with_two_units(np.pad(weight_hh, ((0, 0), (0, 2))))),
                bias,
                limits,
                _FULL * limits,
            )
        )
    return table, layers


def _with_two_units(weight: np.ndarray) -> np.ndarray:
    """[4H, K] with two zero rows after each gate's."""
    gates = weight.reshape(4, -1, weight.shape[1])
    return np.pad(gates, ((0, 0), (0, 2), (0, 0))).reshape(-1, weight.shape[1])


def _quantized(weight: np.ndarray) -> Int8Weight:
    scales = np.maximum(np.abs(weight).max(1), np.finfo(np.float32).tiny) / LEVELS
    return Int8Weight(np.round(weight / scales[:, None]).astype(np.int8), scales)
