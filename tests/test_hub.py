"""Saving and the hub, against a stand-in of the hub on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelHubMixin, constants

import ulmfit
from tests.hub_stand_in import TOKEN, hub_stand_in, metadata
from ulmfit import hub as hub_module
from ulmfit.cli import DONE, USER_ERROR, main
from ulmfit.errors import UserError
from ulmfit.hub import local_folder
from ulmfit.model.pretrained import load_model

TEXTS = ["a wonderful film", "a dull film " * 60, "I liked it"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_stand_in(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def same_files(first: Path, second: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_models_are_saved_as_they_were(runs, tmp_path):
    for kind, run in ((ulmfit.LanguageModel, runs.lm), (ulmfit.TextClassifier, runs.clf)):
        model = kind.from_pretrained(run, device="cpu")
        assert isinstance(model, ModelHubMixin)
        assert model.save_pretrained(tmp_path / run.name) is None
        same_files(run / "model", tmp_path / run.name)
        kind.from_pretrained(tmp_path / run.name).save_pretrained(tmp_path / run.name)  # over itself
        same_files(run / "model", tmp_path / run.name)
    tokenizer = ulmfit.Tokenizer.from_pretrained(runs.lm)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert {file.name for file in (tmp_path / "tokenizer").iterdir()} == {"tokenizer.json", "README.md"}
    assert ulmfit.Tokenizer.from_pretrained(tmp_path / "tokenizer").fingerprint == tokenizer.fingerprint
    (tmp_path / "file").write_text("")
    with pytest.raises(ulmfit.UserError, match="is a file"):
        tokenizer.save_pretrained(tmp_path / "file")


def test_pushed_models_come_back_by_name_and_revision(runs, hub):
    classifier = ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch")
    url = classifier.push_to_hub("someone/films", commit_message="first")
    repository = hub.repositories["someone/films"]
    assert url.startswith(f"{hub.url}/someone/films/commit/") and repository.messages[-1] == "first"
    files = repository.files()
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert files["model.safetensors"] == (runs.clf / "model" / "model.safetensors").read_bytes()
    first = repository.names["main"]
    with torch.no_grad():
        classifier.net.head.linear2.bias += 3 * torch.arange(2)
    classifier.push_to_hub("someone/films", branch="main")
    for name in ("modeling.py", "pytorch_model.bin", "itos.pkl"):  # what a stranger may have put there
        repository.files()[name] = b"import os"
    repository.names["v1"] = first
    expected = ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch").probabilities(TEXTS)
    for revision in ("v1", first):
        back = ulmfit.TextClassifier.from_pretrained("someone/films", revision=revision, backend="torch")
        assert np.array_equal(back.probabilities(TEXTS), expected)
    newest = ulmfit.TextClassifier.from_pretrained("someone/films", backend="torch").probabilities(TEXTS)
    assert {file.suffix for file in Path(local_folder("someone/films")).iterdir()} == {".json", ".safetensors", ".md"}
    assert np.array_equal(newest, classifier.probabilities(TEXTS)) and not np.array_equal(newest, expected)
    assert ulmfit.Tokenizer.from_pretrained("someone/films").fingerprint == classifier.tokenizer.fingerprint


def test_a_language_model_and_a_tokenizer_are_pushed(runs, hub, capsys):
    ulmfit.LanguageModel.from_pretrained(runs.lm).push_to_hub("someone/lm", private=True)
    assert hub.repositories["someone/lm"].private
    net, _, _ = load_model(runs.lm)
    back = ulmfit.LanguageModel.from_pretrained("hf://someone/lm", device="cpu")
    assert all(torch.equal(tensor, back.net.state_dict()[name]) for name, tensor in net.state_dict().items())
    ulmfit.Tokenizer.from_pretrained(runs.lm).push_to_hub("someone/words")
    assert ulmfit.Tokenizer.from_pretrained("someone/words").vocab == back.tokenizer.vocab
    card = metadata(hub.repositories["someone/words"].files()["README.md"].decode())
    assert card["library_name"] == "ulmfit" and "pipeline_tag" not in card
    assert main(["generate", "--model", "someone/lm", "--seed", "0", "a film"]) == DONE
    assert capsys.readouterr().out.startswith("a film")


@pytest.mark.slow
def test_commands_take_names_of_the_hub(runs, hub, tmp_path, capsys):
    ulmfit.TextClassifier.from_pretrained(runs.clf).push_to_hub("someone/films")
    assert main(["predict", "--model", "someone/films", *TEXTS[:1]]) == DONE
    by_name = capsys.readouterr().out
    assert main(["predict", "--model", str(runs.clf), *TEXTS[:1]]) == DONE and capsys.readouterr().out == by_name
    (tmp_path / "new.csv").write_text("text\na dull film\n")
    data = ["--data", str(tmp_path / "new.csv"), "--output", str(tmp_path / "labels.csv")]
    assert main(["predict", "--model", "someone/films", *data]) == DONE
    out = str(tmp_path / "out")
    assert main(["export", "--model", "someone/films", "--output", out, "--to", "transformers"]) == DONE
    assert main(["evaluate", "--model", "someone/nothing"]) == USER_ERROR
    assert "no model on the hub that you may read" in capsys.readouterr().err


def test_a_training_starts_from_a_name_on_the_hub(runs, hub, reviews, tmp_path):
    """With the identity and the weights of a start from the path, and with the commit of its begin at every later start."""
    ulmfit.LanguageModel.from_pretrained(runs.lm).push_to_hub("someone/lm")
    repository = hub.repositories["someone/lm"]
    for name in ("modeling.py", "model.pth", "itos.pkl"):  # what a stranger may have put there
        repository.files()[name] = b"import os"
    first = repository.names["main"]
    short = {"data": str(reviews), "max_steps": 2, "batch_size": 8, "bptt": 10, "save_every": 1, "threads": 1}

    def trained(folder, kind=ulmfit.LMConfig, **start):
        train = ulmfit.train_language_model if kind is ulmfit.LMConfig else ulmfit.train_classifier
        result = train(kind(output_dir=str(tmp_path / folder), **short | start))
        stored = json.loads((result.run_dir / "config.json").read_text())
        return stored, (result.model_dir / "model.safetensors").read_bytes()

    by_path, weights = trained("path", init=str(runs.lm))
    by_name, same = trained("name", init="someone/lm")
    assert same == weights and by_name["identity"] == by_path["identity"]
    assert by_name["resolved"]["start_revision"] == first and by_name["options"]["init"] == "someone/lm"
    folder = Path(local_folder("someone/lm"))
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors", ".md"}

    changed = ulmfit.LanguageModel.from_pretrained(runs.lm)
    with torch.no_grad():
        changed.net.decoder_bias += 1
    changed.push_to_hub("someone/lm")
    # A begun run goes on from its commit; a new one takes the newest, or what is asked for.
    shutil.rmtree(tmp_path / "name" / "model")
    (tmp_path / "name" / "status.json").unlink()
    assert trained("name")[1] == weights
    assert (
        trained("newest", init="someone/lm")[0]["identity"]["init (content)"] != by_path["identity"]["init (content)"]
    )
    at_first, same = trained("at first", init=f"hf://someone/lm@{first}")
    assert same == weights and at_first["identity"] == by_path["identity"]
    card = str(ulmfit.LanguageModel.from_pretrained(tmp_path / "name").generate_model_card())
    assert f"someone/lm of the hub, revision {first[:12]}" in card and "--init someone/lm " in card
    assert metadata(card)["base_model"] == ["someone/lm"]

    by_path, weights = trained("clf path", ulmfit.ClassifierConfig, encoder=str(runs.lm))
    by_name, same = trained("clf", ulmfit.ClassifierConfig, encoder=f"someone/lm@{first}")
    assert same == weights and by_name["identity"] == by_path["identity"]
    ulmfit.TextClassifier.from_pretrained(runs.clf).push_to_hub("someone/films")
    with pytest.raises(ulmfit.UserError, match="^someone/films is a classifier; give the language model"):
        trained("wrong", ulmfit.ClassifierConfig, encoder="someone/films")


def test_a_start_that_is_no_name_or_not_to_be_had_is_a_sentence(runs, hub, reviews, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    words = ["train-lm", "--data", str(reviews), "--max-steps", "1", "--output-dir", "out", "--init"]
    for name, told in (
        ("runs/lmm", "runs/lmm does not exist"),  # a mistyped path stays here
        ("nowhere/model.pth", "nowhere/model.pth"),
        ("someone/lm@", "does not exist"),
    ):
        assert main([*words, name]) == USER_ERROR and told in capsys.readouterr().err
    assert not hub.seen
    ulmfit.LanguageModel.from_pretrained(runs.lm).push_to_hub("someone/lm")
    for name, told in (
        ("someone/nothing", "no model on the hub that you may read"),
        ("someone/lm@v9", "someone/lm on the hub has no revision v9"),
        ("hf://someone/lm@", "has no revision behind @"),
    ):
        assert main([*words, name]) == USER_ERROR and told in capsys.readouterr().err
    before = len(hub.seen)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main([*words, "other/lm"]) == USER_ERROR and "is not in the cache" in capsys.readouterr().err
    assert len(hub.seen) == before and not (tmp_path / "out").exists()


def test_a_revision_may_stand_behind_the_name(runs, hub):
    tokenizer = ulmfit.Tokenizer.from_pretrained(runs.lm)
    tokenizer.push_to_hub("someone/words")
    repository = hub.repositories["someone/words"]
    repository.names["v1.0-beta"] = repository.names["main"]
    assert ulmfit.Tokenizer.from_pretrained("someone/words@v1.0-beta").vocab == tokenizer.vocab
    with pytest.raises(ulmfit.UserError, match="two revisions"):
        ulmfit.Tokenizer.from_pretrained("someone/words@main", revision="v1.0-beta")


def test_the_tokenizer_of_the_packages_model_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = ulmfit.Tokenizer.from_pretrained("english")
    assert tokenizer.vocab == ulmfit.LanguageModel.from_pretrained("english", device="cpu").tokenizer.vocab
    (tmp_path / "english").mkdir()
    with pytest.raises(ulmfit.UserError):
        ulmfit.Tokenizer.from_pretrained("english")  # a path wins over the name


def test_a_model_from_the_hub_keeps_its_card(runs, hub, tmp_path):
    ulmfit.TextClassifier.from_pretrained(runs.clf).push_to_hub("someone/films")
    card = hub.repositories["someone/films"].files()["README.md"].decode()
    again = ulmfit.TextClassifier.from_pretrained("someone/films")
    again.save_pretrained(tmp_path / "copy", model_card_kwargs={"license": "mit"})
    kept = (tmp_path / "copy" / "README.md").read_text()
    assert kept.partition("\n# ")[2] == card.partition("\n# ")[2] and metadata(kept)["license"] == "mit"


def test_bundles_and_exported_models_are_saved_too(runs, hub, tmp_path):
    bundle = ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf], backend="torch")
    bundle.push_to_hub("someone/both")
    assert {"bundle.json", "1/config.json", "2/model.safetensors"} <= set(hub.repositories["someone/both"].files())
    assert "config.json" not in hub.repositories["someone/both"].files()
    back = ulmfit.TextClassifier.from_pretrained("someone/both", backend="torch")
    assert np.array_equal(back.probabilities(TEXTS), bundle.probabilities(TEXTS))
    pytest.importorskip("onnxruntime")
    words = ["export", "--model", str(runs.clf), "--output", str(tmp_path / "onnx"), "--to", "onnx"]
    assert main(words) == DONE
    exported = ulmfit.TextClassifier.from_pretrained(tmp_path / "onnx")
    exported.save_pretrained(tmp_path / "copy")
    same = ulmfit.TextClassifier.from_pretrained(tmp_path / "copy")
    assert np.array_equal(same.probabilities(TEXTS), exported.probabilities(TEXTS))
    rounded = ulmfit.TextClassifier.from_pretrained(runs.clf, int8=True, backend="torch")
    with pytest.raises(ulmfit.UserError, match="without int8"):
        rounded.save_pretrained(tmp_path / "rounded")


def test_what_is_pushed_comes_back_though_another_form_was_there(runs, hub, tmp_path):
    single = ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch")
    bundle = ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf], backend="torch")
    for model, form in ((bundle, "bundle.json"), (single, "model.safetensors"), (bundle, "bundle.json")):
        model.push_to_hub("someone/films")
        files = set(hub.repositories["someone/films"].files())
        assert files & {"bundle.json", "model.safetensors", "model.onnx"} == {form}
        assert ("1/config.json" in files) == (form == "bundle.json")
    pytest.importorskip("onnxruntime")
    assert main(["export", "--model", str(runs.clf), "--output", str(tmp_path / "onnx"), "--to", "onnx"]) == DONE
    single.push_to_hub("someone/films")
    ulmfit.TextClassifier.from_pretrained(tmp_path / "onnx").push_to_hub("someone/films")
    assert "model.safetensors" not in hub.repositories["someone/films"].files()


def test_a_push_replaces_nothing_of_another_kind_and_is_not_public_by_mistake(runs, hub):
    classifier = ulmfit.TextClassifier.from_pretrained(runs.clf)
    language_model, tokenizer = (kind.from_pretrained(runs.lm) for kind in (ulmfit.LanguageModel, ulmfit.Tokenizer))
    ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf]).push_to_hub("someone/both", private=False)
    classifier.push_to_hub("someone/films", private=False)
    before = {name: repository.files() for name, repository in hub.repositories.items()}
    for name in before:
        with pytest.raises(ulmfit.UserError, match=f"{name} on the hub holds a classifier, which would be replaced"):
            language_model.push_to_hub(name)
        with pytest.raises(
            ulmfit.UserError, match=f"{name} on the hub holds a model, whose tokenizer would be replaced"
        ):
            tokenizer.push_to_hub(name)
    with pytest.raises(ulmfit.UserError, match="someone/films is public on the hub, and private=True does not change"):
        classifier.push_to_hub("someone/films", private=True)
    assert before == {name: repository.files() for name, repository in hub.repositories.items()}
    classifier.push_to_hub("someone/hidden", private=True)
    classifier.push_to_hub("someone/hidden", private=True, token=f"{TOKEN}\n")


def test_a_token_is_not_shown(runs, hub):
    tokenizer = ulmfit.Tokenizer.from_pretrained(runs.lm)
    for token in ("hf_se\ncret", "hf_secr\u00e9t", " "):
        for call in (tokenizer.push_to_hub, ulmfit.Tokenizer.from_pretrained):
            with pytest.raises(ulmfit.UserError, match="^the token is empty or has signs") as caught:
                call("someone/words", token=token)
            assert "secr" not in str(caught.value)
    assert hub_module._reason(ValueError("Illegal header value b'Bearer hf_secret'")).endswith("Bearer ***")


def test_a_bundle_is_saved_over_its_own_members(runs, tmp_path):
    pytest.importorskip("onnxruntime")
    words = ["export", "--model", str(runs.clf), "--output", str(tmp_path / "onnx"), "--to", "onnx"]
    assert main(words) == DONE
    shutil.copytree(tmp_path / "onnx", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["label_names"] = config["label_names"][::-1]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    ulmfit.TextClassifier.from_pretrained([tmp_path / "onnx", tmp_path / "other"]).save_pretrained(tmp_path / "both")
    turned = ulmfit.TextClassifier.from_pretrained([tmp_path / "both" / "2", tmp_path / "both" / "1"])
    expected = turned.probabilities(TEXTS)
    turned.save_pretrained(tmp_path / "both")
    assert np.array_equal(ulmfit.TextClassifier.from_pretrained(tmp_path / "both").probabilities(TEXTS), expected)
    # Trained members over exported ones: the graphs must not stay beside the weights, nor the weights beside graphs.
    bundle = ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf], backend="torch")
    for model in (bundle, turned):
        model.save_pretrained(tmp_path / "both")
        forms = {file.name for file in (tmp_path / "both").glob("?/model.*")}
        assert forms == ({"model.safetensors"} if model is bundle else {"model.onnx"})


def test_names_that_lead_nowhere(runs, hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    load = ulmfit.TextClassifier.from_pretrained
    ulmfit.TextClassifier.from_pretrained(runs.clf).push_to_hub("someone/films")
    for name, options, sentence in (
        ("someone/nothing", {}, "no model on the hub that you may read"),
        ("someone/films", {"revision": "v9"}, "has no revision v9"),
        ("films", {"revision": "v9"}, "is no name of a model on the hub"),
        ("hf://a/b/c", {}, "is no name of a model on the hub"),
        (Path("hf://someone/nothing"), {}, "no model on the hub that you may read"),
    ):
        with pytest.raises(ulmfit.UserError, match=sentence):
            load(name, **options)
    before = len(hub.seen)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ulmfit.UserError, match="does not exist"):
        load("runs/clff")  # a mistyped path stays here
    (tmp_path / "someone" / "films").mkdir(parents=True)
    with pytest.raises(ulmfit.UserError, match="a folder here, which has no revisions; give hf://someone/films"):
        load("someone/films", revision="main")
    assert len(hub.seen) == before
    assert (Path(local_folder("hf://someone/films")) / "model.safetensors").is_file()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (Path(local_folder("hf://someone/films")) / "model.safetensors").is_file()  # from the cache
    with pytest.raises(ulmfit.UserError, match="is not in the cache"):
        load("other/films")


def test_a_hub_that_refuses_or_is_gone(runs, hub, monkeypatch):
    tokenizer = ulmfit.Tokenizer.from_pretrained(runs.lm)
    with pytest.raises(ulmfit.UserError, match="the hub does not take someone/x"):
        tokenizer.push_to_hub("someone/x", token="hf_of_a_reader")
    with pytest.raises(ulmfit.UserError, match="is no name for the hub"):
        tokenizer.push_to_hub("a/b/c")
    assert not hub.repositories
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens
    with pytest.raises(ulmfit.UserError, match="cannot be got from the hub"):
        local_folder("someone/films")
    with pytest.raises(ulmfit.UserError, match=r"the hub cannot be reached \(.+\), so someone/x is not uploaded"):
        tokenizer.push_to_hub("someone/x", token="hf_of_the_stand_in")
    assert not hub.repositories


def test_a_hubs_options_are_known_by_name(runs):
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'"):
        ulmfit.LanguageModel.from_pretrained(runs.lm, revison="v1")


def test_an_option_that_the_card_has_not_is_refused_before_anything_is_written(runs, hub, tmp_path):
    model = ulmfit.LanguageModel.from_pretrained(runs.lm, device="cpu")
    with pytest.raises(
        UserError, match="the model card has no option licence; give some of intended_use, language, lic"
    ):
        model.save_pretrained(tmp_path / "out", model_card_kwargs={"licence": "mit"})
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no option licence"):
        model.push_to_hub("me/lm", model_card_kwargs={"licence": "mit"})
    assert not hub.repositories
