"""What only a GPU can show. Skipped without one; ULMFIT_TEST_DEVICE=cpu rehearses what the CPU has as well, with
torch's own LSTM, which has half precision.

Needs torch, accelerate and tyro alone, so that a bare machine can run it. Figures go into the report as properties
(`--junitxml`), from where benchmarks/gpu.py reads them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from dataclasses import replace
from functools import cache

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read when cuBLAS starts

import pytest
import torch

from tests.training import steps
from ulmfit.distributed import memory
from ulmfit.distributed.torch_settings import allowed_tf32
from ulmfit.model import awd_lstm
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.run import checkpoint
from ulmfit.training import step_log
from ulmfit.training.masks import Masks

DEVICE = os.environ.get("ULMFIT_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU")]
only_gpu = pytest.mark.skipif(not ON_GPU, reason="of a GPU alone")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ["fp32", "fp16", "bf16"] if ON_GPU else ["fp32", "bf16"]
# ||ours - fp64's|| / ||fp64's|| over all gradients. A unit in the last place: 6e-8, 5e-4 (TF32 too), 4e-3. The
# classifier's BatchNorm magnifies it, and the maximum of its pooling picks other time steps.
NEAR = {
    "lm": {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 5e-2},
    "clf": {"fp32": 1e-4, "tf32": 1e-1, "fp16": 1e-1, "bf16": 0.4},
}
# By name: the model, rows and tokens a row. `small` runs cuDNN's kernel for up to 192 units. `large` runs the kernels
# of `base`: more than 192 units in every layer, and more than 3,072 tokens, from where the gradient of an embedding is
# another kernel.
CASES = {
    "small": (AWDLSTMConfig(500, embedding_size=40, hidden_size=72, num_layers=3), 24, 30),
    "large": (AWDLSTMConfig(6007, embedding_size=200, hidden_size=264, num_layers=3), 60 if ON_GPU else 8, 64),
}
# The same for the trainers' steps: at least as many tokens in each call of the encoder.
LARGE_STEPS = {"rows": 64, "bptt": 60, "sizes": AWDLSTMConfig(steps.VOCAB, 200, 264, 3)}
FEW_WORDS = {"sizes": replace(steps.SIZES, vocab_size=110)}
if ON_GPU:
    FEW_WORDS = {"sizes": replace(LARGE_STEPS["sizes"], vocab_size=110), "rows": 160}


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What tests switch off for the process."""
    if not ON_GPU:
        monkeypatch.setattr(awd_lstm, "recurrence_dtype", lambda _, weights, autocast, **__: autocast or weights)
        torch.backends.mkldnn.set_flags(False)
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


class MasksOfTheCPU:
    """The same masks on any device, which draws others by itself."""

    def __init__(self, device: str, rows: int) -> None:
        self._masks, self._device = Masks(0, 0, num_rows=rows, rows=range(rows)), device

    def shared(self, *place):
        return self._masks.shared(*place).to(self._device)

    def per_row(self, *place):
        return self._masks.per_row(*place).to(self._device)


@cache
def exact(name: str, case: str):
    """`loss_and_gradients` on the CPU in fp64."""
    return loss_and_gradients(name, case, "cpu", torch.float64, None)


def loss_and_gradients(name: str, case: str, device: str, dtype: torch.dtype, autocast: torch.dtype | None):
    """Of the nets themselves, all dropouts at full strength: a float, and one fp64 vector on the CPU."""
    torch.manual_seed(0)
    scale = 2.0**10 if autocast == torch.float16 else 1.0  # a scaler's business
    sizes, rows, length = CASES[case]
    sizes = sizes.with_dropouts(name, 1.0)
    text = torch.randint(0, sizes.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    net = (
        LanguageModelNet(sizes)
        if name == "lm"
        else ClassifierNet(sizes, 2, bptt=12 if case == "small" else length, max_len=24)
    )
    with torch.no_grad():  # words as far apart as trained ones: BatchNorm would magnify the rounding of near ones
        net.encoder.embedding.weight.mul_(20)
    net, text, masks = net.to(device, dtype), text.to(device), MasksOfTheCPU(device, rows)
    with torch.autocast(device, dtype=autocast) if autocast is not None else contextlib.nullcontext():
        if name == "lm":
            out = net(text[:, :-1], text[:, 1:], net.init_state(rows), masks)
            loss = (out.ce_sum + out.ar_sum + out.tar_sum) / text.numel()
        else:
            lengths = torch.arange(length, length - rows, -1)
            labels = torch.arange(rows, device=device) % 2
            loss = torch.nn.functional.cross_entropy(net(text[:, :length], lengths, masks).logits, labels)
    (loss * scale).backward()
    assert all(p.grad.dtype == dtype for p in net.parameters())
    return loss.item(), torch.cat([p.grad.flatten().cpu().double() / scale for p in net.parameters()])


@pytest.mark.parametrize("precision", [*PRECISIONS, *(["tf32"] if ON_GPU else [])])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["lm", "clf"])
def test_loss_and_gradients_are_those_of_the_cpu_in_fp64(name, case, precision, record_property):
    tf32 = allowed_tf32(precision.replace("tf", "fp"), deterministic=precision == "fp32", in_cudnn=True)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    expected_loss, expected = exact(name, case)
    loss, gradients = loss_and_gradients(name, case, DEVICE, torch.float32, HALF.get(precision))
    far = ((gradients - expected).norm() / expected.norm()).item()
    record_property("gradients", f"{far:.1e}")
    record_property("loss", f"{abs(loss - expected_loss) / expected_loss:.1e}")
    assert far < NEAR[name][precision] and loss == pytest.approx(expected_loss, rel=NEAR[name][precision] / 10)


@only_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [128, 192, 193, 1152])
def test_the_recurrence_runs_in_the_precision_asked_for_on_weights_as_cudnn_wants_them(
    size, precision, record_property
):
    wanted = HALF.get(precision, torch.float32)
    has_bf16 = awd_lstm._bf16_in_cudnn()
    record_property("cuDNN", f"{torch.backends.cudnn.version()}, bf16 {has_bf16}")
    if precision == "bf16" and not (has_bf16 and size > awd_lstm.SMALL_IN_CUDNN):
        wanted = torch.float32
    layer = awd_lstm.WeightDropLSTM(400, size).cuda()
    x, state = torch.randn(64, 72, 400, device="cuda"), (torch.zeros(64, size, device="cuda"),) * 2
    with warnings.catch_warnings(), torch.autocast("cuda", dtype=HALF.get(precision), enabled=precision != "fp32"):
        warnings.simplefilter("error")  # torch's, that the weights are copied into one piece at every call
        output, (h, c) = layer(x, state, torch.ones_like(layer.weight_hh))
    output.float().sum().backward()
    assert output.dtype == wanted and {h.dtype, c.dtype, layer.weight_hh.grad.dtype} == {torch.float32}
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        torch.autocast("cuda", dtype=HALF.get(precision), enabled=precision != "fp32"),
    ):
        layer(x, state)
    assert "aten::_cudnn_rnn" in {event.name for event in profile.events()}, "not cuDNN's LSTM"


@only_gpu
@pytest.mark.parametrize("size", [128, 264])
def test_a_deterministic_recurrence_in_bf16_keeps_the_tensor_cores(size):
    """With TF32 switched off torch asks cuDNN for another arithmetic in bf16: it may refuse. Here the trainer's steps
    with --deterministic, at the sizes of both kernels."""
    sizes = AWDLSTMConfig(steps.VOCAB, size, size, 2)
    trainer = steps.Trainer("lm", "bf16", deterministic=True, sizes=sizes)
    assert torch.backends.cudnn.allow_tf32
    assert all(torch.isfinite(trainer.step()).item() for _ in range(3))


def test_all_precisions_learn_alike(record_property):
    """Loss by loss over many steps of the trainer, and to the end of them: the same data and masks."""
    curves = {}
    for precision in PRECISIONS:
        trainer = steps.Trainer("lm", precision, rate=1e-2, **FEW_WORDS)
        curves[precision] = torch.stack([trainer.step() for _ in range(200 if ON_GPU else 100)]).tolist()
    ends = {precision: sum(curve[-20:]) / 20 for precision, curve in curves.items()}
    record_property("mean of the last 20", ", ".join(f"{name} {end:.4f}" for name, end in ends.items()))
    assert curves["fp32"][0] > 4.5 and ends["fp32"] < 3, "nothing was learnt that a precision could lose"
    for precision in PRECISIONS[1:]:
        far = max(abs(a - b) / b for a, b in zip(curves[precision], curves["fp32"], strict=True))
        record_property(f"{precision}, largest difference of a step", f"{far:.1e}")
        assert curves[precision] != curves["fp32"]
        assert ends[precision] == pytest.approx(ends["fp32"], rel=3e-2)


@only_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(("name", "micro_batches"), [("lm", 1), ("lm", 2), ("clf", 1), ("clf", 2)])
def test_the_host_never_waits_within_a_step(name, micro_batches, large, precision):
    trainer = steps.Trainer(name, precision, micro_batches=micro_batches, **(LARGE_STEPS if large else {}))
    for _ in range(3):  # libraries set themselves up, the optimizer makes its moments, the loss checks its kernel
        trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(5):
        loss = trainer.step()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss).item()


@only_gpu
def test_the_host_does_not_wait_for_a_logged_step(record_property):
    trainer = steps.Trainer("lm", "bf16", **LARGE_STEPS)
    log, lines = step_log.StepLog(trainer.runtime), []
    one = torch.ones((), device="cuda")
    losses = [trainer.step() for _ in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(6):  # each step is logged
        losses.append(trainer.step())
        log.count(1, 0.0)
        log.write()
        log.record(torch.stack([losses[-1], one]).double(), 1, skipped=one, norm=one, log=lambda n, _: lines.append(n))
    torch.cuda.set_sync_debug_mode("default")
    assert len(lines) == 5, "the last one is not read yet"
    log.write()
    assert [line["loss"] for line in lines] == torch.stack(losses[3:]).tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("large", [False, *([True] if ON_GPU else [])])
@pytest.mark.parametrize("name", ["lm", "clf"])
def test_a_resumed_deterministic_run_has_the_same_bits(name, large, precision, tmp_path):
    options = {"deterministic": True} | (LARGE_STEPS if large else {})
    straight = steps.Trainer(name, precision, **options)
    losses = [straight.step() for _ in range(12)]
    stopped = steps.Trainer(name, precision, **options)
    for _ in range(5):
        stopped.step()
    path = checkpoint.write(tmp_path, 5, checkpoint.snapshot(stopped.state()), keep=1)
    resumed = steps.Trainer(name, precision, **options)
    resumed.load(checkpoint.load(path))
    assert torch.equal(torch.stack(losses[5:]), torch.stack([resumed.step() for _ in range(7)]))
    weights = straight.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@only_gpu
@pytest.mark.parametrize("name", ["lm", "clf"])
def test_auto_finds_micro_batches_that_fit_and_train_the_same_model(name, record_property):
    torch.backends.cudnn.allow_tf32 = False  # fp32 of the steps below: equal to 1e-4
    sizes = AWDLSTMConfig(steps.VOCAB, embedding_size=400, hidden_size=1152, num_layers=3)
    whole = steps.Trainer(name, "fp32", rows=256, sizes=sizes)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    losses = [whole.step().item() for _ in range(2)]
    need = torch.cuda.max_memory_allocated() - held
    del whole
    gc.collect()
    torch.cuda.empty_cache()
    cut = steps.Trainer(name, "fp32", rows=256, sizes=sizes)
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.memory_reserved() + memory.MARGIN * total + 0.6 * need
    torch.cuda.set_per_process_memory_fraction(limit / total)
    found = memory.fit_micro_batches(cut.task, cut.runtime)
    record_property("micro-batches", f"{found} in 0.6 of {need / 2**20:.0f} MiB")
    assert found > 1
    assert [cut.step().item() for _ in range(2)] == pytest.approx(losses, rel=1e-4)


@only_gpu
def test_a_whole_run_in_bf16_goes_on_after_an_interruption(tmp_path, monkeypatch):
    """The commands themselves on the embedded sample: pinned batches, logging, evaluation, checkpoints."""
    pytest.importorskip("datasets")
    from tests.training import runs, world

    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    options = {"precision": "bf16", "deterministic": True, "eval_every": 6}
    for name, stops in (("straight", [None]), ("stopped", [5, None])):
        for task, config in (("lm", runs.lm_config), ("clf", runs.clf_config)):
            for stop_at in stops:
                given = vars(config(tmp_path / f"{task}-{name}", **options))
                world.train(world.job(task, given, world=1, stop_at=stop_at))
    for task in ("lm", "clf"):
        a, b = (runs.weights(tmp_path / f"{task}-{name}") for name in ("straight", "stopped"))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert runs.metrics(tmp_path / f"{task}-straight") == runs.metrics(tmp_path / f"{task}-stopped")
