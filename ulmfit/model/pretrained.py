"""Save and load models, and initialise from them: folders with config.json, model.safetensors and tokenizer.json.

No pickles. The bytes of model.safetensors depend on the weights only, not on time, path or host.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.ngrams import NGramConfig, NGramNet
from ulmfit.model.weights_check import check_weights
from ulmfit.model_kinds import NGRAMS, is_ngrams
from ulmfit.paths import as_path
from ulmfit.shipped import shipped_folder
from ulmfit.tokenizer.tokenizer import Tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

#: Increased when older versions of this package cannot read new files. 2: weights in 8 bits. 3: several labels. 4: n-grams.
FORMAT_VERSION = 4

#: Suffix of the tensor name for the scales of an 8-bit matrix, one per row.
SCALES = ".scales"

_CURE = "give the output directory of a finished training, or train again"


def save_model(
    folder: str | os.PathLike,
    net: LanguageModelNet | ClassifierNet | NGramNet,
    tokenizer: Tokenizer,
    config: dict[str, Any] | None = None,
    *,
    bits: Literal[8, 32] = 32,
) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `folder`, each atomically.

    `config` has entries that the net does not know: `label_names` (required for a classifier), `backwards`,
    `temperature` (of a calibrated classifier), and any other JSON values. The net's own settings override entries of the same name. With `bits` 8 the matrices are
    rounded (see `to_8_bits`), and the file is a quarter as large.
    """
    folder = Path(folder)
    assert len(tokenizer) == net.config.vocab_size, "the tokenizer is not this model's"
    content = {
        "backwards": False,
        **(config or {}),
        "format_version": 1 if bits == 32 else 2,
        "architecture": asdict(net.config),
        "vocabulary": tokenizer.vocabulary_fingerprint,
    }
    if isinstance(net, ClassifierNet):
        assert len(content["label_names"]) == net.num_classes
        content |= {
            "task": "classifier",
            "bptt": net.bptt,
            "max_len": net.max_len,
            "gradient_window": net.gradient_window,
            "head_hidden": net.head_hidden,
            "head_p": net.head_p,
        }
        if net.multi_label:
            content |= {"format_version": 3, "multi_label": True}
    elif isinstance(net, NGramNet):
        assert len(content["label_names"]) == net.num_classes
        content |= {"task": "classifier", "kind": NGRAMS, "format_version": 4}
    else:
        content["task"] = "language_model"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if bits == 8:
        tensors = to_8_bits(tensors)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"

    folder.mkdir(parents=True, exist_ok=True)
    files.sync(folder.parent)  # the entry of a new folder
    files.remove_torn(folder)
    tokenizer.save(folder / TOKENIZER)
    files.write_text(folder / CONFIG, text)
    with files.replacing(folder / WEIGHTS) as aside, files.usual_mode(aside):
        safetensors.torch.save_file(tensors, aside)


def load_model(
    path: str | os.PathLike, *, device: torch.device | str = "cpu", language_model: bool = False
) -> tuple[LanguageModelNet | ClassifierNet | NGramNet, Tokenizer, dict[str, Any]]:
    """Load a net (on `device`), its tokenizer and its config.json.

    `path` is what `find_model` takes. Weights are float32, or float64 if saved as such.

    Raises:
        UserError: a file is missing or damaged, the files do not fit together, or weights are NaN or infinite.
    """
    folder = find_model(path, language_model=language_model)
    config = read_config(folder)
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    vocab_size = config["architecture"]["vocab_size"]
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"{folder / TOKENIZER} has {len(tokenizer)} words but the model {vocab_size}; put "
            "the tokenizer.json back that was saved with the model"
        )
    if config.get("vocabulary", tokenizer.vocabulary_fingerprint) != tokenizer.vocabulary_fingerprint:
        raise UserError(
            f"{folder / TOKENIZER} has other words than the model was trained with; put the "
            "tokenizer.json back that was saved with the model"
        )
    tensors = read_weights(folder)
    layers = sum(name.endswith("weight_hh") for name in tensors)
    if layers != config["architecture"].get("num_layers", 0):  # before they are built: a damaged number may be huge
        raise UserError(
            f"{folder / WEIGHTS} has {layers} layers, so it is not the model that {CONFIG} tells of; {_CURE}"
        )
    try:
        with torch.device("meta"):  # needs no memory and no random numbers; all tensors come from the file
            net = _build(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG} tells of no model ({str(error).splitlines()[0]}); {_CURE}") from error
    _check_tensors(tensors, net.state_dict(), folder)
    check_weights(tensors, str(folder / WEIGHTS), _CURE)
    net.load_state_dict(tensors, assign=True)
    if isinstance(net, NGramNet):
        try:
            net.check()
        except ValueError as error:
            raise UserError(f"{folder / WEIGHTS} is damaged ({error}); {_CURE}") from None
    return net.to(device), tokenizer, config


def fault_of(folder: Path) -> str | None:
    """Why a model folder cannot be loaded, in words; None if it can."""
    try:
        load_model(folder)
    except UserError as error:
        return str(error).partition(";")[0]
    return None


def find_model(path: str | os.PathLike, *, language_model: bool = False) -> Path:
    """The folder with model.safetensors: `path` itself, its model/, or the model of that name in the package.

    With `language_model`, the output directory of `ulmfit fit` is its language model, else its classifier.

    Raises:
        UserError: there is none.
    """
    path = Path(as_path(path))
    if shipped := shipped_folder(str(path)):
        return shipped
    for folder in (path, *([path / "lm" / "model"] if language_model else []), path / "model"):
        if (folder / WEIGHTS).is_file():
            for name in (CONFIG, TOKENIZER):
                if not (folder / name).is_file():
                    raise UserError(f"{folder} holds {WEIGHTS} but no {name}; copy the whole folder")
            return folder
    if not path.exists():
        raise UserError(f"{path} does not exist; {_CURE}")
    for folder in (path, path / "model"):
        if (folder / "bundle.json").is_file():  # see ulmfit/bundle.py
            cure = f"give one of them, such as {folder / '1'}"
            if language_model:
                job = folder.parent / "lm"
                cure = (
                    "give the language model that they were made from"
                    + f", {job}" * (job / "model" / WEIGHTS).is_file()
                )
            raise UserError(f"{folder} is a bundle of classifiers; {cure}")
    if (path / "model.onnx").is_file():  # see ulmfit/exported
        raise UserError(
            f"{path} holds an exported classifier, which only ulmfit predict and TextClassifier can use; "
            "give the run that it was exported from"
        )
    if (state := _state_of_run(path)) not in (None, "done"):
        raise UserError(
            f"the run in {path} has no model yet, because it is not done (status.json: {excerpt(state)}); give the "
            "command that began it again until it is done"
        )
    raise UserError(f"{path} holds no {WEIGHTS}, neither there nor in a folder model; {_CURE}")


def _state_of_run(path: Path) -> Any:
    """The state of the run in a directory, as its status.json tells: running, done, preempted, failed; None if none."""
    try:
        status = files.parse_json((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status.get("state") if isinstance(status, dict) else None


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Read and check config.json of a model folder. Unknown keys are kept."""
    path = Path(folder) / CONFIG
    try:
        config = files.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_CURE}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object; {_CURE}")
    if _field(config, "format_version", int, path) > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {config['format_version']} and this ulmfit reads up to "
            f"{FORMAT_VERSION}; update ulmfit"
        )
    task = _field(config, "task", str, path)
    if task not in ("language_model", "classifier"):
        raise UserError(f"{path} has task {excerpt(task)}, which is neither language_model nor classifier; {_CURE}")
    _field(config, "backwards", bool, path)
    _architecture(config, path)
    if task == "classifier":
        names = _field(config, "label_names", list, path)
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"label_names in {path} is not a list of names; {_CURE}")
    elif is_ngrams(config):
        raise UserError(f"{path} has n-grams as a language model; {_CURE}")
    if task == "classifier" and not is_ngrams(config):
        for name in ("bptt", "max_len", "head_hidden"):
            _field(config, name, int, path)
        _field(config, "head_p", float, path)
        if config.get("multi_label") is not None:
            _field(config, "multi_label", bool, path)
        if config.get("thresholds") is not None:
            _thresholds(config, path)
        if config.get("gradient_window") is not None:
            _field(config, "gradient_window", int, path)
        if "temperature" in config and not 0 < _field(config, "temperature", float, path) < math.inf:  # nan too
            raise UserError(f"temperature in {path} is {config['temperature']}, not a number above 0; {_CURE}")
    return config


def _thresholds(config: dict[str, Any], path: Path) -> None:
    values = _field(config, "thresholds", list, path)
    good = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    if not good or len(values) != len(config["label_names"]):
        raise UserError(f"thresholds in {path} are not a number from 0 to 1 for each of label_names; {_CURE}")


def _field(config: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    value = config.get(name)
    good = isinstance(value, (int, float) if kind is float else kind)
    if not good or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} in {path} is {excerpt(value)}, not of type {kind.__name__}; {_CURE}")
    return value


def _architecture(config: dict[str, Any], path: Path) -> AWDLSTMConfig | NGramConfig:
    architecture = _field(config, "architecture", dict, path)
    kinds = {"int": int, "float": float}
    kind = NGramConfig if is_ngrams(config) else AWDLSTMConfig
    return kind(**{part.name: _field(architecture, part.name, kinds[str(part.type)], path) for part in fields(kind)})


def _build(config: dict[str, Any]) -> LanguageModelNet | ClassifierNet | NGramNet:
    architecture = _architecture(config, Path(CONFIG))
    if isinstance(architecture, NGramConfig):
        return NGramNet(architecture, len(config["label_names"]))
    if config["task"] == "language_model":
        return LanguageModelNet(architecture)
    return ClassifierNet(
        architecture,
        len(config["label_names"]),
        bptt=config["bptt"],
        max_len=config["max_len"],
        head_hidden=config["head_hidden"],
        head_p=config["head_p"],
        gradient_window=config.get("gradient_window"),
        multi_label=config.get("multi_label", False),
    )


def to_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert matrices [n, m] to int8 with one float32 scale per row, `name + SCALES` [n], and vectors to float16.

    The scale is the row's largest absolute value / 127, so the rounding error of a weight is at most half the scale.
    """
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            scales = tensor.abs().amax(1).clamp(min=1e-12) / 127
            stored[name] = (tensor / scales[:, None]).round().to(torch.int8)
            stored[name + SCALES] = scales.float()
        else:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
    return stored


def _from_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the matrices of `to_8_bits` back to float32. Other tensors are unchanged.

    Raises:
        ValueError: the scales of a matrix do not fit it.
    """
    for name, scales in tensors.items():
        matrix = tensors.get(name.removesuffix(SCALES))
        if name.endswith(SCALES) and (
            matrix is None or matrix.dtype != torch.int8 or not scales.is_floating_point()
            or matrix.ndim != 2 or scales.shape != matrix.shape[:1]
        ):  # fmt: skip
            raise ValueError(f"{name} are no scales of a matrix in 8 bits")
    return {
        name: tensor.float() * tensors[name + SCALES][:, None] if name + SCALES in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALES)
    }


def read_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of model.safetensors on the CPU. Half precision and 8 bits become float32, as the CPU's LSTM needs.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(folder) / WEIGHTS
    half = (torch.float16, torch.bfloat16)
    try:
        tensors = safetensors.torch.load_file(path)
        # A copy, because safetensors maps the file: if the file were overwritten, the model would change.
        return _from_8_bits(
            {
                name: tensor.to(torch.float32 if tensor.dtype in half else tensor.dtype, copy=True)
                for name, tensor in tensors.items()
            }
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise UserError(f"{path} cannot be read ({error}); {_CURE}") from error


def _check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            what = "lacks" if name not in found else "has an unknown tensor"
            raise UserError(f"{folder / WEIGHTS} {what} {name}, so it is not the model that {CONFIG} tells of; {_CURE}")
        if found[name].shape != wanted[name].shape:
            raise UserError(
                f"{name} in {folder / WEIGHTS} has shape {list(found[name].shape)} where "
                f"{CONFIG} tells of {list(wanted[name].shape)}; {_CURE}"
            )


def transfer_vocabulary(
    old_weight: Tensor, old_bias: Tensor | None, old_vocab: Sequence[str], new_vocab: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """Embedding [V', E] and decoder bias [V'] for a new vocabulary.

    Rows of known words are copied. New words get the mean of all old rows and the mean bias, as in fastai's
    convert_weights.
    """
    assert len(old_vocab) == old_weight.shape[0]
    place: dict[str, int] = {}
    for i, word in enumerate(old_vocab):
        place.setdefault(word, i)  # the filler word xxfake occurs several times
    index = torch.tensor([place.get(word, -1) for word in new_vocab], device=old_weight.device)
    known = index >= 0

    def transfer(old: Tensor) -> Tensor:
        new = old.mean(0, keepdim=True).expand(len(new_vocab), *old.shape[1:]).clone()
        new[known] = old[index[known]]
        return new

    with torch.no_grad():
        return transfer(old_weight), None if old_bias is None else transfer(old_bias)


def init_language_model(
    net: LanguageModelNet, old: dict[str, Tensor], old_vocab: Sequence[str], new_vocab: Sequence[str]
) -> None:
    """Initialise `net`, whose vocabulary is `new_vocab`, from another model's state dict (this package's names).

    If `old` has no decoder bias (an encoder or a classifier), the bias keeps its initial zeros, as in fastai. A
    classifier's head is ignored.

    Raises:
        UserError: the sizes of the layers differ.
    """
    state = dict(old)
    state["encoder.embedding.weight"], bias = transfer_vocabulary(
        old["encoder.embedding.weight"], old.get("decoder_bias"), old_vocab, new_vocab
    )
    state["decoder_bias"] = net.decoder_bias.detach().clone() if bias is None else bias
    for name, tensor in net.state_dict().items():
        if name not in state or state[name].shape != tensor.shape:
            shape = list(state[name].shape) if name in state else "missing"
            raise UserError(
                f"the weights to start from do not fit ({name} is {shape} there and "
                f"{list(tensor.shape)} here); choose the preset that they were trained with"
            )
    net.load_state_dict({name: state[name] for name in net.state_dict()})
