"""Save and load models: folders with config.json, model.safetensors and tokenizer.json.

No pickles. The bytes of model.safetensors depend on the weights only, not on time, path or host.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.ngrams import NGramConfig, NGramNet
from ulmfit.model.stored_config import CONFIG, CURE, architecture_of, read_config
from ulmfit.model.stored_weights import WEIGHTS, read_weights, to_8_bits
from ulmfit.model.weights_check import check_weights
from ulmfit.model_kinds import NGRAMS
from ulmfit.paths import as_path
from ulmfit.shipped import shipped_folder
from ulmfit.tokenizer.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"


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
            f"{folder / WEIGHTS} has {layers} layers, so it is not the model that {CONFIG} tells of; {CURE}"
        )
    try:
        with torch.device("meta"):  # needs no memory and no random numbers; all tensors come from the file
            net = _build(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG} tells of no model ({str(error).splitlines()[0]}); {CURE}") from error
    _check_tensors(tensors, net.state_dict(), folder)
    check_weights(tensors, str(folder / WEIGHTS), CURE)
    net.load_state_dict(tensors, assign=True)
    if isinstance(net, NGramNet):
        try:
            net.check()
        except ValueError as error:
            raise UserError(f"{folder / WEIGHTS} is damaged ({error}); {CURE}") from None
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
        raise UserError(f"{path} does not exist; {CURE}")
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
    raise UserError(f"{path} holds no {WEIGHTS}, neither there nor in a folder model; {CURE}")


def _state_of_run(path: Path) -> Any:
    """The state of the run in a directory, as its status.json tells: running, done, preempted, failed; None if none."""
    try:
        status = files.parse_json((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status.get("state") if isinstance(status, dict) else None


def _build(config: dict[str, Any]) -> LanguageModelNet | ClassifierNet | NGramNet:
    architecture = architecture_of(config, Path(CONFIG))
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


def _check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            what = "lacks" if name not in found else "has an unknown tensor"
            raise UserError(f"{folder / WEIGHTS} {what} {name}, so it is not the model that {CONFIG} tells of; {CURE}")
        if found[name].shape != wanted[name].shape:
            raise UserError(
                f"{name} in {folder / WEIGHTS} has shape {list(found[name].shape)} where "
                f"{CONFIG} tells of {list(wanted[name].shape)}; {CURE}"
            )
