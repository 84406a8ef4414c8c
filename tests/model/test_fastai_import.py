"""import-fastai and export --to fastai: the same numbers in both packages, and files that execute nothing."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from tests.model.test_fastai_format import BOMBS, Bomb, classifier_file, encoder_file, language_model_file
from ulmfit.cli import DONE, USER_ERROR, main
from ulmfit.errors import UserError
from ulmfit.inference import LanguageModel, TextClassifier
from ulmfit.model import vocabulary_file
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.fastai_export import fastai_state
from ulmfit.model.fastai_format import load_fastai
from ulmfit.model.fastai_import import import_fastai
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import load_model
from ulmfit.model.vocabulary_file import read_words_and_labels, unpickle_words
from ulmfit.tokenizer.rules import SPECIALS

PLAIN = [f"w{i}" for i in range(41)]
WORDS = {f"fastai{version}": [*SPECIALS[f"fastai{version}"], *PLAIN] for version in (1, 2)}  # 50 words


def golden_file(golden, kind):
    """The weights of the golden values as fastai's file: lm1, lm2, encoder1, encoder2, clf1 or clf2."""
    version = int(kind[-1])
    arrays = golden.v2 if kind == "clf2" else golden.v1
    prefix = "cw." if kind.startswith("clf") else "w."
    state = {name.removeprefix(prefix): tensor for name, tensor in arrays.items() if name.startswith(prefix)}
    place = "0.module." if prefix == "cw." else "0."
    state[f"{place}encoder_dp.emb.weight"] = state[f"{place}encoder.weight"]
    if version == 1:  # the dropped copy
        for i in range(3):
            raw = state[f"{place}rnns.{i}.weight_hh_l0_raw"]
            state[f"{place}rnns.{i}.module.weight_hh_l0"] = torch.zeros_like(raw)
    if prefix == "w.":
        state["1.decoder.weight"] = state["0.encoder.weight"]
    for name in list(state):  # buffers of a batch norm that was never trained
        if name.startswith("1.layers.") and state[name].dim() == 1 and name.endswith("weight"):
            norm = name.removesuffix("weight")
            state[f"{norm}running_mean"] = torch.zeros_like(state[name])
            state[f"{norm}running_var"] = torch.ones_like(state[name])
            state[f"{norm}num_batches_tracked"] = torch.tensor(0)
    if kind.startswith("encoder"):
        state = {name.removeprefix("0."): tensor for name, tensor in state.items() if name.startswith("0.")}
    return state


def saved(folder, state, words, name="model", **more):
    torch.save({"model": state, "opt": {"state": []}} if more.get("wrapped") else state, folder / f"{name}.pth")
    (folder / "itos.pkl").write_bytes(pickle.dumps(words))
    return folder / f"{name}.pth", folder / "itos.pkl"


@pytest.mark.parametrize("kind", ["lm1", "lm2"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_imported_language_model_has_fastais_logits(golden, tmp_path, capsys, kind, wrapped):
    """With the special tokens of both orders; ids stay what they were."""
    words = WORDS[f"fastai{kind[-1]}"]
    files = saved(tmp_path, golden_file(golden, kind), words, wrapped=wrapped)
    assert main(["import-fastai", *map(str, files), str(tmp_path / "out")]) == DONE, capsys.readouterr().err
    assert f"language model of fastai {kind[-1]}, embedding 12, hidden 20, 3 layers" in capsys.readouterr().out
    net, tokenizer, config = load_model(tmp_path / "out")
    assert tokenizer.vocab[:50] == words and tokenizer.rules == f"fastai{kind[-1]}"
    assert config["imported"] == {"from": f"fastai {kind[-1]}", "kind": "language model"}
    state = net.init_state(2)
    for call, ids in enumerate(golden.tokens.split(7, 1), start=1):
        logits, state = net.next_logits(ids, state)
        torch.testing.assert_close(logits[:, :50], golden.v1[f"lm.logits{call}"][:, -1], rtol=0, atol=1e-6)
    LanguageModel.from_pretrained(tmp_path / "out").generate("w1", max_new_tokens=3, seed=0)


@pytest.mark.parametrize("kind", ["clf1", "clf2"])
def test_an_imported_classifier_has_fastais_logits(golden, tmp_path, capsys, kind):
    files = saved(tmp_path, golden_file(golden, kind), WORDS[f"fastai{kind[-1]}"])
    words = ["import-fastai", *map(str, files), str(tmp_path / "out"), "--labels", "bad, fair, good"]
    assert main(words) == DONE, capsys.readouterr().err
    model = TextClassifier.from_pretrained(tmp_path / "out", backend="torch")
    assert model.label_names == ["bad", "fair", "good"]
    assert (model.config["bptt"], model.config["max_len"]) == ((70, 1400) if kind == "clf1" else (72, 1440))
    expected = (golden.v1 if kind == "clf1" else golden.v2)[f"clas.v{kind[-1]}_single"]
    for document, logits in zip(golden.documents, expected, strict=True):
        found = model.net(document[None], [len(document)]).logits[0]
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-6)
    assert model.predict("w1 w2").label in model.label_names


@pytest.mark.parametrize("kind", ["encoder1", "encoder2"])
def test_an_encoder_becomes_a_language_model_without_bias(golden, tmp_path, kind, capsys):
    files = saved(tmp_path, golden_file(golden, kind), WORDS[f"fastai{kind[-1]}"])
    assert main(["import-fastai", *map(str, files), str(tmp_path / "out")]) == DONE
    assert "its bias starts at zero" in capsys.readouterr().out
    net, _, _ = load_model(tmp_path / "out")
    assert not net.decoder_bias.any()
    whole = golden_file(golden, "lm1")
    assert torch.equal(net.encoder.layers[2].weight_hh, whole["0.rnns.2.weight_hh_l0_raw"])


def test_weights_go_with_their_words_whatever_their_ids(golden, tmp_path):
    """Special tokens in the middle of a list, words twice and fillers: each word keeps its row."""
    words = [*PLAIN[:20], *SPECIALS["fastai2"][::-1], *PLAIN[20:38], "w3", "xxfake", "xxfake"]
    words = words[words.index("xxmaj") :] + words[: words.index("xxmaj")]  # now xxmaj is before xxrep
    assert len(words) == 50
    found = import_fastai(*saved(tmp_path, golden_file(golden, "lm2"), words))
    old = golden_file(golden, "lm2")["0.encoder.weight"]
    new = found.net.state_dict()["encoder.embedding.weight"]
    for word in [*SPECIALS["fastai1"], *PLAIN[:38]]:
        assert torch.equal(new[found.tokenizer.vocab.index(word)], old[words.index(word)]), word
    assert found.tokenizer.vocab[:9] == list(SPECIALS["fastai1"]) and found.tokenizer.rules == "fastai1"
    (tmp_path / "b").mkdir()
    files = saved(tmp_path / "b", golden_file(golden, "lm2"), words)
    assert import_fastai(*files, rules="fastai2").tokenizer.rules == "fastai2"


def test_a_vocabulary_saved_before_it_was_padded(tmp_path):
    state = {name: tensor for name, tensor in encoder_file(2).items()}
    for name in ("encoder.weight", "encoder_dp.emb.weight"):
        state[name] = torch.randn(56, 12)
    words = WORDS["fastai2"]
    assert load_fastai(*saved(tmp_path, state, words)).vocab == words + ["xxfake"] * 6
    for wrong in (words[1:], words[:47], [f"v{i}" for i in range(50)]):  # without its head, too short, another list
        with pytest.raises(UserError, match="words but .* 56"):
            load_fastai(*saved(tmp_path, state, wrong))


@pytest.mark.parametrize("hidden", [1150, 1152])
def test_both_hidden_sizes_of_fastai(tmp_path, hidden):
    net = LanguageModelNet(AWDLSTMConfig(50, 4, hidden, 2))
    found = import_fastai(*saved(tmp_path, fastai_state(net), WORDS["fastai1"]))
    assert found.net.config.hidden_size == hidden
    ids = torch.arange(9, 29)[None]
    ours, theirs = (each.next_logits(ids, each.init_state(1))[0] for each in (found.net, net))
    torch.testing.assert_close(ours[:, :50], theirs, rtol=0, atol=1e-6)


def test_names_of_classes(tmp_path, capsys):
    files = saved(tmp_path, classifier_file(2), WORDS["fastai2"])
    assert import_fastai(*files).config["label_names"] == ["0", "1", "2"]
    (tmp_path / "vocab.json").write_text(json.dumps([WORDS["fastai2"], ["a", "b", "c"]]))
    assert import_fastai(files[0], tmp_path / "vocab.json").config["label_names"] == ["a", "b", "c"]
    for labels in ("a,b", "a,b,b", "a,b,"):
        out = str(tmp_path / "out")
        assert main(["import-fastai", *map(str, files), out, "--labels", labels]) == USER_ERROR
        assert "3 classes" in capsys.readouterr().err
    (tmp_path / "lm").mkdir()
    files = saved(tmp_path / "lm", language_model_file(2), WORDS["fastai2"])
    assert main(["import-fastai", *map(str, files), str(tmp_path / "out"), "--labels", "a"]) == USER_ERROR
    assert "has no classes" in capsys.readouterr().err and not (tmp_path / "out").exists()


# What `pickle.dumps(learn.dls.vocab)` of fastai 2.8 gives for a classifier, and for a language model by hand.
DLS_VOCAB = (
    b"\x80\x02cfastcore.foundation\nL\nq\x00)\x81q\x01}q\x02X\x05\x00\x00\x00itemsq\x03]q\x04(]q\x05(X\x05\x00\x00\x00xxunk"
    b"q\x06X\x05\x00\x00\x00xxpadq\x07X\x01\x00\x00\x00aq\x0fX\x06\x00\x00\x00xxfakeq\x12h\x12ecfastai.data.transforms\n"
    b"CategoryMap\nq\x13)\x81q\x14}q\x15(h\x03h\x00)\x81q\x16}q\x17h\x03]q\x18(X\x01\x00\x00\x00xq\x19X\x01\x00\x00\x00yq"
    b"\x1aesbX\x03\x00\x00\x00o2iq\x1b}q\x1c(h\x19K\x00h\x1aK\x01uubesb."
)


def test_the_vocabulary_of_a_classifiers_learner_is_read(tmp_path):
    (tmp_path / "v.pkl").write_bytes(DLS_VOCAB)
    assert read_words_and_labels(tmp_path / "v.pkl") == (["xxunk", "xxpad", "a", "xxfake", "xxfake"], ["x", "y"])
    one = b"\x80\x02cfastcore.foundation\nL\n)\x81}X\x05\x00\x00\x00items](X\x01\x00\x00\x00aX\x01\x00\x00\x00besb."
    (tmp_path / "v.pkl").write_bytes(one)
    assert read_words_and_labels(tmp_path / "v.pkl") == (["a", "b"], None)
    for change in (
        (b"fastcore.foundation\nL", b"fastcore.foundation\nM"),
        (b"fastcore.foundation\nL", b"os\nsystem"),
        (b"L\n)\x81", b"L\n(X\x01\x00\x00\x00at\x81"),  # a call with an argument
        (b"L\n)\x81", b"L\n)R"),  # REDUCE
        (b"items", b"other"),
    ):
        (tmp_path / "v.pkl").write_bytes(one.replace(*change))
        with pytest.raises(UserError, match="no list of words"):
            read_words_and_labels(tmp_path / "v.pkl")


def test_malicious_files_are_refused_and_nothing_is_written(tmp_path, capsys):
    weights, words = saved(tmp_path, {"model": language_model_file(2), "opt": Bomb()}, WORDS["fastai2"])
    out = tmp_path / "out"
    Bomb.exploded = False
    assert main(["import-fastai", str(weights), str(words), str(out)]) == USER_ERROR
    assert "not a file of plain weights" in capsys.readouterr().err.splitlines()[-1]
    torch.save(language_model_file(2), weights)
    for content in (pickle.dumps(Bomb()), pickle.dumps([Bomb()], 0), *BOMBS.values()):
        words.write_bytes(content)
        assert main(["import-fastai", str(weights), str(words), str(out)]) == USER_ERROR
        assert "no list of words" in capsys.readouterr().err.splitlines()[-1]
    assert not Bomb.exploded and not out.exists()


def test_what_cannot_be_imported_is_told(tmp_path, capsys):
    weights, words = map(str, saved(tmp_path, language_model_file(2), WORDS["fastai2"]))
    for options, sentence in (
        ([weights, words], "takes three words"),
        ([weights, words, str(tmp_path / "out"), "more"], "there are 4"),
        ([weights, words, str(tmp_path)], "exists"),
        ([weights + "x", words, str(tmp_path / "out")], "does not exist"),
    ):
        assert main(["import-fastai", *options]) == USER_ERROR
        assert sentence in capsys.readouterr().err
    (tmp_path / "pieces.json").write_text(json.dumps([f"\u2581{i}" for i in range(50)]))
    with pytest.raises(UserError, match="pieces of words"):
        import_fastai(weights, tmp_path / "pieces.json")


def test_tensors_that_are_not_in_the_file_are_refused(tmp_path, capsys):
    """A view of one element with the shape of gigabytes; sparse and meta tensors; a name that is a number."""
    for name, tensor in (
        ("0.encoder.weight", torch.zeros(1, 1).expand(10**6, 10**6)), (5, torch.zeros(2)),
        ("0.encoder.weight", torch.eye(4).to_sparse()), ("0.encoder.weight", torch.zeros(4, 4, device="meta")),
    ):  # fmt: skip
        weights, words = saved(tmp_path, language_model_file(2) | {name: tensor}, WORDS["fastai2"])
        assert main(["import-fastai", str(weights), str(words), str(tmp_path / "out")]) == USER_ERROR
        assert "holds no state dict" in capsys.readouterr().err.splitlines()[-1]


def test_words_are_unicode_and_a_list_is_known_by_any_spelling_of_its_suffix(tmp_path):
    weights, _ = saved(tmp_path, language_model_file(2), WORDS["fastai2"])
    (tmp_path / "half.json").write_text(json.dumps([*WORDS["fastai2"][:-1], "\ud800"]))
    with pytest.raises(UserError, match="is no list of words"):
        import_fastai(weights, tmp_path / "half.json")
    (tmp_path / "ITOS.PKL").write_bytes((tmp_path / "itos.pkl").read_bytes())
    assert import_fastai(weights, tmp_path / "ITOS.PKL").source.vocab == WORDS["fastai2"]


def test_a_mark_over_a_long_stack_does_not_copy_it():
    """A file of 16 MiB could hold millions of marks over millions of values."""

    class Counted(list):
        copied = 0

        def __getitem__(self, key):
            Counted.copied += len(range(*key.indices(len(self)))) if isinstance(key, slice) else 0
            return super().__getitem__(key)

    machine = vocabulary_file._Machine()
    machine._stack = Counted()
    with pytest.raises(ValueError, match="unpack"):
        machine.run(b"N" * 1000 + b"]" + b"(e" * 1000 + b".")
    assert Counted.copied < 10_000


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(vocabulary_file, "_MOST_REMEMBERED", 10)
    with pytest.raises(ValueError, match="remembers more than words"):
        unpickle_words(b"]" + b"\x94" * 11 + b".")


def some_classifier(classes, hidden):
    torch.manual_seed(3)
    net = ClassifierNet(AWDLSTMConfig(50, 12, 20, 3), classes, head_hidden=hidden)
    with torch.no_grad():
        for norm in (net.head.norm1, net.head.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
        net.head.linear1.bias.normal_()
        net.head.linear2.bias.normal_()
    return net


def test_a_round_trip_through_fastais_format(golden, tmp_path):
    """Also of the head, whose biases fastai 2 does not have: they move into the batch norm before."""
    net = some_classifier(3, 30)
    state = fastai_state(net)
    assert not any(name.startswith("1.layers") and name.endswith("2.bias") for name in state)
    back = import_fastai(*saved(tmp_path, state, WORDS["fastai1"])).net
    for document in golden.documents:
        ours, theirs = (each(document[None], [len(document)]).logits for each in (net, back))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    cooled = import_fastai(*saved(tmp_path, fastai_state(net, 2.5), WORDS["fastai1"])).net  # a calibrated one
    ours, theirs = (each(golden.documents[0][None], [len(golden.documents[0])]).logits for each in (net, cooled))
    torch.testing.assert_close(ours / 2.5, theirs, rtol=0, atol=2e-5)
    for classes, hidden in ((9, 4), (3, 50)):  # more outputs of a layer than inputs
        with pytest.raises(UserError, match="a bias that fastai 2 cannot hold"):
            fastai_state(some_classifier(classes, hidden))


def test_export_to_fastai_writes_weights_words_and_how_to_load_them(runs, tmp_path, capsys):
    for run, name in ((runs.lm, "language_model"), (runs.clf, "classifier")):
        out = tmp_path / name
        assert main(["export", "--model", str(run), "--output", str(out), "--to", "fastai"]) == DONE
        files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
        assert files == {f"models/{name}.pth", "models/encoder.pth", "models/itos.pkl", "README.md"}
        assert f'learn.load("{name}"' in (out / "README.md").read_text()
        back = import_fastai(out / "models" / f"{name}.pth", out / "models" / "itos.pkl")
        net, tokenizer, _ = load_model(run)
        assert back.tokenizer.vocab == tokenizer.vocab and back.source.kind == name
        for key, tensor in net.state_dict().items():
            if "head" not in key:
                assert torch.equal(back.net.state_dict()[key], tensor), key
        encoder = load_fastai(out / "models" / "encoder.pth", out / "models" / "itos.pkl")
        assert encoder.kind == "encoder"
    capsys.readouterr()
    words = ["export", "--model", str(runs.lm), "--output", str(tmp_path / "no"), "--to", "fastai"]
    for more in (["--bits", "8"], ["--int8"], ["--model", str(runs.lm)]):
        assert main([*words, *more]) == USER_ERROR, more
    assert not (tmp_path / "no").exists()
