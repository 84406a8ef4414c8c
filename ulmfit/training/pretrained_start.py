"""The language model that a training starts from: of a run, of the package, or in the files of fastai."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ulmfit import files
from ulmfit.config import TrainConfig
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.fastai_format import load_fastai
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import find_model, load_model
from ulmfit.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pretrained:
    """A language model to start from.

    Attributes:
        state: tensors by this package's names: `encoder.*`, and `decoder_bias` if `kind` is language_model.
        tokenizer: None if the weights came with a vocabulary only (fastai).
        fingerprint: of the weights file.
        kind: what the file holds.
        revision: the commit on the hub; None if it came from elsewhere.
    """

    config: AWDLSTMConfig
    state: dict[str, Tensor]
    vocab: list[str]
    tokenizer: Tokenizer | None
    backwards: bool
    fingerprint: str
    kind: Literal["language_model", "encoder", "classifier"] = "language_model"
    revision: str | None = None

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's tensors, names without the prefix `encoder.`."""
        return {
            name.removeprefix("encoder."): tensor for name, tensor in self.state.items() if name.startswith("encoder.")
        }


def open_pretrained(path: str, *, named: str | None = None) -> Pretrained:
    """Load a run directory of this package, its model/, or a fastai .pth with its vocabulary in the same folder.

    Args:
        named: what the user called it, if that is not the path.

    Raises:
        UserError: no usable model is there; the message says what is missing.
    """
    if path.endswith(".pth"):
        beside = [
            file
            for pattern in ("itos*.pkl", "*vocab*.pkl", "*itos*", "*vocab*")
            for file in sorted(Path(path).parent.glob(pattern))
            if file.suffix in (".pkl", ".json", ".txt") and file != Path(path)
        ]
        if not beside:
            raise UserError(f"{path} needs its vocabulary beside it; put itos.pkl (or .json, .txt) in the same folder")
        model = load_fastai(path, beside[0])
        return Pretrained(model.config, model.state, model.vocab, None, False, files.fingerprint(path), model.kind)
    folder = find_model(path, language_model=True)
    net, tokenizer, saved = load_model(folder)
    if not isinstance(net, LanguageModelNet):
        raise UserError(f"{named or path} is a classifier; give the language model it was made from")
    return Pretrained(
        net.config,
        net.state_dict(),
        tokenizer.vocab,
        tokenizer,
        saved["backwards"],
        files.fingerprint(folder / "model.safetensors"),
    )


def check_direction(pretrained: Pretrained, config: TrainConfig, flag: str) -> None:
    """Raise UserError, naming `flag`, if the model reads in the other direction (forward or backward).

    fastai's files do not store their direction, so they are not checked.
    """
    if pretrained.tokenizer is not None and pretrained.backwards != config.backwards:
        direction, cure = ("backwards", "add") if pretrained.backwards else ("forwards", "leave out")
        raise UserError(f"{flag} reads {direction}; {cure} --backwards")
