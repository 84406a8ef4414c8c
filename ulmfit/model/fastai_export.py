"""Writes a model as the files that fastai 2.8 loads: models/NAME.pth and models/itos.pkl.

fastai reads pickles, so these files are pickles: of tensors by torch.save, and of one list of strings.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulmfit import files
from ulmfit.errors import UserError
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.tokenizer.tokenizer import Tokenizer

MODELS, WORDS = "models", "itos.pkl"
_ENCODER, _LM, _CLF = "encoder", "language_model", "classifier"
_MOST_ERROR = 1e-4  # of a logit, relative, by leaving out the biases of the head


def write_fastai(
    folder: Path,
    net: LanguageModelNet | ClassifierNet,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    *,
    name: str | None = None,
) -> list[Path]:
    """Write the whole model, its encoder, the words in id order, and a README.md that tells how fastai loads them.

    Returns the files.

    Args:
        name: of the folder in README.md, if it will be another one.

    Raises:
        UserError: a classifier that fastai's head cannot hold, or of several labels a text.
    """
    if isinstance(net, ClassifierNet) and net.multi_label:
        raise UserError("--to fastai writes classifiers of one label a text, and this one gives several; leave it out")
    state = fastai_state(net, config.get("temperature") or 1.0)
    prefix = "0.module." if isinstance(net, ClassifierNet) else "0."
    encoder = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    kind = _CLF if isinstance(net, ClassifierNet) else _LM
    models = folder / MODELS
    models.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, tensors in ((kind, state), (_ENCODER, encoder)):
        written.append(models / f"{stem}.pth")
        with files.replacing(written[-1]) as aside:
            torch.save(tensors, aside)
    written.append(models / WORDS)
    with files.replacing(written[-1]) as aside:
        aside.write_bytes(pickle.dumps(tokenizer.vocab, protocol=2))
    written.append(folder / "README.md")
    files.write_text(written[-1], _page(name or folder.name, net, tokenizer, config))
    return written


def fastai_state(net: LanguageModelNet | ClassifierNet, temperature: float = 1.0) -> dict[str, Tensor]:
    """The state dict of fastai 2.8's `get_language_model` or `get_text_classifier` with the same sizes.

    fastai's head has no biases in its linear layers. They move into the shift of the batch norm before, which gives the
    same logits. It knows no temperature either, so that a classifier's is divided into its last layer.

    Raises:
        UserError: the bias has no place there, as with more classes than the head is wide.
    """
    ours = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    prefix = "0.module." if isinstance(net, ClassifierNet) else "0."
    embedding = ours["encoder.embedding.weight"]
    state = {f"{prefix}encoder.weight": embedding, f"{prefix}encoder_dp.emb.weight": embedding}
    for i in range(net.config.num_layers):
        layer, inside = f"encoder.layers.{i}.", f"{prefix}rnns.{i}."
        state[f"{inside}weight_hh_l0_raw"] = ours[f"{layer}weight_hh"]
        for name in ("weight_ih", "bias_ih", "bias_hh"):
            state[f"{inside}module.{name}_l0"] = ours[layer + name]
    if isinstance(net, LanguageModelNet):
        return state | {"1.decoder.weight": embedding, "1.decoder.bias": ours["decoder_bias"]}
    for number in (1, 2):
        norm, linear = f"head.norm{number}.", f"head.linear{number}."
        place = f"1.layers.{number - 1}."
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"{place}0.{name}"] = ours[norm + name]
        weight, bias = ours[f"{linear}weight"], ours[f"{linear}bias"]
        state[f"{place}0.bias"] = ours[f"{norm}bias"] + _shift(weight, bias)
        state[f"{place}2.weight"] = weight / temperature if number == 2 else weight
    return state


def _shift(weight: Tensor, bias: Tensor) -> Tensor:
    """The smallest x with weight @ x = bias. weight is [n, m], bias [n], x [m].

    Raises:
        UserError: there is none.
    """
    wide = weight.double()
    x = torch.linalg.lstsq(wide, bias.double()[:, None], driver="gelsd").solution[:, 0]
    error = (wide @ x - bias.double()).abs().max()
    if error > _MOST_ERROR * bias.abs().max().clamp(min=1e-3):
        rows, columns = weight.shape
        raise UserError(
            f"the head's layer of {columns} inputs and {rows} outputs has a bias that fastai 2 cannot hold, for its "
            "layers have none; export the language model of this classifier, whose encoder fastai loads"
        )
    return x.to(weight.dtype)


def _page(name: str, net: LanguageModelNet | ClassifierNet, tokenizer: Tokenizer, config: dict[str, Any]) -> str:
    sizes = net.config
    words, path = repr(f"{name}/{MODELS}/{WORDS}"), repr(name)  # a name may hold quotes and line breaks
    given = f'{{"emb_sz": {sizes.embedding_size}, "n_hid": {sizes.hidden_size}, "n_layers": {sizes.num_layers}}}'
    backwards = ", backwards=True" if config.get("backwards") else ""
    lines = [
        "# Weights for fastai 2.8",
        "",
        f"Written by ulmfit. `{MODELS}/{WORDS}` has the {len(tokenizer):,} words by id; each `.pth` is a state dict.",
        "",
        "```python",
        "from fastai.text.all import *",
        "",
        f"words = load_pickle({words})",
    ]
    block = f'TextBlock.from_df("text", vocab=words{", is_lm=True" if isinstance(net, LanguageModelNet) else ""}{backwards})'
    if isinstance(net, LanguageModelNet):
        lines += [
            f'dls = DataBlock({block}, get_x=ColReader("text")).dataloaders(frame)',
            f"config = awd_lstm_lm_config | {given}",
            f"learn = language_model_learner(dls, AWD_LSTM, config=config, path={path}, pretrained=False{backwards})",
            f'learn.load("{_LM}", with_opt=False)  # or learn.load_encoder("{_ENCODER}") of a text_classifier_learner',
        ]
    else:
        lines += [
            f"blocks = ({block}, CategoryBlock(vocab={list(map(str, config['label_names']))!r}))",
            'data = DataBlock(blocks, get_x=ColReader("text"), get_y=ColReader("label"))',
            f"config = awd_lstm_clas_config | {given}",
            f"learn = text_classifier_learner(data.dataloaders(frame), AWD_LSTM, config=config, path={path},",
            f"    pretrained=False, lin_ftrs=[{net.head_hidden}], seq_len={net.bptt}, max_len={net.max_len}{backwards})",
            f'learn.load("{_CLF}", with_opt=False)',
        ]
    lines += [
        "```",
        "",
        "The same ids give the same numbers in both packages; fastai's own tokenizer splits some texts into other words.",
        f"The text rules of this vocabulary are those of {tokenizer.rules.replace('fastai', 'fastai ')}.",
    ]
    if tokenizer.subword:
        lines += ["It has pieces of words, which fastai's word tokenizer does not make: give it ids of tokenizer.json."]
    return "\n".join(lines) + "\n"
