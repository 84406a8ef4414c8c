"""The weights that a language model begins with, taken from another model with another vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit.errors import UserError
from ulmfit.model.language_model import LanguageModelNet


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
