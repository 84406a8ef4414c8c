"""When training starts from the English model that comes with the package though nobody asked for it."""

from __future__ import annotations

from itertools import islice

import numpy as np

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.data.splits import Split
from ulmfit.errors import UserError
from ulmfit.model.pretrained import shipped_encoders
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.setup import Pretrained, Session, open_pretrained

ENGLISH = "english"
NO_ENCODER = "none"  # asks for random weights
MOST_UNKNOWN = 0.15  # share of unknown tokens above which a text is not the model's language
TEXTS_LOOKED_AT = 2000


def given_encoder(name: str | None) -> Pretrained | None:
    """What `--init` or `--encoder` names; None where it is left out, or "none".

    Raises:
        UserError: nothing usable is there.
    """
    return None if name is None or name == NO_ENCODER else open_pretrained(name)


def default_encoder(session: Session, valid: Split | None, asked: str | None) -> Pretrained | None:
    """The English model, where neither the options nor the texts speak against it; a line says what was chosen.

    Args:
        valid: texts to judge the language by: at most 15 % of their tokens may be unknown to the model.
        asked: --init or --encoder as given; anything but None is respected.
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
    share = session.runtime.on_main(lambda: unknown_share(valid, tokenizer))
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
    """The value of `--init` or `--encoder` that says what was chosen where neither was given."""
    return NO_ENCODER if pretrained is None else ENGLISH


def unknown_share(split: Split, tokenizer: Tokenizer) -> float:
    """Share of unknown tokens in the first texts of a split, 0 to 1; xxbos does not count."""
    texts = [text for batch in islice(split.batches(TEXTS_LOOKED_AT), 1) for text in batch.texts]
    ids, lengths = tokenizer.encode_flat(texts)
    words = len(ids) - len(lengths)
    if words == 0:
        raise UserError(f"the {split.name} split has no words; check the data and its columns")
    return float(np.count_nonzero(ids == tokenizer.unk_id)) / words
