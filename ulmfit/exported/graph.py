"""A classifier as one ONNX graph: token ids of any number of documents of any length in, probabilities out.

Inputs are `tokens`, int64 [batch, length], and `lengths`, int64 [batch], each at least 1; what stands after a document's
length is ignored. Outputs are `logits` and `probabilities`, float32 [batch, classes], in the order of `label_names`. The
probabilities are those of logits / temperature, where the model was calibrated.

The graph reads the documents in windows, in a Loop that carries the states of the LSTM and the pooled sums. So memory
does not depend on the lengths. It is written node by node: torch's exporter of 2.13 freezes the length of a stacked
LSTM (pytorch#191855).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ulmfit.errors import UserError
from ulmfit.exported.quantized import Int8Layer, int8_layers

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    raise UserError("onnx is not installed; pip install 'ulmfit[onnx]'") from None

WINDOW = 128  # tokens: products of full speed for a single document, and 150 MB for 64 documents at preset base
RUNTIME_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
OPSET, IR_VERSION = 17, 8  # of 2022: ONNX Runtime 1.12 and later
MOST_BYTES = 2**31 - 2**20  # protobuf's limit, with room for the nodes
_EPSILON = 1e-5  # of BatchNorm1d


@dataclass(frozen=True)
class Weights:
    """The tensors of a classifier (names as in model.safetensors) and what its config.json says of the reading."""

    tensors: Mapping[str, np.ndarray]
    num_layers: int
    max_len: int
    backwards: bool
    temperature: float | None = None
    multi_label: bool = False

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Weights:
        return cls(
            tensors,
            config["architecture"]["num_layers"],
            config["max_len"],
            bool(config.get("backwards")),
            config.get("temperature"),
            bool(config.get("multi_label")),
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.tensors[name], np.float32)


@dataclass
class Nodes:
    """Nodes and constants of a graph in the making. Methods return the name of the result."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype)), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name


def build(weights: Weights, bits: Literal[8, 32] = 32) -> bytes:
    """The model, serialised.

    With `bits` 8 the LSTM's products are those of ONNX Runtime's dynamic quantisation (see `quantized`), and the embedding
    is stored in 8 bits. Such a graph needs ONNX Runtime. The head stays in fp32.

    Raises:
        UserError: the model is larger than an ONNX file may be.
    """
    size = weights["encoder.embedding.weight"].size * (1 if bits == 8 else 4)
    if size > MOST_BYTES:
        raise UserError(
            f"the embedding has {size / 2**30:.1f} GiB and an ONNX file at most 2; export with --int8, "
            "or train with a smaller --vocab-size"
        )
    outer = Nodes()
    inner = _window(weights, bits, outer)
    _read_all(weights, inner, outer)
    _head(weights, outer, width=inner.width)
    classes = len(weights["head.linear2.bias"])
    return serialised(outer.nodes, outer.constants, classes, own_operators=bits == 8)


INPUTS = {"tokens": ["batch", "length"], "lengths": ["batch"]}


def serialised(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], classes: int, *, own_operators: bool = False
) -> bytes:
    """A model with the inputs and outputs of this file.

    Args:
        own_operators: it has operators of ONNX Runtime's own, which other programs do not run.
    """
    graph = helper.make_graph(
        nodes,
        "ulmfit",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in INPUTS.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
            for name in ("logits", "probabilities")
        ],
        constants,
    )
    domains = [helper.make_opsetid("", OPSET)]
    if own_operators:
        domains.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    return helper.make_model(
        graph, producer_name="ulmfit", opset_imports=domains, ir_version=IR_VERSION
    ).SerializeToString()


@dataclass
class _Window:
    """The Loop's body: what it carries from window to window, with the initial values.

    Attributes:
        initial: by name a value for each unit, [H], which every document starts with.
        width: units of the last layer.
    """

    graph: Nodes
    initial: dict[str, np.ndarray]
    width: int


def _window(weights: Weights, bits: int, outer: Nodes) -> _Window:
    """Read one window of all documents. Large constants go to `outer`."""
    body = Nodes()
    body.add("Mul", ["number", "window"], "offset")
    body.add("Reshape", ["offset", "axis1"], "start")
    body.add("Add", ["start", "window"], "stop")
    body.add("Slice", ["steps_first", "start", "stop", "axis0"], "ids")  # [T, B]
    initial: dict[str, np.ndarray] = {}
    if bits == 8:
        embedding, layers = int8_layers(weights.tensors, weights.num_layers)
        outer.constant("embedding", embedding)
        body.add("Gather", ["embedding", "ids"], "bytes")
        x = body.add("Cast", ["bytes"], "x0", to=TensorProto.FLOAT)
        for i, layer in enumerate(layers):
            x = _int8_lstm(body, i, x, layer)
            initial |= {f"h{i}": layer.output, f"c{i}": layer.cell}
    else:
        outer.constant("embedding", weights["encoder.embedding.weight"])
        x = body.add("Gather", ["embedding", "ids"], "x0")
        for i in range(weights.num_layers):
            x, size = _lstm(body, i, x, weights)
            initial |= dict.fromkeys((f"h{i}", f"c{i}"), np.zeros(size, np.float32))
    width = len(initial[f"h{weights.num_layers - 1}"])
    body.add("Shape", ["ids"], "shape")
    body.add("Gather", ["shape", "zero"], "steps")
    body.add("Range", ["zero", "steps", "one"], "step")
    body.add("Add", ["step", "start"], "from_start")
    body.add("Unsqueeze", ["from_start", "axis1"], "position")  # [T, 1]
    body.add("Less", ["position", "lengths"], "before_end")
    body.add("GreaterOrEqual", ["position", "first"], "among_last")
    body.add("And", ["before_end", "among_last"], "pooled_position")
    body.add("Equal", ["position", "last_position"], "is_last")
    body.add("Unsqueeze", ["pooled_position", "axis2"], "inside")  # [T, B, 1]
    body.add("Unsqueeze", ["is_last", "axis2"], "end")
    for name, mask in (("total", "inside"), ("last", "end")):
        body.add("Where", [mask, x, "nothing"], f"{name}_parts")
        body.add("ReduceSum", [f"{name}_parts", "axis0"], f"{name}_here", keepdims=0)
        body.add("Add", [name, f"{name}_here"], f"next_{name}")
    body.add("Where", ["inside", x, "lowest"], "peaks")
    body.add("ReduceMax", ["peaks"], "highest_here", axes=[0], keepdims=0)
    body.add("Max", ["highest", "highest_here"], "next_highest")
    body.add("Identity", ["condition"], "next_condition")
    initial |= {"total": np.zeros(width, np.float32), "last": np.zeros(width, np.float32)}
    initial["highest"] = np.full(width, -np.inf, np.float32)
    return _Window(body, initial, width)


def _lstm(body: Nodes, i: int, x: str, weights: Weights) -> tuple[str, int]:
    """Layer i. Returns the name of its outputs [T, B, H], and H."""
    names = [f"encoder.layers.{i}.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w, r, *biases = (_onnx_gates(weights[name]) for name in names)
    constants = [
        body.constant(f"{name}{i}", value[None]) for name, value in (("W", w), ("R", r), ("B", np.concatenate(biases)))
    ]
    return _run_lstm(body, i, "LSTM", [x, *constants, "", f"h{i}", f"c{i}"], r.shape[1]), r.shape[1]


def _int8_lstm(body: Nodes, i: int, x: str, layer: Int8Layer) -> str:
    names = {}
    for name, weight in (("W", layer.weight_ih), ("R", layer.weight_hh)):
        values, scales = _onnx_gates(weight.values), _onnx_gates(weight.scales)
        names[name] = body.constant(f"{name}{i}", values.T[None])
        names[f"{name}_scale"] = body.constant(f"{name}{i}_scale", scales[None])
        names[f"{name}_zero"] = body.constant(f"{name}{i}_zero", np.zeros((1, len(scales)), np.int8))
    bias = np.concatenate([_onnx_gates(layer.bias), np.zeros_like(layer.bias)])
    names["B"] = body.constant(f"B{i}", bias[None])
    inputs = [x, names["W"], names["R"], names["B"], "", f"h{i}", f"c{i}", ""]
    inputs += [names[name] for name in ("W_scale", "W_zero", "R_scale", "R_zero")]
    return _run_lstm(body, i, "DynamicQuantizeLSTM", inputs, len(layer.output), domain=RUNTIME_DOMAIN)


def _run_lstm(body: Nodes, i: int, kind: str, inputs: Sequence[str], size: int, **attributes: Any) -> str:
    outputs = [f"y{i}", f"next_h{i}", f"next_c{i}"]
    body.nodes.append(helper.make_node(kind, inputs, outputs, hidden_size=size, **attributes))
    return body.add("Squeeze", [f"y{i}", "axis1"], f"x{i + 1}")  # without the axis of directions


def _onnx_gates(weight: np.ndarray) -> np.ndarray:
    """Reorder [4H, ...] from torch's gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    write, forget, cell, show = np.split(weight, 4)
    return np.concatenate([write, show, forget, cell])


def _read_all(weights: Weights, window: _Window, outer: Nodes) -> None:
    """Loop over the windows. Results are total, last and highest, each [B, width], with the prefix `final_`."""
    for name, number in (("zero", 0), ("one", 1), ("window", WINDOW), ("max_len", weights.max_len)):
        outer.constant(name, number, np.int64)
    for axis in range(3):
        outer.constant(f"axis{axis}", [axis], np.int64)
    outer.constant("nothing", 0, np.float32)
    outer.constant("lowest", -np.inf, np.float32)
    outer.add("Transpose", ["tokens"], "given_steps_first", perm=[1, 0])
    if weights.backwards:
        outer.add("ReverseSequence", ["given_steps_first", "lengths"], "steps_first", batch_axis=1, time_axis=0)
    else:
        outer.add("Identity", ["given_steps_first"], "steps_first")
    outer.add("Sub", ["lengths", "max_len"], "first")
    outer.add("Sub", ["lengths", "one"], "last_position")
    outer.add("Shape", ["tokens"], "given_shape")
    outer.add("Gather", ["given_shape", "axis0"], "rows")
    outer.add("Gather", ["given_shape", "one"], "length")
    outer.add("Add", ["length", "window"], "beyond")
    outer.add("Sub", ["beyond", "one"], "rounded_up")
    outer.add("Div", ["rounded_up", "window"], "windows")
    carried, before, after = [], [], []
    for name, value in window.initial.items():
        state = name not in ("total", "last", "highest")
        outer.constant(f"{name}_width", [len(value)], np.int64)
        outer.constant(f"{name}_value", value)
        shape = ["axis1", "rows", f"{name}_width"] if state else ["rows", f"{name}_width"]
        outer.add("Concat", shape, f"{name}_shape", axis=0)
        carried.append(outer.add("Expand", [f"{name}_value", f"{name}_shape"], f"initial_{name}"))
        sizes = [1, None, len(value)] if state else [None, len(value)]
        before.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        after.append(helper.make_tensor_value_info(f"next_{name}", TensorProto.FLOAT, sizes))
    body = helper.make_graph(
        window.graph.nodes,
        "window",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            *before,
        ],
        [helper.make_tensor_value_info("next_condition", TensorProto.BOOL, []), *after],
        window.graph.constants,
    )
    outer.nodes.append(
        helper.make_node("Loop", ["windows", "", *carried], [f"final_{name}" for name in window.initial], body=body)
    )


def _head(weights: Weights, outer: Nodes, *, width: int) -> None:
    """Concat pooling and the head, its BatchNorms folded into the linear layers. Units from E on get zero weights."""
    outer.add("Min", ["lengths", "max_len"], "pooled_tokens")
    outer.add("Cast", ["pooled_tokens"], "pooled_count", to=TensorProto.FLOAT)
    outer.add("Unsqueeze", ["pooled_count", "axis1"], "count")
    outer.add("Div", ["final_total", "count"], "mean")
    x = outer.add("Concat", ["final_last", "final_highest", "mean"], "pooled", axis=1)
    for k in (1, 2):
        norm, linear = f"head.norm{k}", f"head.linear{k}"
        weight = weights[f"{linear}.weight"].astype(np.float64)
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + _EPSILON)
        shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        folded = weight * scale
        if k == 1:
            parts = folded.reshape(len(folded), 3, -1)
            folded = np.pad(parts, ((0, 0), (0, 0), (0, width - parts.shape[2]))).reshape(len(folded), -1)
        outer.constant(f"{linear}.weight", folded, np.float32)
        outer.constant(f"{linear}.bias", weights[f"{linear}.bias"] + weight @ shift, np.float32)
        x = outer.add("Gemm", [x, f"{linear}.weight", f"{linear}.bias"], "hidden" if k == 1 else "logits", transB=1)
        if k == 1:
            x = outer.add("Relu", [x], "positive")
    if weights.temperature is not None:
        outer.constant("temperature", weights.temperature, np.float32)
        x = outer.add("Div", [x, "temperature"], "calibrated")
    if weights.multi_label:
        outer.add("Sigmoid", [x], "probabilities")
    else:
        outer.add("Softmax", [x], "probabilities", axis=1)
