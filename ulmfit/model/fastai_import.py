"""Makes a model of this package from fastai's files: weights (.pth) and vocabulary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ulmfit.errors import UserError
from ulmfit.excerpts import listed
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.fastai_format import FastaiModel, load_fastai
from ulmfit.model.initial_weights import init_language_model, transfer_vocabulary
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.tokenizer.tokenizer import Tokenizer

#: By fastai's version, tokens of a window and pooled tokens of its classifiers.
_READING = {1: (70, 1400), 2: (72, 1440)}


class Imported(NamedTuple):
    """A model made from fastai's files, as `save_model` takes it."""

    net: LanguageModelNet | ClassifierNet
    tokenizer: Tokenizer
    config: dict[str, Any]
    source: FastaiModel


def import_fastai(
    weights: str | os.PathLike,
    vocabulary: str | os.PathLike,
    *,
    labels: Sequence[str] | None = None,
    backwards: bool = False,
    rules: str | None = None,
) -> Imported:
    """Convert a language model, an encoder or a classifier of fastai 1 or 2. No code in the files is executed.

    An encoder becomes a language model whose output layer has no bias. Special tokens get the first ids, if they have
    others; weights go with their words. Words that fastai's vocabulary has twice, and its filler words, are left out.

    Args:
        labels: names of a classifier's classes. By default those in the vocabulary file, else 0, 1, ...
        backwards: the model reads texts from their end. fastai's files do not tell.
        rules: of the tokenizer, fastai1 or fastai2. By default as the order of the special tokens tells.

    Raises:
        UserError: a file is missing or not fastai's, the two do not fit together, or the labels are not as many as the
            classes.
    """
    model = load_fastai(weights, vocabulary)
    if sum(word.startswith("\u2581") for word in model.vocab) > len(model.vocab) // 4:
        raise UserError(
            f"{vocabulary} holds pieces of words, which only the tokenizer that made them can cut; train a tokenizer by "
            "ulmfit tokenizer and a language model with it"
        )
    if not {"xxunk", "xxbos"} <= set(model.vocab):
        raise UserError(
            f"{vocabulary} has no xxunk and xxbos, as every vocabulary of fastai has; give the file that was saved with the weights"
        )
    tokenizer = Tokenizer.from_vocab(model.vocab, rules=rules or _rules_of(model))
    config: dict[str, Any] = {
        "backwards": backwards,
        "imported": {"from": f"fastai {model.version}", "kind": model.kind.replace("_", " ")},
    }
    if model.kind != "classifier":
        if labels is not None:
            raise UserError(f"{weights} holds {_A[model.kind]}, which has no classes; leave --labels out")
        net = LanguageModelNet(_sizes(model, len(tokenizer), "lm"))
        init_language_model(net, model.state, model.vocab, tokenizer.vocab)
        return Imported(net, tokenizer, config | {"bptt": _READING[model.version][0]}, model)
    hidden, classes = (len(model.state[f"head.linear{i}.weight"]) for i in (1, 2))
    names = list(labels) if labels is not None else model.labels
    if labels is None and (names is None or len(names) != classes):
        names = [str(number) for number in range(classes)]
    assert names is not None
    if len(names) != classes or len(set(names)) != classes or "" in names:
        raise UserError(
            f"--labels {listed(names)} does not name the {classes} classes of {weights}; give each one name"
        )
    bptt, max_len = _READING[model.version]
    sizes = _sizes(model, len(tokenizer), "clf")
    head = ClassifierNet(sizes, classes, bptt=bptt, max_len=max_len, head_hidden=hidden)
    weight, _ = transfer_vocabulary(model.state["encoder.embedding.weight"], None, model.vocab, tokenizer.vocab)
    try:
        head.load_state_dict(model.state | {"encoder.embedding.weight": weight})
    except RuntimeError as error:
        raise UserError(
            f"the head of {weights} is not fastai's default ({str(error).splitlines()[-1].strip()[:120]}); give one "
            "with one hidden layer on the pooled outputs"
        ) from None
    return Imported(head, tokenizer, config | {"label_names": names}, model)


_A = {"language_model": "a language model", "encoder": "an encoder", "classifier": "a classifier"}


def _sizes(model: FastaiModel, vocab_size: int, task: Literal["lm", "clf"]) -> AWDLSTMConfig:
    return replace(model.config, vocab_size=vocab_size).with_dropouts(task, 1.0)


def _rules_of(model: FastaiModel) -> str:
    """The text rules of a vocabulary: in fastai 1 xxmaj has a lower id than xxrep, in fastai 2 a higher one."""
    place = {word: number for number, word in reversed(list(enumerate(model.vocab)))}
    if {"xxmaj", "xxrep"} <= place.keys():
        return "fastai1" if place["xxmaj"] < place["xxrep"] else "fastai2"
    return f"fastai{model.version}"
