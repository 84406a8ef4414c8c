"""Short sentences in 25 languages through tokenizer, language model, classifier and back to text."""

from __future__ import annotations

import pytest

import ulmfit
from tests.languages import SENTENCES, UNSPACED
from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig

SHORT = {"recipe": "none", "lr": 1e-3, "batch_size": 4, "bptt": 8, "save_every": 0, "samples": False, "threads": 1}


@pytest.fixture(scope="module")
def table():
    """Every sentence in a few numbered copies, labelled by its language."""
    pairs = [(f"{i} {text}", name) for i in range(3) for name, texts in SENTENCES.items() for text in texts]
    return {"text": [text for text, _ in pairs], "label": [name for _, name in pairs]}


def test_all_languages_go_the_whole_way(table, tmp_path):
    """One run over all of them. Words of several scripts are pieces here, so that none is unknown."""
    lm = LMConfig(data=table, output_dir=str(tmp_path / "lm"), preset="tiny", subword="bpe", vocab_size=1500,
                  max_steps=3, **SHORT)  # fmt: skip
    train_language_model(lm)
    clf = ClassifierConfig(data=table, output_dir=str(tmp_path / "clf"), encoder=str(tmp_path / "lm"), max_steps=3,
                           **SHORT)  # fmt: skip
    train_classifier(clf)
    model = ulmfit.LanguageModel.from_pretrained(tmp_path / "lm")
    classifier = ulmfit.TextClassifier.from_pretrained(tmp_path / "clf")
    tokenizer = ulmfit.Tokenizer.from_file(tmp_path / "lm" / "tokenizer.json")
    for name, sentences in SENTENCES.items():
        assert len(sentences) >= 4
        for text in sentences:
            ids = tokenizer.encode(text)[0]
            assert tokenizer.unk_id not in ids
            # fastai has no mark for a single capital letter, which is a word of Greek.
            assert tokenizer.decode(ids).lower() == text.lower()
        written = model.generate(sentences[0], max_new_tokens=3, seed=0)
        assert written.lower().startswith(sentences[0].lower()[:-1]), name
        found = classifier.predict(sentences[0])
        assert found.label in SENTENCES and abs(sum(found.probabilities) - 1) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Korean", "Chinese", "Turkish"])
def test_each_alone_with_automatic_choice(name, table, tmp_path, capsys):
    rows = [i for i, label in enumerate(table["label"]) if label == name] * 4
    data = {"text": [table["text"][i] for i in rows], "label": [str(i % 2) for i in range(len(rows))]}
    train_classifier(ClassifierConfig(data=data, output_dir=str(tmp_path / "clf"), preset="tiny", subword="auto",
                                      vocab_size=300, min_freq=1, max_steps=1, **SHORT))  # fmt: skip
    chosen = "pieces (bpe)" if name in UNSPACED else "whole words"
    assert chosen in capsys.readouterr().out
    classifier = ulmfit.TextClassifier.from_pretrained(tmp_path / "clf")
    assert [found.label in ("0", "1") for found in classifier.predict(SENTENCES[name])] == [True] * 4
