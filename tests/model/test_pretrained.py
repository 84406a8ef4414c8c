"""Models on disk: what is saved is what is loaded, and everything wrong is told in one sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket

import pytest
import safetensors.torch
import torch

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.initial_weights import init_language_model, transfer_vocabulary
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import find_model, load_model, save_model
from ulmfit.model.stored_weights import read_weights
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.masks import Masks

LABELS = ["neg", "neutral", "pos"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat", "a dog ran to the cat"], min_freq=1)


def language_model(tokenizer, **sizes):
    torch.manual_seed(0)
    sizes = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, **sizes}
    return LanguageModelNet(AWDLSTMConfig(len(tokenizer), **sizes))


def classifier(tokenizer, **sizes):
    config = language_model(tokenizer, **sizes).config.with_dropouts("clf", 0.5)
    net = ClassifierNet(config, 3, bptt=5, max_len=12, head_hidden=4, head_p=0.2, gradient_window=7)
    ids = torch.randint(0, len(tokenizer), (4, 6))
    net(ids, [6, 6, 5, 2], Masks(0, 0, num_rows=4, rows=range(4)))  # moves the running statistics
    return net


def assert_equal_state(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]) and tensor.dtype == b.state_dict()[name].dtype, name


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run directory whose model/ is a language model."""
    save_model(tmp_path / "run" / "model", language_model(tokenizer), tokenizer, {"bptt": 70})
    return tmp_path / "run"


def edit(path, **changes):
    config = json.loads(path.read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value != "gone"}
    path.write_text(json.dumps(config))


def test_language_model_comes_back(run, tokenizer):
    net = language_model(tokenizer)
    for path in (run, run / "model", str(run)):
        loaded, its_tokenizer, config = load_model(path)
        assert isinstance(loaded, LanguageModelNet) and loaded.config == net.config
        assert_equal_state(loaded, net)
        assert all(p.requires_grad for p in loaded.parameters())
        assert its_tokenizer.vocab == tokenizer.vocab
        assert (config["task"], config["bptt"], config["backwards"]) == ("language_model", 70, False)


def test_classifier_comes_back(tmp_path, tokenizer):
    net = classifier(tokenizer)
    save_model(tmp_path, net, tokenizer, {"label_names": LABELS, "backwards": True, "note": [1]})
    loaded, _, config = load_model(tmp_path)
    assert_equal_state(loaded, net)
    assert loaded.head.norm1.num_batches_tracked == 1
    for name in ("config", "num_classes", "bptt", "max_len", "head_hidden", "head_p", "gradient_window"):
        assert getattr(loaded, name) == getattr(net, name)
    assert loaded.head.dropouts == net.head.dropouts == (0.2, 0.2)
    assert (config["label_names"], config["backwards"], config["note"]) == (LABELS, True, [1])
    ids = torch.randint(0, len(tokenizer), (2, 9))
    assert torch.equal(loaded(ids, [9, 3]).logits, net(ids, [9, 3]).logits)


def test_float64_stays_and_half_becomes_float32(tmp_path, tokenizer):
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        save_model(tmp_path, language_model(tokenizer).to(dtype), tokenizer)
        net, _, _ = load_model(tmp_path)
        assert {p.dtype for p in net.parameters()} == {expected}
        assert torch.equal(net.decoder_bias, language_model(tokenizer).to(dtype).decoder_bias.to(expected))


def test_bytes_are_a_function_of_the_weights(tmp_path, tokenizer):
    net = language_model(tokenizer)
    for name in ("a", "b"):
        save_model(tmp_path / name, net, tokenizer)
    content = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert content == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert str(tmp_path).encode() not in content and socket.gethostname().encode() not in content
    tensors = safetensors.torch.load(content)
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in net.parameters())  # tied once
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_loading_draws_no_random_numbers_and_keeps_no_hold_of_the_file(run, tokenizer):
    before = torch.get_rng_state()
    net, _, _ = load_model(run)
    assert torch.equal(torch.get_rng_state(), before)
    path = run / "model" / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert_equal_state(net, language_model(tokenizer))


def test_saving_over_a_model_replaces_it(run, tokenizer):
    save_model(run / "model", classifier(tokenizer), tokenizer, {"label_names": LABELS})
    assert isinstance(load_model(run)[0], ClassifierNet)


def break_config(**changes):
    return lambda model: edit(model / "config.json", **changes)


def break_architecture(**changes):
    def change(model):
        architecture = json.loads((model / "config.json").read_text())["architecture"]
        edit(model / "config.json", architecture={**architecture, **changes})

    return change


def break_weights(**changes):
    def change(model):
        tensors = safetensors.torch.load_file(model / "model.safetensors") | changes
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        safetensors.torch.save_file(tensors, model / "model.safetensors")

    return change


def change_weights(change):
    return lambda model: break_weights(decoder_bias=change(read_weights(model)["decoder_bias"]))(model)


def with_value(tensor, value):
    tensor[-1] = value
    return tensor


def truncate(name):
    def change(model):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: len(content) // 2])

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "holds no model.safetensors"),
        (lambda model: shutil.rmtree(model.parent), "does not exist"),
        (lambda model: (model / "config.json").unlink(), "no config.json"),
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer.json"),
        (truncate("config.json"), "config.json cannot be read"),
        (truncate("tokenizer.json"), "tokenizer.json"),
        (truncate("model.safetensors"), "model.safetensors cannot be read"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), "model.safetensors cannot be read"),
        (lambda model: (model / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda model: (model / "config.json").write_bytes(b"\xff\xfe{"), "config.json cannot be read"),
        (break_config(format_version=99), "update ulmfit"),
        (break_config(format_version="1"), "format_version in .* is '1'"),
        (break_config(task="translator"), "task 'translator'"),
        (break_config(task="gone"), "task in .* is None"),
        (break_config(backwards=0), "backwards in .* is 0"),
        (break_config(architecture="gone"), "architecture in .* is None"),
        (break_architecture(hidden_size=8.5), "hidden_size in .* is 8.5"),
        (break_architecture(num_layers=True), "num_layers in .* is True"),
        (break_architecture(hidden_size=-8), "hidden_size is -8"),
        (break_architecture(weight_p=2), "weight_p is 2"),
        (break_architecture(hidden_size=9), "has shape"),
        (break_architecture(num_layers=3), "has 2 layers"),
        (break_architecture(num_layers=10**9), "has 2 layers"),
        (break_architecture(hidden_size=2**62), "tells of no model|has shape"),
        (break_architecture(vocab_size=99), "words but the model 99"),
        (break_config(task="classifier"), "label_names in .* is None"),
        (break_config(task="classifier", label_names=["a", 1]), "not a list of names"),
        (break_config(task="classifier", label_names=["a"], max_len=9, head_hidden=5), "head_p in .* is None"),
        (break_config(task="classifier", label_names=["a"], max_len=2**63), "max_len in .* is 9223372036854775808"),
        (break_config(task="classifier", label_names=["a"], text_columns=5), "text_columns in .* is not a list"),
        (
            break_config(task="classifier", label_names=["a"], temperature=10**400),
            "temperature in .*, none of a classifier",
        ),
        (
            break_config(task="classifier", label_names=["a"], temperature=1e-320, kind="ngrams"),
            "of type|none of a classifier",
        ),
        (break_architecture(embed_p=10**400), "embed_p in"),
        (break_weights(decoder_bias=None), "lacks decoder_bias"),
        (break_weights(extra=torch.zeros(2)), "unknown tensor extra"),
        (change_weights(torch.Tensor.double), "decoder_bias in .* is float64 and not float32"),
        (change_weights(torch.Tensor.long), "decoder_bias in .* is int64 and not float32"),
        (change_weights(torch.Tensor.bool), "decoder_bias in .* is bool and not float32"),
        (change_weights(lambda bias: bias.to(torch.complex64)), "decoder_bias in .* is complex64"),
        (change_weights(lambda bias: bias.to(torch.float8_e5m2)), "decoder_bias in .* is float8_e5m2"),
        (change_weights(lambda bias: with_value(bias, math.nan)), "decoder_bias in .* are NaN or infinite"),
        (change_weights(lambda bias: with_value(bias, -math.inf)), "decoder_bias in .* are NaN or infinite"),
        (break_weights(**{"decoder_bias.scales": torch.ones(3)}), "decoder_bias.scales are no scales"),
        (break_weights(**{"encoder.embedding.weight.scales": torch.ones(3)}), "weight.scales are no scales"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(run, damage, words):
    damage(run / "model")
    with pytest.raises(UserError, match=words) as caught:
        load_model(run)
    assert "; " in str(caught.value) and "\n" not in str(caught.value)


def test_keys_of_a_later_version_are_let_be(run):
    break_config(colour="blue")(run / "model")
    break_architecture(residual=True)(run / "model")
    assert load_model(run)[2]["colour"] == "blue"


def test_vocabulary_transfer_is_fastais(golden):
    weight, bias = transfer_vocabulary(
        torch.arange(12.0).view(4, 3), torch.arange(4.0), list("abcd"), ["c", "new", "a"]
    )
    assert torch.equal(weight, torch.tensor(golden.json1["convert_weights"]["0.encoder.weight"]))
    assert torch.equal(bias, torch.tensor(golden.json1["convert_weights"]["1.decoder.bias"]))


def test_vocabulary_transfer_of_repeated_words_and_without_bias():
    weight, bias = transfer_vocabulary(
        torch.arange(6.0).view(3, 2), None, ["a", "xxfake", "xxfake"], ["xxfake", "b", "xxfake"]
    )
    assert bias is None
    assert torch.equal(weight, torch.tensor([[2.0, 3], [2, 3], [2, 3]]))  # rows 1 and the mean, here alike
    unknown, _ = transfer_vocabulary(weight, None, list("abc"), ["d", "e"])
    assert torch.equal(unknown, weight.mean(0).expand(2, 2))


def test_a_language_model_starts_from_another_vocabulary(tokenizer):
    old = language_model(tokenizer)
    with torch.no_grad():
        old.decoder_bias.normal_()
    words = ["unheard", *reversed(tokenizer.vocab)]
    new = LanguageModelNet(AWDLSTMConfig(len(words), 6, 8, 2))
    init_language_model(new, old.state_dict(), tokenizer.vocab, words)
    assert torch.equal(new.encoder.embedding.weight[1:], old.encoder.embedding.weight.flip(0))
    assert torch.equal(new.decoder_bias[0], old.decoder_bias.mean())
    assert_equal_state(new.encoder.layers, old.encoder.layers)
    with pytest.raises(UserError, match="preset"):
        init_language_model(
            LanguageModelNet(AWDLSTMConfig(len(words), 6, 9, 2)), old.state_dict(), tokenizer.vocab, words
        )


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_a_model_has_the_mode_of_the_umask(tmp_path, tokenizer, umask):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model", language_model(tokenizer), tokenizer, {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), 0o666 & ~umask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_float_are_read(tmp_path, tokenizer, dtype):
    save_model(tmp_path, language_model(tokenizer).to(dtype), tokenizer, {})
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for tensor in load_model(tmp_path)[0].state_dict().values()} == {expected}


# -------------------------------------------------------------------------------------------------- 8 bits


@pytest.mark.parametrize(
    ("name", "value"), [("weight", torch.zeros(50)), ("scales", None), ("scales", torch.full((9,), math.nan))]
)
def test_damaged_8_bits_are_refused(tmp_path, tokenizer, name, value):
    save_model(tmp_path, language_model(tokenizer), tokenizer, {}, bits=8)
    name = "encoder.embedding.weight" + (".scales" if name == "scales" else "")
    if value is not None and name.endswith(".scales"):
        value = value[:1].expand(len(tokenizer)).clone()
    break_weights(**{name: value})(tmp_path)
    with pytest.raises(UserError, match="no scales|is int8 and not float32|NaN or infinite"):
        load_model(tmp_path)


def test_8_bits_move_a_weight_by_half_a_step_at_most_and_take_a_quarter(tmp_path, tokenizer):
    net = language_model(tokenizer, embedding_size=64, hidden_size=128)
    save_model(tmp_path / "whole", net, tokenizer, {})
    save_model(tmp_path / "small", net, tokenizer, {}, bits=8)
    loaded, again, _ = load_model(tmp_path / "small")
    assert again.vocab == tokenizer.vocab
    for name, tensor in net.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        if tensor.ndim == 2:
            assert ((found - tensor).abs() <= tensor.abs().amax(1, keepdim=True) / 127 / 2 * 1.0001).all(), name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.3 * sizes[1]


def test_a_row_of_zeros_survives_8_bits(tmp_path, tokenizer):
    net = language_model(tokenizer)
    net.encoder.embedding.weight.data[3] = 0
    save_model(tmp_path, net, tokenizer, {}, bits=8)
    assert not load_model(tmp_path)[0].encoder.embedding.weight[3].any()


def test_a_classifier_in_8_bits_keeps_its_counts(tmp_path, tokenizer):
    net = classifier(tokenizer)
    save_model(tmp_path, net, tokenizer, {"label_names": LABELS}, bits=8)
    found = load_model(tmp_path)[0].state_dict()["head.norm1.num_batches_tracked"]
    assert torch.equal(found, net.state_dict()["head.norm1.num_batches_tracked"])


@pytest.mark.parametrize("state", ["preempted", "running", "failed"])
def test_a_run_that_is_not_done_is_told_as_such(state, tmp_path):
    """A chained job that did not ask status.json for `done` learns what its predecessor has left."""
    (tmp_path / "status.json").write_text(json.dumps({"state": state, "step": 12}))
    with pytest.raises(UserError, match=f"has no model yet.*{state}.*; give the command that began it again"):
        find_model(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({"state": "done", "step": 12}))
    with pytest.raises(UserError, match="neither there nor in a folder model"):
        find_model(tmp_path)
