"""A linear classifier of n-grams (`model.ngrams`) as an ONNX graph, with the inputs and outputs of `exported.graph`.

ONNX has an operator that counts n-grams of whole numbers. It gives all features of a document, most of them zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ulmfit.exported.graph import Nodes, serialised


def build_ngrams(tensors: Mapping[str, np.ndarray], vocab_size: int) -> bytes:
    """The model, serialised.

    Args:
        tensors: names as in model.safetensors.
        vocab_size: words of the vocabulary, from which the keys were made.
    """
    keys, weight = tensors["keys"], tensors["weight"]
    first, second = np.divmod(keys, vocab_size + 1)
    pairs = second > 0
    order = np.concatenate([np.flatnonzero(~pairs), np.flatnonzero(pairs)])
    pool = np.concatenate([first[~pairs], np.stack([first[pairs], second[pairs] - 1], 1).reshape(-1)])
    graph = Nodes()
    for name, number in (("zero", 0), ("one", 1), ("none", -1)):
        graph.constant(name, number, np.int64)
    for name, axes in (("axis0", [0]), ("axis1", [1]), ("two", [2]), ("classes", [len(weight)])):
        graph.constant(name, axes, np.int64)
    graph.constant("nothing", 0.0, np.float32)
    graph.constant("unit", 1.0, np.float32)
    graph.constant("smallest_norm", 1e-30, np.float32)
    graph.constant("idf", tensors["idf"], np.float32)
    graph.constant("weight", weight.T, np.float32)
    graph.constant("bias", tensors["bias"], np.float32)
    graph.add("Shape", ["tokens"], "shape")
    graph.add("Gather", ["shape", "one"], "length")
    graph.add("Range", ["zero", "length", "one"], "position")
    graph.add("Unsqueeze", ["lengths", "axis1"], "ends")
    graph.add("Less", ["position", "ends"], "inside")
    graph.add("Where", ["inside", "tokens", "none"], "ids")
    graph.add("TfIdfVectorizer", ["ids"], "count", mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
              ngram_counts=[0, int((~pairs).sum())], ngram_indexes=order.tolist(), pool_int64s=pool.tolist())  # fmt: skip
    # From here on only what a document has: [m] n-grams of all documents.
    graph.add("NonZero", ["count"], "found")
    graph.add("Transpose", ["found"], "where", perm=[1, 0])
    graph.add("Slice", ["where", "axis0", "axis1", "axis1"], "rows")  # [m, 1]
    graph.add("Slice", ["where", "axis1", "two", "axis1"], "place_column")
    graph.add("Squeeze", ["place_column", "axis1"], "place")
    graph.add("GatherND", ["count", "where"], "number")
    graph.add("Log", ["number"], "logarithm")
    graph.add("Add", ["logarithm", "unit"], "sublinear")
    graph.add("Gather", ["idf", "place"], "idf_here")
    graph.add("Mul", ["sublinear", "idf_here"], "value")
    graph.add("Mul", ["value", "value"], "square")
    graph.add("Unsqueeze", ["value", "axis1"], "values")
    graph.add("Gather", ["weight", "place"], "weight_here")
    graph.add("Mul", ["values", "weight_here"], "parts")  # [m, C]
    graph.add("Gather", ["shape", "axis0"], "batch")
    graph.add("Concat", ["batch", "classes"], "batch_classes", axis=0)
    graph.add("Expand", ["nothing", "batch"], "no_squares")
    graph.add("Expand", ["nothing", "batch_classes"], "no_parts")
    graph.add("ScatterND", ["no_squares", "rows", "square"], "squares", reduction="add")
    graph.add("ScatterND", ["no_parts", "rows", "parts"], "sums", reduction="add")
    graph.add("Sqrt", ["squares"], "norm")
    graph.add("Max", ["norm", "smallest_norm"], "positive_norm")
    graph.add("Unsqueeze", ["positive_norm", "axis1"], "norms")
    graph.add("Div", ["sums", "norms"], "scaled")
    graph.add("Add", ["scaled", "bias"], "logits")
    graph.add("Softmax", ["logits"], "probabilities", axis=1)
    return serialised(graph.nodes, graph.constants, len(weight))
