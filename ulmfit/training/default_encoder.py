"""Decides whether training starts from the package's English model when no model was given."""

from __future__ import annotations

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.data.splits import Split
from ulmfit.model.pretrained import shipped_encoders
from ulmfit.training.pretrained_start import Pretrained, open_pretrained
from ulmfit.training.session import Session
from ulmfit.training.vocabulary import first_texts, unknown_share

ENGLISH = "english"
NO_ENCODER = "none"  # the option value for random weights
MOST_UNKNOWN = 0.15  # with a larger share of unknown tokens, a text is taken for another language


def given_encoder(name: str | None) -> Pretrained | None:
    """The model that `--init` or `--encoder` names; None if the option is left out or "none".

    Raises:
        UserError: no usable model is there.
    """
    return None if name is None or name == NO_ENCODER else open_pretrained(name)


def default_encoder(session: Session, valid: Split | None, asked: str | None) -> Pretrained | None:
    """The English model if it suits the options and the texts, else None. Prints a line about the choice.

    Args:
        valid: texts that show the language: at most 15 % of their tokens may be unknown to the model.
        asked: --init or --encoder as given; if it is not None, the result is None.
    """
    config = session.config
    assert isinstance(config, LMConfig | ClassifierConfig)
    own_choice = (asked, config.data is None, config.preset, config.streaming, config.backwards, config.subword)
    if any(own_choice) or valid is None or config.recipe != "quick" or config.rules != "fastai1":
        return None
    if isinstance(config, LMConfig) and config.tokenizer is not None:
        return None
    if ENGLISH not in shipped_encoders():
        return None
    pretrained = open_pretrained(ENGLISH)
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None
    if config.vocab_size is not None and config.vocab_size < len(tokenizer):
        return None
    flag = "--init" if isinstance(config, LMConfig) else "--encoder"
    share = session.runtime.on_main(lambda: unknown_share(first_texts(valid), tokenizer))
    if share >= MOST_UNKNOWN:
        session.say(
            f"{share:.0%} of the tokens of the validation texts are unknown to the English model: training starts from "
            f"random weights ({flag} PATH starts from another model)"
        )
        return None
    session.say(
        f"starting from the English model of the package, which knows {1 - share:.1%} of the tokens of the validation "
        f"texts ({flag} none starts from random weights)"
    )
    return pretrained


def chosen_encoder(pretrained: Pretrained | None) -> str:
    """The value of `--init` or `--encoder` that makes the same choice explicit."""
    return NO_ENCODER if pretrained is None else ENGLISH
