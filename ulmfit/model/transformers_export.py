"""Writes a classifier as a folder that transformers loads: AutoTokenizer, AutoModelForSequenceClassification, pipeline.

The folder has the code of the model, so it needs `trust_remote_code=True` and not this package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from huggingface_hub import ModelCardData
from torch import Tensor

from ulmfit import files
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.pretrained import TOKENIZER
from ulmfit.model.stored_config import CONFIG
from ulmfit.model.stored_weights import WEIGHTS
from ulmfit.model_card import CARD, model_card
from ulmfit.tokenizer.tokenizer import Tokenizer

CODE = "modeling_ulmfit"
TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL = {"unk_token": "xxunk", "pad_token": "xxpad", "bos_token": "xxbos"}
_USAGE = """from transformers import pipeline

classify = pipeline("text-classification", model="NAME", trust_remote_code=True)
classify("An incredibly nice breath of fresh air")
"""


def write_transformers(
    folder: Path, net: ClassifierNet, tokenizer: Tokenizer, config: dict[str, Any], *, source: Path
) -> None:
    """Write weights, configuration, code, tokenizer and model card.

    Args:
        config: config.json of the model.
        source: the folder that it was loaded from, for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / TOKENIZER)
    _write_json(folder / TOKENIZER_CONFIG, tokenizer_config(tokenizer))
    _write_json(folder / CONFIG, _config(net, tokenizer, config))
    files.write_text(folder / f"{CODE}.py", Path(__file__).with_name("transformers_code.py").read_text("utf-8"))
    with files.replacing(folder / WEIGHTS) as aside, files.usual_mode(aside):
        safetensors.torch.save_file(_state(net), aside, {"format": "pt"})
    base = ModelCardData(tags=["ulmfit", "text-classification"], pipeline_tag="text-classification")
    size = sum(parameter.numel() for parameter in net.parameters())
    card = model_card(base, source, config, size=size, usage=_USAGE, library="transformers")
    files.write_text(folder / CARD, card)


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens are found in the normalised text, as all other words are.

    xxunk of unigram pieces is an added token of tokenizer.json already, and found in another way there.
    """
    special = {name: token for name, token in _SPECIAL.items() if (tokenizer.subword, token) != ("unigram", "xxunk")}
    added = {
        str(tokenizer.vocab.index(token)): {"content": token, "normalized": True, "single_word": True, "lstrip": False,
                                            "rstrip": False, "special": True}
        for token in special.values()
    }  # fmt: skip
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
        **special,
    }


def _config(net: ClassifierNet, tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    names = config["label_names"]
    return {
        "architectures": ["UlmfitForSequenceClassification"],
        "auto_map": {
            "AutoConfig": f"{CODE}.UlmfitConfig",
            "AutoModelForSequenceClassification": f"{CODE}.UlmfitForSequenceClassification",
        },
        "model_type": "ulmfit",
        "dtype": "float32",
        "vocab_size": net.config.vocab_size,
        "embedding_size": net.config.embedding_size,
        "hidden_size": net.config.hidden_size,
        "num_hidden_layers": net.config.num_layers,
        "head_hidden": net.head_hidden,
        "max_len": net.max_len,
        "backwards": bool(config.get("backwards")),
        "logit_temperature": config.get("temperature") or 1.0,
        "thresholds": config.get("thresholds"),
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "problem_type": "multi_label_classification" if net.multi_label else "single_label_classification",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _state(net: ClassifierNet) -> dict[str, Tensor]:
    """The tensors under the names of transformers_code.py."""
    state = {}
    for name, tensor in net.state_dict().items():
        name = name.removeprefix("encoder.").removeprefix("head.")
        if name.startswith("layers."):
            name = f"{name}_l0"
        state[name] = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
