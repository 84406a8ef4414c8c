"""fastai's files of both versions, wrapped or not, and what must not be read."""

from __future__ import annotations

import json
import math
import pickle
import sys
import tracemalloc
import types
import zipfile

import pytest
import torch

from tests.training import runs
from ulmfit import train_language_model
from ulmfit.errors import UserError
from ulmfit.model import vocabulary_file
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.fastai_format import fastai_state_dict, load_fastai
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import load_model
from ulmfit.model.vocabulary_file import read_vocabulary

V, E, H, LAYERS, CLASSES = 50, 12, 20, 3, 3
WORDS = [f"w{i}" for i in range(V)]


def encoder_file(version, prefix=""):
    torch.manual_seed(version)
    embedding = torch.randn(V, E)
    state = {f"{prefix}encoder.weight": embedding, f"{prefix}encoder_dp.emb.weight": embedding}
    for i in range(LAYERS):
        size, hidden = (E if i == 0 else H), (E if i == LAYERS - 1 else H)
        layer = f"{prefix}rnns.{i}."
        state[f"{layer}weight_hh_l0_raw"] = torch.randn(4 * hidden, hidden)
        state[f"{layer}module.weight_ih_l0"] = torch.randn(4 * hidden, size)
        if version == 1:  # the dropped copy of the last training step
            state[f"{layer}module.weight_hh_l0"] = torch.zeros(4 * hidden, hidden)
        state[f"{layer}module.bias_ih_l0"] = torch.randn(4 * hidden)
        state[f"{layer}module.bias_hh_l0"] = torch.randn(4 * hidden)
    return state


def language_model_file(version):
    state = encoder_file(version, "0.")
    return state | {"1.decoder.weight": state["0.encoder.weight"], "1.decoder.bias": torch.randn(V)}


def classifier_file(version, dropout=True):
    """Dropout layers take a place in fastai's numbering when their probability is not 0."""
    state = encoder_file(version, "0.module.")
    places = {
        (1, True): ["0", "2", "4", "6"],
        (1, False): ["0", "1", "3", "4"],
        (2, True): ["0.0", "0.2", "1.0", "1.2"],
        (2, False): ["0.0", "0.1", "1.0", "1.1"],
    }
    norm1, linear1, norm2, linear2 = (f"1.layers.{place}." for place in places[version, dropout])
    for norm, width in ((norm1, 3 * E), (norm2, 5)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}{name}"] = torch.rand(width)
        state[f"{norm}num_batches_tracked"] = torch.tensor(7)
    for linear, shape in ((linear1, (5, 3 * E)), (linear2, (CLASSES, 5))):
        state[f"{linear}weight"] = torch.randn(shape)
        if version == 1:
            state[f"{linear}bias"] = torch.randn(shape[0])
    return state


def check_encoder(ours, theirs, prefix):
    assert torch.equal(ours["encoder.embedding.weight"], theirs[f"{prefix}encoder.weight"])
    for i in range(LAYERS):
        ours_i, theirs_i = f"encoder.layers.{i}.", f"{prefix}rnns.{i}."
        assert torch.equal(ours[f"{ours_i}weight_hh"], theirs[f"{theirs_i}weight_hh_l0_raw"])
        for name in ("weight_ih", "bias_ih", "bias_hh"):
            assert torch.equal(ours[ours_i + name], theirs[f"{theirs_i}module.{name}_l0"])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_language_model_and_encoder_files(version, wrapped):
    theirs = language_model_file(version)
    ours = fastai_state_dict({"model": theirs, "opt": {"state": {}}} if wrapped else theirs)
    LanguageModelNet(AWDLSTMConfig(V, E, H, LAYERS)).load_state_dict(ours)
    check_encoder(ours, theirs, "0.")
    assert torch.equal(ours["decoder_bias"], theirs["1.decoder.bias"])
    theirs = encoder_file(version)
    ours = fastai_state_dict(theirs)
    check_encoder(ours, theirs, "")
    assert "decoder_bias" not in ours


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dropout", [True, False])
def test_classifier_files(version, dropout):
    theirs = classifier_file(version, dropout)
    ours = fastai_state_dict(theirs)
    ClassifierNet(AWDLSTMConfig(V, E, H, LAYERS), CLASSES, head_hidden=5).load_state_dict(ours)
    check_encoder(ours, theirs, "0.module.")
    head = [tensor for name, tensor in theirs.items() if name.startswith("1.layers.")]
    read = [tensor for name, tensor in ours.items() if name.startswith("head.")]
    found = [tensor for tensor in head if any(torch.equal(tensor, other) for other in read)]
    assert len(found) == len(head) == (14 if version == 1 else 12)
    assert ours["head.linear2.bias"].any() == (version == 1)


@pytest.mark.parametrize("version", [1, 2])
def test_the_layouts_here_are_fastais(golden, version):
    theirs = getattr(golden, f"json{version}")[f"clas_keys_v{version}"]
    ours = classifier_file(version, dropout=False)
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == dict(theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.encoder.weight"), "no encoder.weight"),
        (lambda state: [state.pop(name) for name in list(state) if ".rnns." in name], "no rnns.0"),
        (lambda state: [state.pop(name) for name in list(state) if ".rnns.0" in name], "no rnns.0"),
        (lambda state: state.pop("0.rnns.1.module.weight_ih_l0"), "lacks 0.rnns.1.module.weight_ih_l0"),
        (lambda state: state.update({"0.rnns.0.module.weight_ih_l0_reverse": torch.zeros(1)}), "bidirectional"),
        (lambda state: state.update({"1.decoder.weight": torch.zeros(V, E)}), "not tied"),
        (lambda state: state.update({"epoch": 3}), "no state dict"),
    ],
)
def test_other_models_are_refused(change, words):
    state = language_model_file(1)
    change(state)
    with pytest.raises(UserError, match=words):
        fastai_state_dict(state)


def test_another_head_is_refused():
    state = classifier_file(1)
    state |= {"1.layers.8.weight": torch.zeros(3), "1.layers.10.weight": torch.zeros(3, 3)}
    with pytest.raises(UserError, match="head"):
        fastai_state_dict(state)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(language_model_file, "language_model"), (encoder_file, "encoder"), (classifier_file, "classifier")],
)
def test_load_fastai(tmp_path, content, kind):
    torch.save(content(2), tmp_path / "model.pth")
    (tmp_path / "itos.pkl").write_bytes(pickle.dumps(WORDS))
    model = load_fastai(tmp_path / "model.pth", tmp_path / "itos.pkl")
    assert model.config == AWDLSTMConfig(V, E, H, LAYERS)
    assert model.vocab == WORDS and model.kind == kind
    (tmp_path / "short.json").write_text(json.dumps(WORDS[1:]))
    with pytest.raises(UserError, match="49 words but .* 50"):
        load_fastai(tmp_path / "model.pth", tmp_path / "short.json")


def test_a_file_with_fastai_2s_optimizer_is_read_without_fastcore(tmp_path, monkeypatch):
    class L:  # pickles by name and __dict__, as fastcore's does
        def __init__(self, items):
            self.items = items

    L.__module__, L.__qualname__ = "fastcore.foundation", "L"
    module = types.ModuleType("fastcore.foundation")
    module.L = L
    for name, stub in (("fastcore", types.ModuleType("fastcore")), ("fastcore.foundation", module)):
        monkeypatch.setitem(sys.modules, name, stub)
    torch.save(
        {"model": language_model_file(2), "opt": {"state": [], "hypers": L([{"lr": 0.1}])}}, tmp_path / "model.pth"
    )
    for name in ("fastcore.foundation", "fastcore"):
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "itos.txt").write_text("\n".join(WORDS) + "\n")
    model = load_fastai(tmp_path / "model.pth", tmp_path / "itos.txt")
    check_encoder(model.state, language_model_file(2), "0.")


class Bomb:
    exploded = False

    @staticmethod
    def explode():
        Bomb.exploded = True
        return []

    def __reduce__(self):
        return Bomb.explode, ()


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"model": language_model_file(1), "opt": Bomb()}, tmp_path / "model.pth")
    (tmp_path / "itos.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a file of plain weights"):
        load_fastai(tmp_path / "model.pth", tmp_path / "itos.pkl")
    with pytest.raises(UserError, match="no list of words.*it asks for"):
        read_vocabulary(tmp_path / "itos.pkl")
    assert not Bomb.exploded
    pickle.loads((tmp_path / "itos.pkl").read_bytes())
    assert Bomb.exploded  # the file was a live one


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.pkl", pickle.dumps(WORDS)),
        ("v.json", json.dumps(WORDS).encode()),
        ("v.json", json.dumps({word: i for i, word in reversed(list(enumerate(WORDS)))}).encode()),
        ("v.txt", "\n".join(WORDS).encode()),
        ("vocab", ("\n".join(WORDS) + "\n").encode()),
        ("windows.txt", ("\ufeff" + "\r\n".join(WORDS) + "\r\n").encode()),
    ],
)
def test_vocabulary_formats(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_vocabulary(tmp_path / name) == WORDS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.pkl", b""),
        ("v.pkl", b"garbage"),
        ("v.pkl", pickle.dumps([1, 2])),
        ("v.pkl", pickle.dumps(["a"])[:-3]),
        ("v.json", b"{"),
        ("v.json", b'{"a": 0, "b": 2}'),
        ("v.json", b"[]"),
        ("v.json", b"3"),
        ("v.txt", b"\xff\xfe"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="no list of words"):
        read_vocabulary(tmp_path / name)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "words", [["a"], ["xxunk", "\u00e9\n", "", "a" * 300], ["a", "b", "a", "b"] * 600, [str(n) for n in range(5000)]]
)
def test_pickles_of_every_protocol_are_read(tmp_path, protocol, words):
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(words, protocol))
    assert read_vocabulary(tmp_path / "v.pkl") == words


BOMBS = {
    "memo": b"\x80\x02]r\x80\xd1\xf0\x08.",
    "memo in text": b"]p999999999999\n.",
    "recall": b"]j\xff\xff\xff\x7f.",
    "string": b"]\x8d" + (2**40).to_bytes(8, "little") + b"a.",
    "bytes": b"]\x8e" + (2**40).to_bytes(8, "little") + b".",
    "bytearray": b"]\x96" + (2**33).to_bytes(8, "little") + b".",
    "frame": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"].",
    "lists": b"]" * 10**6 + b".",
    "sets": b"]" + b"\x8f" * 10**6 + b".",
    "dicts": b"]" + b"}" * 10**6 + b".",
    "marks": b"(" * 10**6 + b"l.",
    "number": b"]\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b".",
    "list in itself": b"]q\x00h\x00a.",
    "nothing": b".",
    "append to a string": b"X\x01\x00\x00\x00aX\x01\x00\x00\x00ba.",
    "stack underflow": b"a.",
    "no mark": b"]e.",
    "two results": b"]].",
    "copies": b"]" + b"2" * 10**6 + b".",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_and_takes_little_memory(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match="no list of words") as caught:
        read_vocabulary(tmp_path / "v.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20 + 20 * len(content) and "\n" not in str(caught.value)


def test_a_vocabulary_above_the_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary_file, "MOST_BYTES", 2**20)
    for name in ("v.pkl", "v.json", "v.txt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**40)  # sparse: it takes no space, and reading all of it no end
        with pytest.raises(UserError, match=f"{name} has more than 1 MiB"):
            read_vocabulary(tmp_path / name)


def test_bad_weights_of_fastai_are_refused(tmp_path):
    (tmp_path / "itos.pkl").write_bytes(pickle.dumps(WORDS))
    state = language_model_file(2)
    changes = {
        "NaN or infinite": state["1.decoder.bias"].clone().fill_(math.nan),
        "is int64 and not float32": torch.zeros(V, dtype=torch.long),
        "of other dimensions": torch.zeros(V, 2),
    }
    for words, bias in changes.items():
        torch.save(state | {"1.decoder.bias": bias}, tmp_path / "model.pth")
        with pytest.raises(UserError, match=words):
            load_fastai(tmp_path / "model.pth", tmp_path / "itos.pkl")
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "model.pth")
    found = load_fastai(tmp_path / "model.pth", tmp_path / "itos.pkl").state
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def write_compressed(folder):
    """w.pth: what torch saves, with one part more, and all of it compressed."""
    torch.save(language_model_file(2), folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as old, zipfile.ZipFile(folder / "w.pth", "w", 8) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        new.writestr("plain/data/99", bytes(10**7))


def test_a_compressed_file_of_weights_is_refused(tmp_path):
    write_compressed(tmp_path)
    with pytest.raises(UserError, match="is not a file of plain weights .it is compressed"):
        load_fastai(tmp_path / "w.pth", tmp_path / "v.pkl")


def test_the_size_is_asked_of_the_reader_that_loads_the_file(tmp_path):
    write_compressed(tmp_path)
    with open(tmp_path / "w.pth", "ab") as file:
        file.write(b"PK\x05\x06")  # at which Python's zipfile gives up, and torch does not
    with pytest.raises(UserError, match="is not a file of plain weights .it is compressed"):
        load_fastai(tmp_path / "w.pth", tmp_path / "v.pkl")
    for zipped in (True, False):
        torch.save({"a": bytearray(9)}, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="it holds a bytearray"):
            load_fastai(tmp_path / "b.pth", tmp_path / "v.pkl")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="weights.pth does not exist"):
        load_fastai(tmp_path / "weights.pth", tmp_path / "v.pkl")
    with pytest.raises(UserError, match="v.pkl cannot be read"):
        read_vocabulary(tmp_path / "v.pkl")
    (tmp_path / "weights.pth").write_bytes(b"not a torch file")
    with pytest.raises(UserError, match="weights.pth is not a file of plain weights"):
        load_fastai(tmp_path / "weights.pth", tmp_path / "v.pkl")


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (language_model_file, None),
        (lambda version: {"model": language_model_file(version), "opt": {}}, None),
        (encoder_file, "holds an encoder: the bias of the output layer starts at zero"),
        (classifier_file, "holds a classifier, whose encoder is used: the bias of the output layer starts at zero"),
    ],
)
def test_a_language_model_starts_from_every_kind_of_file(tmp_path, monkeypatch, capsys, version, content, said):
    """`--init` of a whole run, of so low a rate that the weights it saves are those it began with."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    torch.save(content(version), tmp_path / "model.pth")
    (tmp_path / "itos.pkl").write_bytes(pickle.dumps(WORDS))
    (tmp_path / "text.txt").write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(40)))
    train_language_model(
        runs.lm_config(
            tmp_path / "run",
            data=str(tmp_path / "text.txt"),
            init=str(tmp_path / "model.pth"),
            max_steps=2,
            lr=1e-30,
            weight_decay=0.0,
        )
    )
    notices = [line for line in capsys.readouterr().out.splitlines() if "output layer starts" in line]
    assert [line.partition("model.pth ")[2] for line in notices] == ([said] if said else [])
    net, tokenizer, _ = load_model(tmp_path / "run")
    theirs = fastai_state_dict(content(version))
    ids = [tokenizer.vocab.index(word) for word in WORDS]
    assert torch.equal(net.encoder.embedding.weight[ids], theirs["encoder.embedding.weight"])
    assert torch.equal(net.encoder.layers[1].weight_hh, theirs["encoder.layers.1.weight_hh"])
    if said:
        assert net.decoder_bias.abs().max() < 1e-28  # two steps away from zero
    else:
        assert torch.equal(net.decoder_bias[ids], theirs["decoder_bias"])
