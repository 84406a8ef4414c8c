"""Several classifiers as one ONNX graph, with the inputs and outputs of one: the mean of their probabilities.

`logits` are those of the mean: its logarithm, or with several labels a text the log-odds of each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ulmfit.errors import UserError
from ulmfit.exported.graph import INPUTS, MOST_BYTES, RUNTIME_DOMAIN, onnx, serialised

_SMALLEST = np.float32(1e-38)  # its logarithm is finite


def build_mean(
    members: Sequence[bytes],
    places: Sequence[np.ndarray],
    shares: Sequence[float],
    *,
    multi_label: bool = False,
    temperature: float | None = None,
) -> bytes:
    """The model, serialised.

    Args:
        members: graphs of classifiers (`model_folder.graph_of`) of the same vocabulary and classes.
        places: by member, the place of each class of the first one among its own, int [C].
        shares: by member, its weight in the mean; they sum to 1.
        multi_label: a text may have any number of the classes.
        temperature: of the mean, where each text has one label (`Bundle`).

    Raises:
        UserError: they are larger together than an ONNX file may be.
    """
    helper = onnx.helper

    def array(value: Any, name: str) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.asarray(value), name)

    nodes, constants, rows, own_operators = [], [], [], False
    for number, (member, place, share) in enumerate(zip(members, places, shares, strict=True), 1):
        model = onnx.load_from_string(member)
        own_operators |= any(domain.domain == RUNTIME_DOMAIN for domain in model.opset_import)
        _prefix(model.graph, f"{number}.")
        nodes += model.graph.node
        constants += [*model.graph.initializer, array(np.asarray(place, np.int64), f"{number}.places"),
                      array(np.float32(share), f"{number}.share")]  # fmt: skip
        ordered = f"{number}.ordered"
        nodes.append(helper.make_node("Gather", [f"{number}.probabilities", f"{number}.places"], [ordered], axis=1))
        rows.append(f"{number}.part")
        nodes.append(helper.make_node("Mul", [ordered, f"{number}.share"], [rows[-1]]))
    if sum(constant.ByteSize() for constant in constants) > MOST_BYTES:
        raise UserError(
            f"{len(members)} such classifiers are more than the 2 GiB of an ONNX file; export fewer, or with --int8"
        )
    constants.append(array(_SMALLEST, "smallest"))
    mean = "probabilities" if temperature is None else "mean"
    nodes.append(helper.make_node("Sum", rows, [mean]))
    nodes.append(helper.make_node("Max", [mean, "smallest"], ["positive"]))
    if multi_label:
        constants.append(array(np.float32(1), "all"))
        nodes.append(helper.make_node("Sub", ["all", "probabilities"], ["others"]))
        nodes.append(helper.make_node("Max", ["others", "smallest"], ["positive_others"]))
        nodes.append(helper.make_node("Div", ["positive", "positive_others"], ["odds"]))
        nodes.append(helper.make_node("Log", ["odds"], ["logits"]))
    elif temperature is None:
        nodes.append(helper.make_node("Log", ["positive"], ["logits"]))
    else:
        constants.append(array(np.float32(temperature), "temperature"))
        nodes.append(helper.make_node("Log", ["positive"], ["logarithm"]))
        nodes.append(helper.make_node("Div", ["logarithm", "temperature"], ["logits"]))
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    return serialised(nodes, constants, len(places[0]), own_operators=own_operators)


def _prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before all names but those of the inputs, also in the graphs of nodes.

    `onnx.compose.add_prefix` leaves the constants alone that an inner graph takes from the outer one (onnx 1.23).
    """

    def longer(name: str) -> str:
        return name if name in ("", *INPUTS) else prefix + name

    for node in graph.node:
        node.input[:], node.output[:] = map(longer, node.input), map(longer, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _prefix(attribute.g, prefix)
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = longer(value.name)
