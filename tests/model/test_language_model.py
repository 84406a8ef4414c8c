"""The language model: parity with fastai, sums that add up over parts, and generation."""

from __future__ import annotations

import math

import pytest
import torch

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.model.fastai_format import fastai_state_dict
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.training.masks import Masks

CONFIG = AWDLSTMConfig(vocab_size=30, embedding_size=6, hidden_size=10, num_layers=2)


def model(config=CONFIG, dtype=torch.float64):
    torch.manual_seed(1)
    net = LanguageModelNet(config).to(dtype)
    with torch.no_grad():  # large weights, for outputs that are far from uniform and differ from word to word
        for parameter in net.encoder.layers.parameters():
            parameter.mul_(8)
        net.encoder.embedding.weight.mul_(10)
        net.decoder_bias.normal_(std=0.1)
    return net


def tokens(rows=4, length=8):
    return torch.randint(2, 30, (rows, length), generator=torch.Generator().manual_seed(1))


def golden_model(golden):
    net = LanguageModelNet(AWDLSTMConfig(50, 12, 20, 3).with_dropouts("lm", 0))
    state = {name.removeprefix("w."): tensor for name, tensor in golden.v1.items() if name.startswith("w.")}
    net.load_state_dict(fastai_state_dict(state))
    return net


@pytest.mark.parametrize(
    ("vocab_size", "preset", "count"), [(60_000, "base", 44_333_280), (33_278, "blog", 33_556_078)]
)
def test_parameter_counts_with_one_tied_matrix(vocab_size, preset, count):
    with torch.device("meta"):
        net = LanguageModelNet(AWDLSTMConfig(vocab_size, **PRESETS[preset]))
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(net.state_dict()) == len(list(net.parameters()))


def test_layer_groups_are_fastais():
    with torch.device("meta"):
        net = LanguageModelNet(AWDLSTMConfig(60_000))
    parameters = dict(net.named_parameters())
    groups = net.layer_groups()
    assert [sum(parameters[name].numel() for name in group) for group in groups] == [
        7_160_832,
        10_626_048,
        2_486_400,
        24_060_000,
    ]
    assert sorted(sum(groups, [])) == sorted(parameters)


def test_logits_over_two_calls_are_fastais(golden):
    net = golden_model(golden)
    state = net.init_state(2)
    for call, ids in enumerate(golden.tokens.split(7, 1), start=1):
        for t in range(7):
            logits, _ = net.next_logits(ids[:, : t + 1], state)
            torch.testing.assert_close(logits, golden.v1[f"lm.logits{call}"][:, t], rtol=0, atol=1e-6)
        _, state = net.next_logits(ids, state)


def test_a_step_is_fastais(golden):
    """Cross-entropy, AR (alpha 2), TAR (beta 1) and the norm of the gradient of every tensor."""
    net, expected = golden_model(golden), golden.json2["lm_step"]
    out = net(golden.tokens[:, :7], golden.tokens[:, 1:8], net.init_state(2), Masks(0, 0, num_rows=2, rows=[0, 1]))
    ce, ar, tar = out.ce_sum / 14, 2 * out.ar_sum / (14 * 12), out.tar_sum / (12 * 12)
    assert ce.item() == pytest.approx(expected["ce"], rel=1e-6)
    assert ar.item() == pytest.approx(expected["ar"], rel=1e-5)
    assert tar.item() == pytest.approx(expected["tar"], rel=1e-5)
    (ce + ar + tar).backward()
    norms = fastai_names({name: p.grad.norm().item() for name, p in net.named_parameters()})
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-4)


def fastai_names(values):
    names = {"encoder.embedding.weight": "0.encoder.weight", "decoder_bias": "1.decoder.bias"}
    for i in range(3):
        ours, theirs = f"encoder.layers.{i}.", f"0.rnns.{i}."
        names[ours + "weight_hh"] = theirs + "weight_hh_l0_raw"
        names |= {ours + name: f"{theirs}module.{name}_l0" for name in ("weight_ih", "bias_ih", "bias_hh")}
    return {names[name]: value for name, value in values.items()}


def test_ar_takes_the_dropped_output_and_tar_the_raw_one():
    net = model()
    masks = Masks(0, 0, num_rows=4, rows=range(4))
    out = net(tokens()[:, :-1], tokens()[:, 1:], net.init_state(4), masks)
    raw, _ = net.encoder(tokens()[:, :-1], net.init_state(4), masks)
    dropped = raw * masks.per_row(CONFIG.output_p, 6, "output", 0).unsqueeze(1)
    torch.testing.assert_close(out.ar_sum, dropped.square().sum())
    torch.testing.assert_close(out.tar_sum, raw.diff(dim=1).square().sum())
    logits = dropped @ net.encoder.embedding.weight.T + net.decoder_bias
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens()[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(out.ce_sum, ce)
    assert not torch.allclose(dropped, raw)


def test_sums_and_gradients_add_up_over_parts_of_the_rows():
    net = model()
    targets = tokens()[:, 1:].clone()
    targets[2:, -1] = -100  # as in the last step of an epoch
    x = tokens()[:, :-1]

    def step(rows):
        rows = list(rows)
        out = net(x[rows], targets[rows], net.init_state(len(rows)), Masks(0, 9, num_rows=4, rows=rows))
        (out.ce_sum + 2 * out.ar_sum + out.tar_sum).backward()
        return torch.stack([out.ce_sum, out.num_correct.double(), out.ar_sum, out.tar_sum]).detach()

    whole = step(range(4))
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    parts = sum(step(rows) for rows in ([0], [1, 2], [3]))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-10, atol=1e-12)


def test_masked_targets_do_not_count():
    net = model()
    x, targets = tokens()[:, :-1], tokens()[:, 1:].clone()
    short = net(x[:, :4], targets[:, :4], net.init_state(4))
    targets[:, 4:] = -100
    masked = net(x, targets, net.init_state(4))
    for name in ("ce_sum", "num_correct", "ar_sum", "tar_sum"):
        torch.testing.assert_close(getattr(masked, name), getattr(short, name))


def test_the_forward_pass_never_holds_the_logits(recorder):
    net = model(AWDLSTMConfig(4000, 4, 6, 1), torch.float32)
    ids = torch.randint(0, 4000, (40, 26))
    with recorder:
        out = net(ids[:, :-1], ids[:, 1:], net.init_state(40))
        out.ce_sum.backward()
    assert recorder.largest <= 512 * 4000 < ids[:, 1:].numel() * 4000


def refeed(net, prompt, count, pick):
    ids = list(prompt)
    for _ in range(count):
        logits, _ = net.next_logits(torch.tensor([ids]), net.init_state(1))
        ids.append(pick(logits[0]))
    return ids[len(prompt) :]


def test_greedy_generation_equals_reading_everything_again():
    net = model()
    prompt = [2, 9, 4]
    expected = refeed(net, prompt, 12, lambda logits: logits.argmax().item())
    assert len(set(expected)) > 2
    for settings in ({"temperature": 0}, {"top_k": 1}, {"min_p": 1.0}):
        assert net.generate_ids([prompt], max_new_tokens=12, **settings) == [expected]


def test_batched_generation_equals_prompt_by_prompt():
    net = model()
    prompts = [[2, 9, 4], [7], [2, 5, 6, 8, 11, 3, 4], [5, 5, 5], [2]]
    together = net.generate_ids(prompts, max_new_tokens=10, temperature=0)
    assert together == [net.generate_ids([prompt], max_new_tokens=10, temperature=0)[0] for prompt in prompts]
    assert net.generate_ids([], max_new_tokens=3) == [] and net.generate_ids([[2]], max_new_tokens=0) == [[]]


def test_generation_reads_each_token_once():
    net, read = model(), []
    net.encoder.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[1]))
    net.generate_ids([[2] * 7], max_new_tokens=20)
    assert sum(read) == 7 + 19


def fixed_distribution(probabilities):
    """A model that gives these probabilities whatever it reads."""
    net = model(AWDLSTMConfig(len(probabilities), 2, 3, 1))
    with torch.no_grad():
        net.encoder.embedding.weight.zero_()
        net.decoder_bias.copy_(torch.tensor(probabilities).log())
    return net


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3]),
        ({"temperature": 1, "top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1, "min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 1, "banned": {0, 3}}, [0, 0.6, 0.4, 0]),
        ({"temperature": 1, "banned": [0], "top_k": 2}, [0, 0.6, 0.4, 0]),
    ],
)
def test_sampling_follows_the_distribution(settings, expected):
    net = fixed_distribution([0.4, 0.3, 0.2, 0.1])
    generator = torch.Generator().manual_seed(3)
    drawn = net.generate_ids([[0]] * 100, max_new_tokens=100, generator=generator, **settings)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=4) / 10_000
    for share, p in zip(counts.tolist(), expected, strict=True):
        assert share == 0 if p == 0 else abs(share - p) < 4 * math.sqrt(p * (1 - p) / 10_000)


def test_generation_follows_the_seed():
    net = model()

    def draw(seed):
        return net.generate_ids(
            [[2, 3]], max_new_tokens=20, temperature=1, generator=torch.Generator().manual_seed(seed)
        )

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"banned": range(30)}, "every word"),
    ],
)
def test_sampling_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        model().generate_ids([[2]], **{"max_new_tokens": 3, **settings})


def test_a_diverged_model_is_refused_and_the_smallest_temperature_takes_the_likeliest():
    net = LanguageModelNet(AWDLSTMConfig(vocab_size=20, embedding_size=8, hidden_size=8, num_layers=1)).eval()
    likeliest = net.generate_ids([[2]], max_new_tokens=5, temperature=0)
    assert net.generate_ids([[2]], max_new_tokens=5, temperature=1e-300) == likeliest
    with torch.no_grad():
        net.decoder_bias[3] = math.inf
    for temperature in (0, 0.75):
        with pytest.raises(UserError, match="its training has diverged; train it again with a lower --lr"):
            net.generate_ids([[2]], max_new_tokens=1, temperature=temperature)
