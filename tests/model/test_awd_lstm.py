"""The encoder against torch's own LSTM, and each dropout against its definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ulmfit.config_check import LARGEST_DROPOUT
from ulmfit.device import cpu_multiplies_bf16
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTM, PRESETS, AWDLSTMConfig, fp32_in_bf16, recurrence_dtype
from ulmfit.training.masks import Masks

SMALL = AWDLSTMConfig(vocab_size=30, embedding_size=6, hidden_size=10, num_layers=3)
NO_DROPOUT = SMALL.with_dropouts("lm", 0)


def only(**dropouts):
    return AWDLSTMConfig(**{**vars(NO_DROPOUT), **dropouts})


def encoder(config=SMALL, dtype=torch.float64):
    torch.manual_seed(0)
    return AWDLSTM(config).to(dtype)


def tokens(rows=4, length=7):
    return torch.randint(0, 30, (rows, length), generator=torch.Generator().manual_seed(1))


def masks(step=0, rows=range(4), num_rows=4):
    return Masks(5, step, num_rows=num_rows, rows=list(rows))


def reference(net, x, state, weights_hh=None, between=None):
    """The layers as torch's modules; `weights_hh` in place of the recurrent weights, `between` on outputs."""
    new_state = []
    for i, layer in enumerate(net.layers):
        lstm = nn.LSTM(layer.weight_ih.shape[1], layer.weight_hh.shape[1], batch_first=True).to(x.dtype)
        weight_hh = layer.weight_hh if weights_hh is None else weights_hh[i]
        lstm.load_state_dict(
            {
                "weight_ih_l0": layer.weight_ih,
                "weight_hh_l0": weight_hh,
                "bias_ih_l0": layer.bias_ih,
                "bias_hh_l0": layer.bias_hh,
            }
        )
        x, (h, c) = lstm(x, tuple(part.unsqueeze(0) for part in state[i]))
        if between is not None and i + 1 < len(net.layers):
            x = x * between[i]
        new_state.append((h[0], c[0]))
    return x, new_state


@pytest.mark.parametrize(
    ("vocab_size", "preset", "count"),
    [(60_000, "base", 44_333_280), (33_278, "blog", 33_556_078), (10_000, "blog", 24_221_600)],
)
def test_parameter_counts(vocab_size, preset, count):
    with torch.device("meta"):
        net = AWDLSTM(AWDLSTMConfig(vocab_size, **PRESETS[preset]))
    assert sum(p.numel() for p in net.parameters()) == count - vocab_size  # less the decoder's bias


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_equals_torch_lstm_over_two_calls(num_layers):
    net = encoder(AWDLSTMConfig(30, 6, 10, num_layers))
    state = expected_state = net.init_state(4)
    for ids in tokens(4, 14).split(7, 1):
        output, state = net(ids, state)
        expected, expected_state = reference(net, net.embedding.weight[ids], expected_state)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        for (h, c), (eh, ec) in zip(state, expected_state, strict=True):
            torch.testing.assert_close(h, eh, rtol=0, atol=1e-12)
            torch.testing.assert_close(c, ec, rtol=0, atol=1e-12)


def test_token_by_token_equals_one_call():
    net = encoder()
    whole, end = net(tokens(), net.init_state(4))
    state, outputs = net.init_state(4), []
    with torch.inference_mode():
        for ids in tokens().split(1, 1):
            output, state = net(ids, state)
            outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(state[2][1], end[2][1], rtol=0, atol=1e-12)


def test_weight_drop_uses_the_dropped_weight_and_keeps_the_parameter():
    net = encoder(only(weight_p=0.5))
    before = copy.deepcopy(net.state_dict())
    output, _ = net(tokens(), net.init_state(4), masks(), window=2)
    drawn = [masks().shared(0.5, tuple(layer.weight_hh.shape), "weight", i, 2) for i, layer in enumerate(net.layers)]
    x = net.embedding.weight[tokens()]
    dropped, _ = reference(
        net, x, net.init_state(4), [layer.weight_hh * mask for layer, mask in zip(net.layers, drawn, strict=True)]
    )
    torch.testing.assert_close(output, dropped, rtol=0, atol=1e-12)
    raw, _ = reference(net, x, net.init_state(4))
    assert (output - raw).abs().max() > 1e-3
    output.square().sum().backward()
    for layer, mask in zip(net.layers, drawn, strict=True):
        assert torch.equal(layer.weight_hh.grad != 0, mask != 0)  # the raw weight learns, where it was kept
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_weight_drop_share_and_scale():
    mask = masks().shared(0.2, (400, 100), "weight", 0, 0)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert abs((mask == 0).double().mean().item() - 0.2) < 0.01


def test_all_dropouts_as_defined():
    net = encoder(SMALL.with_dropouts("clf", 1))
    m, config, ids = masks(), net.config, tokens()
    output, _ = net(ids, net.init_state(4), m, window=3)
    x = net.embedding.weight * m.shared(config.embed_p, (30,), "embedding", 3).unsqueeze(1)
    x = x[ids] * m.per_row(config.input_p, 6, "input", 3).unsqueeze(1)
    hh = [
        layer.weight_hh * m.shared(config.weight_p, tuple(layer.weight_hh.shape), "weight", i, 3)
        for i, layer in enumerate(net.layers)
    ]
    between = [m.per_row(config.hidden_p, 10, "hidden", i, 3).unsqueeze(1) for i in range(2)]
    expected, _ = reference(net, x, net.init_state(4), hh, between)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def test_word_dropout_drops_words_everywhere_without_copying_the_matrix(recorder):
    net = encoder(AWDLSTMConfig(5000, 6, 10, 2, input_p=0, hidden_p=0, weight_p=0, embed_p=0.5, output_p=0))
    with recorder:
        output, _ = net(torch.arange(8).view(2, 4), net.init_state(2), masks(rows=range(2)))
    assert recorder.largest == 5000  # the mask
    output.sum().backward()
    kept = masks().shared(0.5, (5000,), "embedding", 0)[:8] != 0
    assert 0 < kept.sum() < 8
    assert torch.equal(net.embedding.weight.grad[:8].abs().sum(1) != 0, kept)


def test_masks_differ_by_window_and_step_and_repeat_at_the_same_place():
    net = encoder()
    outputs = [
        net(tokens(), net.init_state(4), masks(step), window)[0] for step, window in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_zero_probabilities_are_evaluation():
    net = encoder(NO_DROPOUT)
    assert torch.equal(net(tokens(), net.init_state(4), masks())[0], net(tokens(), net.init_state(4))[0])


def test_evaluation_repeats_after_a_training_call():
    net = encoder()
    first, _ = net(tokens(), net.init_state(4))
    net(tokens(), net.init_state(4), masks())[0].sum().backward()
    assert torch.equal(net(tokens(), net.init_state(4))[0], first)


def test_rows_dealt_in_parts_give_the_rows_of_the_whole():
    net = encoder()
    whole, state = net(tokens(), net.init_state(4), masks())
    for rows in ([0, 1], [3, 2], [2]):
        part, part_state = net(tokens()[rows], net.init_state(len(rows)), masks(rows=rows))
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(part_state[1][1], state[1][1][rows], rtol=0, atol=1e-12)


def test_state_is_zero_at_first_and_detached_after():
    net = encoder()
    state = net.init_state(3)
    assert [tuple(h.shape) for h, _ in state] == [(3, 10), (3, 10), (3, 6)]
    assert all(not part.any() and part.dtype == torch.float64 for pair in state for part in pair)
    output, state = net(tokens(3), state)
    assert output.requires_grad and not any(part.requires_grad for pair in state for part in pair)


def test_initial_weights_are_fastais_and_follow_the_seed():
    net, again = encoder(dtype=torch.float32), encoder(dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert 0.095 < net.embedding.weight.abs().max() <= 0.1
    for layer, hidden in zip(net.layers, (10, 10, 6), strict=True):
        for parameter in layer.parameters():
            assert 0.7 * hidden**-0.5 < parameter.abs().max() <= hidden**-0.5
    torch.manual_seed(1)
    assert not torch.equal(AWDLSTM(SMALL).embedding.weight, net.embedding.weight)


def test_deepcopy_after_training_is_equal_and_independent():
    net = encoder()
    net(tokens(), net.init_state(4), masks())[0].sum().backward()
    twin = copy.deepcopy(net)
    outputs = [each(tokens(), each.init_state(4), masks())[0] for each in (net, twin)]
    assert torch.equal(*outputs)
    with torch.no_grad():
        twin.layers[0].weight_hh.zero_()
    assert net.layers[0].weight_hh.any()


def test_ddp_gives_the_gradients_of_the_bare_module(tmp_path):
    net = encoder()
    net(tokens(), net.init_state(4), masks())[0].square().sum().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):  # DDP rebuilds its buckets after the first step
            net.zero_grad()
            wrapped(tokens(), net.init_state(4), masks())[0].square().sum().backward()
        # DDP must not be the last owner of the group. Its destructor holds the GIL while it joins gloo's thread, which needs
        # the GIL to free what it reduced a moment ago. Neither goes on, and no signal ends the wait.
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12)


def test_autocast_leaves_the_recurrence_in_float32_on_a_cpu_without_matrix_units(monkeypatch):
    monkeypatch.setattr("ulmfit.model.awd_lstm.cpu_multiplies_bf16", lambda: False)
    net = encoder(dtype=torch.float32)
    expected, _ = net(tokens(), net.init_state(4), masks())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = net(tokens(), net.init_state(4), masks())
    assert output.dtype == torch.float32 and state[0][0].dtype == torch.float32
    assert torch.equal(output, expected)


def test_dropouts_are_fastais(golden):
    for task, peer in (("lm", "awd_lm"), ("clf", "awd_clas")):
        config = AWDLSTMConfig(30).with_dropouts(task, 1)
        peer = golden.json1["configs"][peer]
        for name in ("input_p", "hidden_p", "weight_p", "embed_p", "output_p"):
            assert getattr(config, name) == peer[name]
        assert (config.embedding_size, config.hidden_size, config.num_layers, config.pad_id) == (
            peer["emb_sz"],
            peer["n_hid"],
            peer["n_layers"],
            peer["pad_token"],
        )
    assert AWDLSTMConfig(30).with_dropouts("lm", 0.3).weight_p == pytest.approx(0.06)


@pytest.mark.parametrize("task", ["lm", "clf"])
def test_the_largest_dropout_that_the_options_are_checked_by(task):
    config = AWDLSTMConfig(30).with_dropouts(task, 1.0)
    assert LARGEST_DROPOUT[task] == max(getattr(config, name) for name in vars(config) if name.endswith("_p"))


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="input_p is 1.2.*drop_mult"):
        SMALL.with_dropouts("clf", 3)
    with pytest.raises(UserError, match="input_p is -0.4"):
        SMALL.with_dropouts("clf", -1)
    with pytest.raises(UserError, match="hidden_size is 0"):
        AWDLSTMConfig(30, hidden_size=0)


@pytest.mark.parametrize(
    ("device", "weights", "autocast", "has_bf16", "expected"),
    [
        ("cuda", torch.float32, None, True, torch.float32),
        ("cuda", torch.float64, None, True, torch.float64),
        ("cuda", torch.float32, torch.float16, False, torch.float16),
        ("cuda", torch.float32, torch.bfloat16, True, torch.bfloat16),
        ("cuda", torch.float32, torch.bfloat16, False, torch.float32),
        ("cpu", torch.float32, None, True, torch.float32),
        ("cpu", torch.float32, torch.bfloat16, False, torch.float32),
        ("cpu", torch.float32, torch.bfloat16, True, torch.bfloat16),
        ("cpu", torch.float32, torch.float16, True, torch.float32),
        ("cpu", torch.float64, torch.bfloat16, True, torch.float64),
    ],
)
def test_the_dtype_of_the_recurrence(device, weights, autocast, has_bf16, expected):
    found = recurrence_dtype(device, weights, autocast, hidden_size=400, has_bf16=has_bf16)
    assert found == expected


@pytest.mark.parametrize(
    ("hidden_size", "expected"), [(64, torch.float32), (192, torch.float32), (193, torch.bfloat16)]
)
def test_small_layers_are_not_run_in_bf16_by_cudnn(hidden_size, expected):
    """There it has a kernel of its own, which torch chooses up to 192 units; fp16 is not concerned."""
    options = {"hidden_size": hidden_size, "has_bf16": True}
    assert recurrence_dtype("cuda", torch.float32, torch.bfloat16, **options) == expected
    assert recurrence_dtype("cuda", torch.float32, torch.float16, **options) == torch.float16


@pytest.mark.parametrize(
    ("preset", "device", "has_bf16", "told"),
    [
        ("base", "cpu", False, "no matrix units"),
        ("tiny", "cpu", True, None),
        ("base", "cuda", False, "this version of cuDNN"),
        ("tiny", "cuda", True, "at most 192 units"),
        ("small", "cuda", True, None),
        ("base", "cuda", True, None),
    ],
)
def test_what_bf16_computes_in_fp32_is_told(preset, device, has_bf16, told):
    found = fp32_in_bf16(AWDLSTMConfig(30, **PRESETS[preset]), device, has_bf16=has_bf16)
    assert found is None if told is None else told in found


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_a_half_precision_recurrence_keeps_state_masks_and_gradients_in_float32(dtype, near, monkeypatch):
    net = encoder(dtype=torch.float32)
    seen = []
    for layer in net.layers:
        layer.register_forward_hook(
            lambda _, inputs, outputs: seen.append(
                (outputs[0].dtype, inputs[2].dtype, *(part.dtype for part in (*inputs[1], *outputs[1])))
            )
        )

    def run():
        net.zero_grad()
        output, state = net(tokens(), net.init_state(4), masks())
        output, state = net(tokens(), state, masks(1))
        output.float().square().sum().backward()
        return output, state, {name: p.grad.clone() for name, p in net.named_parameters()}

    expected, _, wanted = run()
    seen.clear()
    monkeypatch.setattr("ulmfit.model.awd_lstm.recurrence_dtype", lambda *_, **__: dtype)
    with torch.backends.mkldnn.flags(enabled=False):  # the CPU's library may have no LSTM in half precision
        output, state, grads = run()
    assert set(seen) == {(dtype, *[torch.float32] * 5)}
    assert (output.float() - expected).norm() < near * expected.norm()
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and 0 < (grad - wanted[name]).norm() < 3 * near * wanted[name].norm(), name


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="this CPU has no matrix units for bf16")
def test_the_matrix_units_of_a_cpu_compute_what_float32_does():
    net = encoder(AWDLSTMConfig(30, embedding_size=32, hidden_size=64, num_layers=2), torch.float32)

    def run():
        net.zero_grad()
        output, state = net(tokens(), net.init_state(4), masks())
        output.float().square().sum().backward()
        return output, state, {name: p.grad.clone() for name, p in net.named_parameters()}

    expected, _, wanted = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state, grads = run()
    assert output.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for pair in state for part in pair)
    assert 0 < (output.float() - expected).norm() < 2e-2 * expected.norm()
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and 0 < (grad - wanted[name]).norm() < 6e-2 * wanted[name].norm(), name


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_number_of_parameters_is_known_before_the_encoder_is_built(num_layers):
    config = AWDLSTMConfig(30, embedding_size=5, hidden_size=7, num_layers=num_layers)
    assert config.num_parameters == sum(p.numel() for p in AWDLSTM(config).parameters())
