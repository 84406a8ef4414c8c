"""Reads files of fastai 1 and 2 (language model, encoder, classifier) without executing pickled code.

Layouts (of state dicts saved by fastai 1.0.64 and 2.8): a language model has `0.encoder`, `0.rnns.{i}` and
`1.decoder`; an encoder file has the first two without `0.`; a classifier has `0.module.` and a head `1.layers`.
fastai 1 stores a second copy of the recurrent weight, with dropout applied, besides the raw one. Files saved with
the optimizer have the form `{'model': ..., 'opt': ...}`.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ulmfit import private_api
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.vocabulary_file import read_vocabulary as read_vocabulary  # 0.2.0 had it here
from ulmfit.model.vocabulary_file import read_words_and_labels
from ulmfit.model.weights_check import check_weights


@dataclass(frozen=True)
class FastaiModel:
    """Content of a fastai file.

    Attributes:
        state: the tensors, with this package's names.
        config: the sizes.
        vocab: the words in id order, one for each row of the embedding.
        kind: what the file holds.
        version: of fastai, by the layout.
        labels: the classes of a classifier, where the vocabulary file tells them.
    """

    state: dict[str, Tensor]
    config: AWDLSTMConfig
    vocab: list[str]
    kind: Literal["language_model", "encoder", "classifier"]
    version: Literal[1, 2]
    labels: list[str] | None = None


def load_fastai(weights: str | os.PathLike, vocabulary: str | os.PathLike) -> FastaiModel:
    """Read a fastai .pth file and its vocabulary (.pkl, .json or .txt). No code in them is executed.

    Raises:
        UserError: a file is missing or not fastai's, the architecture is not AWD-LSTM, or the two files do not fit
            together.
    """
    content = _read_torch(Path(weights))
    state = fastai_state_dict(content)
    vocab, labels = read_words_and_labels(vocabulary)
    check_weights(state, str(weights), "save the model in fastai again")
    embedding = state["encoder.embedding.weight"]
    if any(tensor.dim() != _dimensions(name) for name, tensor in state.items()):
        raise UserError(f"{weights} has tensors of other dimensions than an AWD-LSTM; give one saved by fastai")
    vocab = _padded(vocab, len(embedding))
    if len(vocab) != len(embedding):
        raise UserError(
            f"{vocabulary} has {len(vocab)} words but {weights} {len(embedding)}; give the "
            "vocabulary that was saved with these weights"
        )
    num_layers = sum(name.endswith("weight_hh") for name in state)
    hidden = state["encoder.layers.0.weight_hh"].shape[1] if num_layers > 1 else embedding.shape[1]
    config = AWDLSTMConfig(len(vocab), embedding.shape[1], hidden, num_layers)
    kind: Literal["language_model", "encoder", "classifier"]
    kind = "language_model" if "decoder_bias" in state else "encoder"
    if any(name.startswith("head.") for name in state):
        kind = "classifier"
    return FastaiModel(state, config, vocab, kind, _version(content), labels)


def _padded(vocab: list[str], rows: int) -> list[str]:
    """A vocabulary with the filler words that fastai adds to reach a multiple of 8, where the list was saved without.

    Fillers stand at the end. The first words must be fastai's, or the list may lack others.
    """
    missing = rows - len(vocab)
    if rows % 8 == 0 and 0 < missing <= 8 and vocab[:3] == ["xxunk", "xxpad", "xxbos"]:
        return vocab + ["xxfake"] * missing
    return vocab


def _version(content: Mapping[str, Any]) -> Literal[1, 2]:
    """The version of fastai that saved a state dict: 1 stores the dropped weight too, and its head is flat."""
    state = content["model"] if isinstance(content.get("model"), Mapping) else content
    first = any(re.search(r"rnns\.\d+\.module\.weight_hh_l0$|^1\.layers\.\d+\.weight$", name) for name in state)
    return 1 if first else 2


def _dimensions(name: str) -> int:
    return 2 if "weight" in name and "norm" not in name else 0 if name.endswith("num_batches_tracked") else 1


def fastai_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename fastai's tensors to this package's names.

    It accepts language models, encoders and classifiers of fastai 1 and 2, with or without the optimizer. A
    classifier's linear layers without bias (fastai 2) get a bias of zeros.

    Raises:
        UserError: anything else.
    """
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value) for name, value in state.items()
    ):
        raise UserError("the file holds no state dict; save one by learn.save or learn.save_encoder")
    prefix = next((prefix for prefix in ("0.module.", "0.", "") if f"{prefix}encoder.weight" in state), None)
    if prefix is None:
        raise UserError("the file has no encoder.weight; give an AWD-LSTM saved by fastai")
    result = {"encoder.embedding.weight": state[f"{prefix}encoder.weight"]}
    pattern = re.compile(rf"{re.escape(prefix)}rnns\.(\d+)\.")
    layers = {int(match[1]) for name in state if (match := pattern.match(name))}
    if not layers or layers != set(range(len(layers))):
        raise UserError("the file has no rnns.0; give an AWD-LSTM saved by fastai")
    for i in range(len(layers)):
        result |= {f"encoder.layers.{i}.{name}": tensor for name, tensor in _layer(state, f"{prefix}rnns.{i}.").items()}
    if prefix == "0.module.":
        result |= _head(state)
    elif "1.decoder.weight" in state or "1.decoder.bias" in state:
        embedding = result["encoder.embedding.weight"]
        if not torch.equal(state.get("1.decoder.weight", embedding), embedding):
            raise UserError("the decoder of the file is not tied to its embedding; give a model with tied weights")
        bias = state.get("1.decoder.bias")
        result["decoder_bias"] = embedding.new_zeros(len(embedding)) if bias is None else bias
    half = (torch.float16, torch.bfloat16)
    return {
        name: tensor.detach().to(torch.float32 if tensor.dtype in half else tensor.dtype, copy=True).contiguous()
        for name, tensor in result.items()
    }


def _is_plain(tensor: Tensor) -> bool:
    """Whether all elements of a tensor are in the file. A view of few elements could claim the shape of many."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _layer(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One LSTM layer. The recurrent weight is `_raw`; the copy without `_raw` has dropped entries."""
    if any(name.startswith(prefix) and name.endswith("_reverse") for name in state):
        raise UserError("the file holds a bidirectional LSTM; give an AWD-LSTM of one direction")
    places = {
        "weight_ih": ["module.weight_ih_l0"],
        "bias_ih": ["module.bias_ih_l0"],
        "bias_hh": ["module.bias_hh_l0"],
        "weight_hh": ["weight_hh_l0_raw", "module.weight_hh_l0_raw", "module.weight_hh_l0"],
    }
    layer = {}
    for ours, names in places.items():
        found = next((prefix + name for name in names if prefix + name in state), None)
        if found is None:
            raise UserError(f"the file lacks {prefix}{names[0]}; another model than AWD-LSTM")
        layer[ours] = state[found]
    return layer


def _head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's head. Indices of layers vary with version and dropout, so order and dimensions identify them."""
    layers: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"1\.layers\.([\d.]+)\.(\w+)", name):
            layers.setdefault(tuple(map(int, match[1].split("."))), {})[match[2]] = tensor
    parts = [layers[place] for place in sorted(layers)]
    if [part["weight"].dim() if "weight" in part else 0 for part in parts] != [1, 2, 1, 2]:
        raise UserError("the head of the file is not fastai's default; give one with one hidden layer")
    result: dict[str, Tensor] = {}
    for ours, part in zip(("norm1", "linear1", "norm2", "linear2"), parts, strict=True):
        if ours.startswith("linear"):
            part = {"bias": part["weight"].new_zeros(len(part["weight"])), **part}
        result |= {f"head.{ours}.{name}": tensor for name, tensor in part.items()}
    return result


def _check_size(path: Path) -> None:
    """Refuse what could grow a thousandfold when it is read.

    torch stores parts uncompressed, so one that is compressed is none of fastai's. It is torch's own reader that is
    asked, since another one may find other parts in the file. And of all that `weights_only` allows, a bytearray is made
    from a mere number.

    Raises:
        ValueError: it is so.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04" and private_api.unpacked_size(path) > path.stat().st_size:
            raise ValueError("it is compressed")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:
                raise ValueError("it holds a bytearray")


class _HyperParameters:
    """Replacement of fastcore's list type, in which fastai 2 stores the optimizer's settings. They are ignored."""

    def __setstate__(self, state: object) -> None:
        pass


def _read_torch(path: Path) -> Mapping[str, Any]:
    """torch.load without arbitrary code: only tensors and plain containers."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the .pth file that fastai saved")
    try:
        _check_size(path)
        with torch.serialization.safe_globals([(_HyperParameters, "fastcore.foundation.L")]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise UserError(
            f"{path} is not a file of plain weights ({reason}); save it in fastai with "
            "learn.save(name, with_opt=False) or learn.save_encoder"
        ) from error
