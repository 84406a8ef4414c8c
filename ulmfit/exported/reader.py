"""Probabilities of documents by ONNX Runtime, without torch.

A session has one thread of its own, so a small document never waits for a thread that another program keeps from
running. Several batches are read in parallel, each in the thread that called.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit.cores import usable_cores
from ulmfit.errors import UserError

MOST_ROWS = 32  # more documents in a batch are no faster (measured: 16 to 128, fp32 and 8 bits)
FEWEST_ROWS = 8  # minimum for a batch that exists only to occupy another core
_LONGEST_TO_SHORTEST = 3  # of a batch: a short document costs as much as the longest beside it
_BATCH_TOKENS = 262_144  # with padding: 2 MiB of ids
_MISSING = "ONNX Runtime is not installed; pip install 'ulmfit[onnx]'"


class OnnxReader:
    """A graph of `exported.graph` in an ONNX Runtime session. Several threads may use it.

    Args:
        model: the serialised model, or its file.

    Raises:
        UserError: ONNX Runtime is missing, or the model is damaged or not one of this package.
    """

    def __init__(self, model: bytes | Path) -> None:
        self._session = _session(model)
        self.num_classes: int = self._session.get_outputs()[1].shape[1]

    def probabilities(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, C] of documents, int arrays of at least one id each. They do not depend on the other documents.

        In fp32 the last bits may depend on them.
        """
        if len(documents) == 1:  # without the work of batches, which counts beside a millisecond
            return self._run(np.asarray(documents[0], np.int64)[None], np.array([len(documents[0])]))
        lengths = np.array([len(document) for document in documents], np.int64)
        cores = usable_cores()
        found = list(_batches(lengths, cores))

        def read(batch: np.ndarray) -> np.ndarray:
            tokens = np.zeros((len(batch), int(lengths[batch].max())), np.int64)
            for row, index in zip(tokens, batch, strict=True):
                row[: lengths[index]] = documents[index]
            return self._run(tokens, lengths[batch])

        if min(cores, len(found)) > 1:
            with ThreadPoolExecutor(min(cores, len(found)), "onnx") as executor:
                rows = list(executor.map(read, found))
        else:
            rows = list(map(read, found))
        result = np.empty((len(documents), self.num_classes), np.float32)
        for batch, probabilities in zip(found, rows, strict=True):
            result[batch] = probabilities
        return result

    def _run(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return self._session.run(["probabilities"], {"tokens": tokens, "lengths": lengths})[0]


def _batches(lengths: np.ndarray, cores: int) -> Iterator[np.ndarray]:
    """Divide documents into batches of similar lengths, longest first, with two batches per core if there are enough."""
    order = np.argsort(-lengths, kind="stable")
    most = min(MOST_ROWS, max(FEWEST_ROWS, -(-len(lengths) // (2 * cores))))
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + min(most, max(1, _BATCH_TOKENS // longest))]
        rows = rows[lengths[rows] * _LONGEST_TO_SHORTEST >= longest]
        yield rows
        start += len(rows)


def is_installed() -> bool:
    """Whether ONNX Runtime is there to read a model, and onnx to build one. It imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def _session(model: bytes | Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(_MISSING) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only, which are raised too
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the bindings' exceptions have no common base
        name = "the model" if isinstance(model, bytes) else str(model)
        first = str(error).splitlines()[0]
        raise UserError(f"{name} cannot be read by ONNX Runtime ({first}); export it again") from None
    outputs = session.get_outputs()
    good = [value.name for value in session.get_inputs()] == ["tokens", "lengths"]
    good = good and [value.name for value in outputs] == ["logits", "probabilities"]
    good = good and all(value.type == "tensor(float)" and len(value.shape) == 2 for value in outputs)
    if not good or not isinstance(outputs[1].shape[1], int):
        raise UserError(
            f"{model if isinstance(model, Path) else 'the model'} is not an exported classifier; export one"
        )
    return session
