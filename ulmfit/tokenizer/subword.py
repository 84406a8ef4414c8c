"""Vocabularies of word pieces (subwords), for languages without spaces between words.

Clean-up and the marks for repeats and case are the same as for words. Then spaces become U+2581. Pieces do not cross
line breaks and punctuation. Special tokens are entries of the vocabulary and are never split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from ulmfit.errors import UserError
from ulmfit.tokenizer import rules as text_rules
from ulmfit.tokenizer.spacy_rules import replace

_MARKS = "xx(?:unk|pad|bos|eos|fld|maj|up|rep|wrep)"
_SPACE = "\u2581"
_SEP = "\x1f"  # delimiter of a special token; where it stands, the text has no space
# A repeat mark gets spaces around it and behind its element. These patterns match where the text had none. A repeated
# digit keeps its space, because it would become part of the count.
_BEFORE_RUN = r"[^ ] xxw?rep [0-9]++\K (?=[^\s0-9])"
_BEHIND_RUN = rf" xxrep [0-9]++[ {_SEP}]\S\K "
# In fastai 1 words are split before capitals are marked, so a capital may stand behind punctuation too. All repeats are
# bounded, because this search begins at every such character of a long string.
_OPENING = "[\"'(\\[{/\u2018\u201c\u201e\u00ab\u00bf\u00a1\\-]\\K"
_END = r"(?:\s|\z)"
_UP = rf"{_OPENING}(?=\p{{Lu}}(?>[^\s\p{{Ll}}]{{1,60}}){_END})"
_MAJ = rf"{_OPENING}(?=\p{{Lu}}(?>[^\s\p{{Lu}}\p{{Ll}}]{{0,60}})\p{{Ll}}(?>[^\s\p{{Lu}}]{{0,60}}){_END})"


def normalizer(rules: str, *, keep_marks: bool = True) -> normalizers.Normalizer:
    """Lower-case text with marks, and U+2581 for each space. `keep_marks=False` is for training the pieces.

    Spaces around marks are those of the text, so that decoding restores it: `wow!!!!` is `wow`, xxrep, `U+2581 4`, `!`
    and `(Hello` is `(`, xxmaj, `hello`.
    """
    return normalizers.Sequence(
        [
            *text_rules.clean(rules, text_rules.MARKS + _SEP),
            replace("[ \\t\\r\u0085\u00a0\u2581]+", " "),
            replace(r" ?\n ?", "\n"),
            replace(text_rules.ANY_SPACE_AT_END, ""),
            *text_rules.repeats(rules),
            *text_rules.case(rules),
            *text_rules.case(rules, behind="\n", space=_SEP),
            *([replace(_UP, f"{_SEP}xxup{_SEP}"), replace(_MAJ, f"{_SEP}xxmaj{_SEP}")] if rules == "fastai1" else []),
            *text_rules.lower(),
            replace(_BEFORE_RUN, _SEP),
            replace(_BEHIND_RUN, _SEP),
            replace(r" (?= xxw?rep )", ""),
            replace(rf"\s(?={_MARKS}(?!\S))", _SEP) if keep_marks else replace(rf"\s{_MARKS}(?!\S)", ""),
            replace(" ", _SPACE),
        ]
    )


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits into line breaks, punctuation and the text between them."""
    pattern = rf"\n+|{_SPACE}?[^\s{_SPACE}{_SEP}\p{{P}}]+|{_SPACE}?\p{{P}}|{_SPACE}"
    return pre_tokenizers.Split(Regex(pattern), "removed", invert=True)


def keeps_spaces(json_text: str) -> bool:
    """Whether the spaces around repeat marks are those of the text. They are not in a pipeline of version 0.2.0."""
    return json.dumps(_BEHIND_RUN)[1:-1] in json_text


def train(texts: Iterable[str], kind: str, *, rules: str, vocab_size: int, min_freq: int) -> tokenizers.Tokenizer:
    """Train a pipeline without post-processor; `kind` is "unigram" or "bpe".

    The unigram trainer of `tokenizers` sums in the order of its threads, so two runs may differ in the last pieces.
    bpe and words are deterministic.
    """
    specials = text_rules.SPECIALS[rules]
    room = vocab_size - len(specials)
    options: dict[str, Any] = {
        "vocab_size": room,
        "special_tokens": [],
        "show_progress": False,
        "initial_alphabet": ["\n", _SPACE],
    }
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(**options | {"special_tokens": ["xxunk"], "unk_token": "xxunk"})
    else:
        backend = tokenizers.Tokenizer(models.BPE())
        # The trainer would take every character, whatever the room; rarer ones are unknown then.
        trainer = trainers.BpeTrainer(**options, min_frequency=min_freq, limit_alphabet=max(1, room))
    backend.normalizer = normalizer(rules, keep_marks=False)
    backend.pre_tokenizer = pre_tokenizer()
    try:
        backend.train_from_iterator(texts, trainer)
    except Exception as error:  # the bindings raise no other class
        if "not large enough" not in str(error):
            raise
        raise UserError(
            f"--vocab-size {vocab_size} has no room for the characters of the texts; give a larger one, or --subword bpe"
        ) from None

    model = json.loads(backend.to_str())["model"]
    if kind == "unigram":
        pieces = [(piece, round(score or 0.0, 6)) for piece, score in model["vocab"] if piece not in specials]
        pieces = sorted(pieces, key=lambda entry: (-entry[1], entry[0]))[:room]
        # Special tokens get 0, which is higher than every sum of log-probabilities. Scores are rounded, so that they
        # are the same after writing and reading.
        vocab = [(mark, 0.0) for mark in specials] + pieces
        vocab += [(name, -100.0) for name in text_rules.padding(len(vocab), vocab_size)]
        backend.model = models.Unigram(vocab, unk_id=specials.index("xxunk"), byte_fallback=False)
    else:
        learnt = sorted(model["vocab"], key=model["vocab"].__getitem__)
        names = specials + [piece for piece in learnt if piece not in specials]
        names += text_rules.padding(len(names), vocab_size)
        merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
        backend.model = models.BPE(
            {name: i for i, name in enumerate(names)}, merges, unk_token="xxunk", ignore_merges=True
        )
    backend.normalizer = normalizer(rules)
    return backend
