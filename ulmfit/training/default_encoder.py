"""What a training starts from: the model that was named, or the package's English model, or random weights."""

from __future__ import annotations

from dataclasses import replace

from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.data.splits import Split
from ulmfit.hub import PREFIX, commit_of, hub_name, local_folder
from ulmfit.option_types import path_text
from ulmfit.shipped import shipped_encoders
from ulmfit.training.pretrained_start import Pretrained, open_pretrained
from ulmfit.training.session import Session
from ulmfit.training.vocabulary import first_texts, unknown_share

ENGLISH = "english"
ENGLISH_WORDS = 30_000  # of its vocabulary
NO_ENCODER = "none"  # the option value for random weights
MOST_UNKNOWN = 0.15  # with a larger share of unknown tokens, a text is taken for another language


def given_encoder(session: Session) -> Pretrained | None:
    """The model that `--init` or `--encoder` names; None if the option is left out or "none" (a collective).

    A name on the hub is looked up by rank 0 alone, once a run: all ranks and later starts read the commit that it found.

    Raises:
        UserError: no usable model is there, or the hub cannot be reached.
    """
    config, begun = session.config, session.begun
    name = path_text(config.init if isinstance(config, LMConfig) else getattr(config, "encoder", None))
    if name is None or name == NO_ENCODER:
        return None
    if name.endswith(".pth"):
        return open_pretrained(name)
    folder = ""

    def look_up() -> str | None:
        nonlocal folder
        found = hub_name(name)
        if found is None:
            return None
        on_hub, asked = found
        folder = local_folder(f"{PREFIX}{on_hub}", revision=(begun.start_revision(name) if begun else None) or asked)
        return commit_of(folder)

    commit = session.runtime.on_main(look_up)
    if commit is None:
        return open_pretrained(name)
    if not folder:
        folder = local_folder(f"{PREFIX}{name.removeprefix(PREFIX).partition('@')[0]}", revision=commit)
    return replace(open_pretrained(folder, named=name), revision=commit)


def default_encoder(session: Session, valid: Split | None, asked: str | None) -> Pretrained | None:
    """The English model if it suits the options and the texts, else None. Prints a line about the choice.

    Stages by hand begin with it under any recipe, of which they take the sizes only: at first they train the last layer
    group alone, and those before would stay random.

    Args:
        valid: texts that show the language: at most 15 % of their tokens may be unknown to the model.
        asked: --init or --encoder as given; if it is not None, the result is None.
    """
    config = session.config
    assert isinstance(config, LMConfig | ClassifierConfig)
    flag = "--init" if isinstance(config, LMConfig) else "--encoder"
    goes_on = session.by_hand is not None and session.by_hand.start is not None  # with the weights of stages before
    say = (lambda _: None) if goes_on else session.say
    if asked or config.data is None or ENGLISH not in shipped_encoders():
        return None
    against = _against(config, by_hand=session.by_hand is not None)
    if valid is None and not against:
        against = "no validation texts, which would show the language"
    if valid is None or against:
        say(f"training starts from random weights, because of {against} ({flag} PATH starts from a model)")
        return None
    pretrained = open_pretrained(ENGLISH)
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None
    share = session.runtime.on_main(lambda: unknown_share(first_texts(valid), tokenizer))
    if share >= MOST_UNKNOWN:
        say(
            f"{share:.0%} of the tokens of the validation texts are unknown to the English model: training starts from "
            f"random weights ({flag} PATH starts from another model)"
        )
        return None
    say(
        f"starting from the English model of the package, which knows {1 - share:.1%} of the tokens of the validation "
        f"texts ({flag} none starts from random weights)"
    )
    return pretrained


def _against(config: LMConfig | ClassifierConfig, *, by_hand: bool) -> str:
    """The first option that the English model does not suit, as it is given; "" if it suits all."""
    for name in ("preset", "subword", "tokenizer"):
        if value := getattr(config, name, None):  # a classifier has no tokenizer of its own
            return f"--{name} {value}"
    for name in ("streaming", "backwards"):
        if getattr(config, name):
            return f"--{name}"
    if config.rules != "fastai1":
        return f"--rules {config.rules}"
    if config.vocab_size is not None and config.vocab_size < ENGLISH_WORDS:
        return f"--vocab-size {config.vocab_size}"
    return "" if config.recipe == "quick" or by_hand else f"--recipe {config.recipe}"


def chosen_encoder(pretrained: Pretrained | None) -> str:
    """The value of `--init` or `--encoder` that makes the same choice explicit."""
    return NO_ENCODER if pretrained is None else ENGLISH
