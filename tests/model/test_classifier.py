"""The classifier: a document gives the same whatever it is batched with, and memory has a bound."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierHead, ClassifierNet
from ulmfit.model.fastai_format import fastai_state_dict
from ulmfit.training.masks import Masks

BPTT, MAX_LEN = 5, 14
LENGTHS = [1, 2, 4, 5, 6, 9, 10, 11, 13, 14, 15, 16, 19, 20, 29, 47]
CONFIG = AWDLSTMConfig(vocab_size=30, embedding_size=6, hidden_size=8, num_layers=2).with_dropouts("clf", 1)


def model(config=CONFIG, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    settings = {"bptt": BPTT, "max_len": MAX_LEN, "head_hidden": 7, **settings}
    net = ClassifierNet(config, 3, **settings).to(dtype)
    with torch.no_grad():
        net.encoder.embedding.weight.mul_(10)
        for norm in (net.head.norm1, net.head.norm2):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    return net


def documents(lengths=tuple(LENGTHS)):
    g = torch.Generator().manual_seed(2)
    return [torch.randint(2, 30, (n,), generator=g) for n in lengths]


def batch(docs, extra=0):
    tokens = torch.ones(len(docs), max(map(len, docs)) + extra, dtype=torch.long)
    for row, document in zip(tokens, docs, strict=True):
        row[: len(document)] = document
    return tokens, torch.tensor([len(document) for document in docs])


def masks(rows, num_rows=16):
    return Masks(3, 0, num_rows=num_rows, rows=list(rows))


def pooled_outputs(net, document, backprop_tokens):
    """A document's outputs that are pooled, by definition, with gradient through the windows that hold some of its last
    `backprop_tokens` tokens."""
    state, outputs = net.encoder.init_state(1), []
    for start in range(0, len(document), net.bptt):
        with torch.set_grad_enabled(start + net.bptt > len(document) - backprop_tokens):
            output, state = net.encoder(document[None, start : start + net.bptt], state)
        outputs.append(output)
    return torch.cat(outputs, 1)[0, -net.max_len :]


def read_alone(net, document, backprop_tokens=MAX_LEN):
    """Pooled output of one document by definition."""
    pool = pooled_outputs(net, document, backprop_tokens)
    return torch.cat([pool[-1], pool.max(0).values, pool.mean(0)])


def gradients(net, value):
    return torch.autograd.grad(value.square().sum(), list(net.encoder.parameters()))


@pytest.mark.parametrize(("version", "bptt"), [(1, 70), (1, 8), (1, 1), (2, 72), (2, 9)])
def test_single_document_logits_of_fastai_for_any_batching(golden, version, bptt):
    arrays = golden.v1 if version == 1 else golden.v2
    net = ClassifierNet(AWDLSTMConfig(50, 12, 20, 3), 3, bptt=bptt, max_len=1400, head_hidden=5)
    state = {name.removeprefix("cw."): tensor for name, tensor in arrays.items() if name.startswith("cw.")}
    net.load_state_dict(dict(net.head.named_buffers(prefix="head")) | fastai_state_dict(state))
    expected = arrays[f"clas.v{version}_single"]
    together = net(*batch(golden.documents)).logits
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-6)
    for document, logits in zip(golden.documents, expected, strict=True):
        torch.testing.assert_close(net(*batch([document])).logits[0], logits, rtol=0, atol=1e-6)
    if version == 2:
        pooled = net.encode(*batch(golden.documents)).pooled
        torch.testing.assert_close(pooled, arrays["clas.pooled"], rtol=0, atol=1e-6)


def test_pooled_by_definition_with_its_gradient():
    net = model()
    pooled = net.encode(*batch(documents())).pooled
    expected = torch.stack([read_alone(net, document) for document in documents()])
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(net, pooled), gradients(net, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backprop_tokens", [1, 4, 5, 6, 100])
def test_gradient_window_changes_the_gradient_and_not_the_value(backprop_tokens):
    net = model(gradient_window=backprop_tokens)
    pooled = net.encode(*batch(documents())).pooled
    torch.testing.assert_close(pooled, model().encode(*batch(documents())).pooled, rtol=0, atol=1e-12)
    expected = torch.stack([read_alone(net, document, min(backprop_tokens, MAX_LEN)) for document in documents()])
    short = gradients(net, pooled)
    for ours, theirs in zip(short, gradients(net, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    net.gradient_window = None
    full = gradients(net, net.encode(*batch(documents())).pooled)
    assert torch.equal(short[0], full[0]) == (backprop_tokens >= MAX_LEN)


@pytest.mark.parametrize("backprop_tokens", [None, 8])
def test_ar_and_tar_by_definition_with_their_gradient(backprop_tokens):
    net = model(gradient_window=backprop_tokens)
    encoding = net.encode(*batch(documents()))
    outputs = [pooled_outputs(net, document, net.backprop_tokens)[-net.backprop_tokens :] for document in documents()]
    expected = (sum(pool.square().sum() for pool in outputs), sum(pool.diff(dim=0).square().sum() for pool in outputs))
    for ours, theirs in zip(encoding[1:], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    weights = list(net.encoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(encoding.ar_sum + 3 * encoding.tar_sum, weights),
        torch.autograd.grad(expected[0] + 3 * expected[1], weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    net.encoder.requires_grad_(False)
    assert net.encode(*batch(documents()))[1:] == (0, 0)  # nothing to train: nothing to compute


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_do_not_depend_on_the_batch(dtype):
    net = model(dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    docs = documents()
    alone = torch.cat([net(*batch([document])).logits for document in docs])
    for picked in ([*range(len(docs))][::-1], [0, 15], [15, 0], [3, 9, 4, 4, 12], [7, 8], [11, 10, 14]):
        for extra in (0, 9):
            together = net(*batch([docs[i] for i in picked], extra)).logits
            torch.testing.assert_close(together, alone[picked], rtol=0, atol=tolerance)


def test_what_stands_after_a_document_does_not_count():
    net = model()
    tokens, lengths = batch(documents())
    other = tokens.clone()
    for row, length in zip(other, lengths.tolist(), strict=True):
        row[length:] = 17
    assert torch.equal(net(tokens, lengths).logits, net(other, lengths).logits)


def test_rows_dealt_in_parts_give_the_rows_of_the_whole():
    """Dropout follows the document, in whatever order and company a rank reads it."""
    net, docs = model(), documents()
    whole = net.encode(*batch(docs), masks(range(len(docs)))).pooled
    assert not torch.allclose(whole, net.encode(*batch(docs)).pooled)
    for rows in ([15, 3, 0], [2, 1, 14, 9], [7], list(range(16))[::-1]):
        part = net.encode(*batch([docs[i] for i in rows]), masks(rows)).pooled
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)


def test_masks_are_drawn_for_each_window_from_the_documents_start():
    asked = []

    class Spy:
        def shared(self, p, shape, *place):
            asked.append(place)

        def per_row(self, p, width, *place):
            asked.append(place)

    model().encode(*batch(documents([12])), Spy())
    assert {place[-1] for place in asked} == {0, 1, 2}
    assert {place for place in asked if place[-1] == 2} == {
        ("embedding", 2),
        ("input", 2),
        ("weight", 0, 2),
        ("weight", 1, 2),
        ("hidden", 0, 2),
    }


def saved_elements(net, docs):
    """Entries of the distinct tensors that autograd keeps for the backward pass, but for the weights."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr(), tensor.shape] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pooled = net.encode(*batch(docs)).pooled
    assert pooled.requires_grad
    weights = {parameter.data_ptr() for parameter in net.parameters()}
    return sum(size for (pointer, _), size in kept.items() if pointer not in weights)


def test_memory_of_training_is_bounded_by_max_len():
    net = model()
    bound = saved_elements(net, documents([BPTT * 4] * 6))
    spread = documents([400, 300, 200, 100, 60, 20])  # every document ends, and trains, in windows of its own
    assert saved_elements(net, spread) < 1.3 * bound
    assert saved_elements(model(max_len=1000), spread) > 10 * bound
    assert saved_elements(model(gradient_window=1), documents([BPTT * 4] * 6)) < 0.4 * bound


def test_memory_of_evaluation_does_not_grow_with_the_document(recorder):
    net = model(dtype=torch.float32, bptt=50)
    tokens, lengths = batch(documents([20_000, 7]))
    with torch.inference_mode():
        short = net(tokens[:, :7], [7, 7]).logits
        with recorder:
            logits = net(tokens, lengths).logits
    made = [shape for shape in recorder.shapes if shape[-1:] != tokens.shape[1:]]  # the batch apart
    assert max(torch.Size(shape).numel() for shape in made) < 2 * 50 * 4 * 8
    torch.testing.assert_close(logits[1], short[1], rtol=0, atol=1e-5)
    assert logits.isfinite().all()


def test_a_frozen_encoder_is_read_without_a_graph():
    net = model()
    net.encoder.requires_grad_(False)
    assert not net.encode(*batch(documents())).pooled.requires_grad
    net(*batch(documents()), masks(range(16))).logits.sum().backward()
    assert all(p.grad is None for p in net.encoder.parameters()) and net.head.linear2.weight.grad is not None


def test_no_rows_and_no_empty_documents():
    net = model()
    pooled = net.encode(torch.ones(0, 3, dtype=torch.long), torch.tensor([], dtype=torch.long)).pooled
    assert pooled.shape == (0, 18) and net.head(pooled).shape == (0, 3)
    with pytest.raises(AssertionError):
        net.encode(torch.ones(2, 3, dtype=torch.long), [3, 0])


def sequential_head(head):
    modules = [head.norm1, nn.Identity(), head.linear1, nn.ReLU(), head.norm2, nn.Identity(), head.linear2]
    return copy.deepcopy(nn.Sequential(*modules))


def test_head_is_fastais_in_training_and_evaluation():
    torch.manual_seed(0)
    head = ClassifierHead(18, 7, 3, (0.4, 0.1))
    pooled, m = torch.randn(16, 18), masks(range(16))
    expected = sequential_head(head)
    expected[1].register_forward_hook(lambda module, args, out: out * m.per_row(0.4, 18, "head", 0))
    expected[5].register_forward_hook(lambda module, args, out: out * m.per_row(0.1, 7, "head", 1))
    for _ in range(3):
        torch.testing.assert_close(head(pooled, m), expected.train()(pooled))
    for ours, theirs in ((head.norm1, expected[0]), (head.norm2, expected[4])):
        for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
        assert ours.num_batches_tracked == 3
    torch.testing.assert_close(head(pooled), sequential_head(head).eval()(pooled))


def test_head_leaves_its_statistics_alone_when_told():
    head = ClassifierHead(18, 7, 3, (0.4, 0.1))
    before = copy.deepcopy(head.state_dict())
    pooled, m = torch.randn(16, 18), masks(range(16))
    logits = head(pooled, m, update_statistics=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())
    assert torch.equal(head(pooled, m), logits)
    assert not torch.equal(before["norm1.running_mean"], head.norm1.running_mean)


def test_a_single_row_uses_the_running_statistics():
    net = model(CONFIG.with_dropouts("clf", 0), head_p=0.0)
    document = batch(documents([9]))
    before = copy.deepcopy(net.state_dict())
    assert torch.equal(net(*document, masks([0], 1)).logits, net(*document).logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_parts_combined_before_the_head_give_the_step_of_the_whole():
    """Gradient caching: encode every part, then each part again with its gradient and the others' rows."""
    docs = documents()
    targets = torch.arange(len(docs)) % 3
    net, whole = model(), model()
    logits, ar_sum, tar_sum = whole(*batch(docs), masks(range(16)))
    (nn.functional.cross_entropy(logits, targets) + 0.1 * ar_sum + 0.2 * tar_sum).backward()

    parts = [[15, 2, 5], [], [1, 0, 3, 4], [6, 7, 8, 9, 10, 11, 12, 13, 14]]
    pooled = torch.empty(16, 18, dtype=torch.float64)
    inputs = [batch([docs[i] for i in rows]) if rows else (torch.ones(0, 1, dtype=torch.long), []) for rows in parts]
    with torch.no_grad():
        for rows, part in zip(parts, inputs, strict=True):
            pooled[rows] = net.encode(*part, masks(rows)).pooled
    for number, (rows, part) in enumerate(zip(parts, inputs, strict=True)):

        def combine(own, rows=rows):
            return pooled.index_copy(0, torch.tensor(rows, dtype=torch.long), own)

        got, ar_sum, tar_sum = net(*part, masks(rows), combine, masks(range(16)), update_statistics=number == 0)
        torch.testing.assert_close(got, logits, rtol=0, atol=1e-12)
        loss = nn.functional.cross_entropy(got, targets)
        head = list(net.head.parameters())
        for parameter, gradient in zip(head, torch.autograd.grad(loss, head, retain_graph=True), strict=True):
            parameter.grad = gradient  # every part computes the whole gradient of the head
        (loss + 0.1 * ar_sum + 0.2 * tar_sum).backward(inputs=list(net.encoder.parameters()))
    for (name, ours), theirs in zip(net.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, ours), theirs in zip(net.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_combined_rows_need_masks_of_their_own():
    with pytest.raises(AssertionError):
        model()(*batch(documents()), masks(range(16)), combine=lambda pooled: pooled)


def test_layer_groups_are_fastais():
    with torch.device("meta"):
        net = ClassifierNet(AWDLSTMConfig(60_000), 2)
    parameters = dict(net.named_parameters())
    groups = net.layer_groups()
    assert [sum(parameters[name].numel() for name in group) for group in groups] == [
        24_000_000,
        7_160_832,
        10_626_048,
        2_486_400,
        62_652,
    ]
    assert sorted(sum(groups, [])) == sorted(parameters)


def test_autocast_changes_nothing_on_a_cpu_without_matrix_units(monkeypatch):
    monkeypatch.setattr("ulmfit.model.awd_lstm.cpu_multiplies_bf16", lambda: False)
    net = model(dtype=torch.float32)
    expected = net(*batch(documents()), masks(range(16)), update_statistics=False).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(*batch(documents()), masks(range(16))).logits
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["bptt", "max_len", "head_hidden", "gradient_window"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        model(**{name: 0})


@torch.inference_mode()
def test_longer_windows_of_few_rows_give_the_same():
    net, read = model(), []
    expected = net(*batch(documents())).logits
    encoder = net.encoder.forward
    net.encoder.forward = lambda tokens, *rest: read.append(tokens.shape) or encoder(tokens, *rest)
    for window_tokens in (3, 40, 200, 10_000):
        read.clear()
        torch.testing.assert_close(net(*batch(documents()), window_tokens=window_tokens).logits, expected)
        assert all(steps <= max(BPTT, window_tokens // rows) for rows, steps in read)
        assert (max(steps for _, steps in read) > BPTT) == (window_tokens > 3)
    assert len(read) == 1  # all in one window
