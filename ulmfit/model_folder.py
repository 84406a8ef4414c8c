"""The folder of a trained model, of either kind: loading, saving, its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.forks import one_thread_in_forks
from ulmfit.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from ulmfit.generation import LanguageModel
    from ulmfit.inference import TextClassifier
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.ngrams import NGramNet


# What to do with a model of the other kind, in Python and on the command line.
_OTHER = {
    "LanguageModel": "give its language model, or load it with TextClassifier (ulmfit predict)",
    "TextClassifier": "give a classifier, or load it with LanguageModel (ulmfit generate)",
}


def load(
    path: str | Path, wanted: Literal["LanguageModel", "TextClassifier"], device: str | torch.device | None
) -> tuple[Any, Tokenizer, dict]:
    """Network in evaluation mode, tokenizer and config of a model.

    Raises:
        UserError: it is missing, damaged, or of the other kind.
    """
    import torch

    from ulmfit.model.language_model import LanguageModelNet
    from ulmfit.model.pretrained import load_model

    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch is built without CUDA
        raise UserError(
            f"the device {excerpt(device)} cannot be used ({str(error).splitlines()[0]}); give cpu or cuda"
        ) from None
    one_thread_in_forks()
    net, tokenizer, config = load_model(path, device=device, language_model=wanted == "LanguageModel")
    if isinstance(net, LanguageModelNet) != (wanted == "LanguageModel"):
        kind = "a classifier" if wanted == "LanguageModel" else "a language model"
        raise UserError(f"the model in {path} is {kind} and is not one for {wanted}; {_OTHER[wanted]}")
    return net.eval(), tokenizer, config


def found(path: str | Path, *, language_model: bool = False) -> Path:
    """The folder with the files of a model; see `find_model`."""
    from ulmfit.model.pretrained import find_model

    return find_model(path, language_model=language_model)


def save(folder: Path, model: LanguageModel | TextClassifier) -> None:
    """Write a model so that `load` reads it.

    Raises:
        UserError: its weights are rounded to 8 bits.
    """
    from ulmfit.model.int8 import Int8AWDLSTM
    from ulmfit.model.pretrained import save_model

    net = model.net
    assert net is not None, "not an exported model"
    if isinstance(getattr(net, "encoder", None), Int8AWDLSTM):
        raise UserError("this model was loaded with int8 and its weights are rounded; load it without int8 to save it")
    save_model(folder, net, model.tokenizer, model.config)


def graph_of(net: ClassifierNet | NGramNet, config: dict[str, Any], bits: Literal[8, 32] = 32) -> bytes:
    """The ONNX graph of a classifier on the CPU, serialised.

    Args:
        config: config.json of the model.
        bits: as of `exported.graph.build`. N-grams have no products that 8 bits would speed up, and stay in fp32.

    Raises:
        UserError: onnx is missing, or the model is larger than an ONNX file may be.
    """
    from ulmfit.exported.graph import Weights, build
    from ulmfit.exported.ngram_graph import build_ngrams
    from ulmfit.model.ngrams import NGramNet

    tensors = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    if isinstance(net, NGramNet):
        return build_ngrams(tensors, net.config.vocab_size)
    sizes = {"architecture": {"num_layers": net.config.num_layers}, "max_len": net.max_len}
    return build(Weights.of(tensors, {**config, **sizes}), bits)


def card_of(model: LanguageModel | TextClassifier, usage: str, config: dict[str, Any], given: dict[str, Any]) -> str:
    """The text of the card; see `model_card`."""
    from ulmfit.model_card import model_card

    net = model.net
    size = sum(parameter.numel() for parameter in net.parameters()) if net is not None else None
    return model_card(model.card_data, model.loaded_from, config, size=size, usage=usage, **given)
