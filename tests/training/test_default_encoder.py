"""The English model of the package is where English texts start, and nothing else does."""

from __future__ import annotations

import csv
import json

import pytest

from ulmfit import language_model_learner, train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.model.pretrained import load_model
from ulmfit.shipped import shipped_encoders
from ulmfit.training.default_encoder import ENGLISH_WORDS

SENTENCES = {
    "english": """The room was clean and the staff were friendly. Breakfast ended too early for us. I would not stay
        here again. The lake is only ten minutes away on foot. Our train was late, so dinner was cold. She asked for
        another blanket and got it at once. The garden behind the house is small but quiet. We paid more than we had
        been told. Nobody answered the telephone in the evening. My children loved the pool""",
    "french": """La chambre était propre et le personnel aimable. Le petit déjeuner finissait trop tôt pour nous. Je ne
        reviendrais pas dans cet hôtel. Le lac se trouve à dix minutes à pied. Notre train avait du retard et le repas
        était froid. Elle a demandé une couverture et on la lui a donnée aussitôt. Le jardin derrière la maison est
        petit mais calme. Nous avons payé davantage que prévu. Personne ne répondait le soir. Mes enfants ont adoré la
        piscine""",
    "german": """Das Zimmer war sauber und die Leute waren freundlich. Das Frühstück endete für uns zu früh. Ich würde
        hier nicht noch einmal übernachten. Der See liegt nur zehn Minuten entfernt. Unser Zug hatte Verspätung und das
        Essen war kalt. Sie bat um eine zweite Decke und bekam sie sofort. Der Garten hinter dem Haus ist klein, aber
        ruhig. Wir haben mehr bezahlt als vereinbart. Abends ging niemand ans Telefon. Meine Kinder liebten das
        Schwimmbad""",
    "dutch": """De kamer was schoon en het personeel vriendelijk. Het ontbijt eindigde voor ons te vroeg. Ik zou hier
        niet nog eens overnachten. Het meer ligt op tien minuten lopen. Onze trein had vertraging en het eten was koud.
        Ze vroeg om een tweede deken en kreeg die meteen. De tuin achter het huis is klein maar rustig. We hebben meer
        betaald dan afgesproken. 's Avonds nam niemand de telefoon op. Mijn kinderen vonden het zwembad geweldig""",
}
SHORT = {"max_steps": 2, "batch_size": 4, "bptt": 8, "save_every": 0, "samples": False, "threads": 1}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULMFIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file a language: each sentence in a few wordings, with one of two labels."""
    folder = tmp_path_factory.mktemp("texts")
    for name, text in SENTENCES.items():
        sentences = [" ".join(sentence.split()) + "." for sentence in text.split(".")]
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for i in range(6):
                table.writerows([f"{sentence} {i}", "ab"[j % 2]] for j, sentence in enumerate(sentences))
    return {name: str(folder / f"{name}.csv") for name in SENTENCES}


def architecture(run):
    return json.loads((run / "model" / "config.json").read_text())["architecture"]


def test_it_comes_with_the_package_and_is_read_by_its_name():
    assert shipped_encoders() == ["english"]
    net, tokenizer, config = load_model("english")
    assert len(tokenizer) == net.config.vocab_size == ENGLISH_WORDS and config["task"] == "language_model"


@pytest.mark.slow
def test_english_texts_start_from_it_and_add_their_words(files, tmp_path, capsys):
    train_language_model(LMConfig(data=files["english"], output_dir=str(tmp_path / "lm"), **SHORT))
    assert "starting from the English model" in capsys.readouterr().out
    shipped, english, _ = load_model("english")
    _, tokenizer, _ = load_model(tmp_path / "lm")
    assert tokenizer.vocab[: len(english)] == english.vocab and len(tokenizer) >= len(english)
    train_classifier(ClassifierConfig(data=files["english"], output_dir=str(tmp_path / "clf"), **SHORT))
    assert "starting from the English model" in capsys.readouterr().out
    assert architecture(tmp_path / "clf")["vocab_size"] == shipped.config.vocab_size


@pytest.mark.slow
@pytest.mark.parametrize("language", ["french", "german", "dutch"])
def test_other_languages_do_not(language, files, tmp_path, capsys):
    train_classifier(
        ClassifierConfig(data=files[language], output_dir=str(tmp_path / "clf"), **SHORT | {"batch_size": 8})
    )
    assert "unknown to the English model" in capsys.readouterr().out
    assert architecture(tmp_path / "clf")["vocab_size"] < 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"init": "none"},
        {"preset": "tiny"},
        {"backwards": True},
        {"subword": "bpe", "vocab_size": 200},
        {"streaming": True},
        {"recipe": "none", "lr": 1e-3},
        {"vocab_size": 100},
        {"data": None},
    ],
)
def test_options_that_speak_against_it(options, files, tmp_path, capsys):
    train_language_model(LMConfig(**{"data": files["english"], "output_dir": str(tmp_path / "lm")} | SHORT | options))
    out = capsys.readouterr().out
    assert "English model" not in out
    name, value = next(iter(options.items()))
    because = f"because of --{name.replace('_', '-')}{'' if value is True else f' {value}'} (--init PATH"
    assert (because in out) == (name not in ("init", "data"))
    assert architecture(tmp_path / "lm")["vocab_size"] < 1000


@pytest.mark.slow
def test_stages_by_hand_start_from_it_too(files, tmp_path, capsys):
    """They train the last layer group alone at first, so that those before have to be trained ones."""
    options = {name: SHORT[name] for name in ("batch_size", "bptt", "samples", "threads")}
    learn = language_model_learner(files["english"], output_dir=tmp_path / "lm", **options)
    learn.fit_one_cycle(0.02)
    assert "starting from the English model" in capsys.readouterr().out
    learn.unfreeze()
    learn.fit_one_cycle(0.02)
    assert "English model" not in capsys.readouterr().out  # it goes on with the weights of the first
    assert architecture(learn.run_dir)["vocab_size"] >= 30_000


def test_a_path_of_the_same_name_wins(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "english").mkdir()
    with pytest.raises(UserError, match="english holds no model.safetensors"):
        train_language_model(LMConfig(data=files["english"], output_dir="lm", init="english", **SHORT))
