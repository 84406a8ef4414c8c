"""A training step of the language model beside fastai's, out of the box: tokens a second, memory, share of the peak.

    python benchmarks/lm_step.py --peer PEER/bin/python                       # base, V = 60,000, 64 x 72
    python benchmarks/lm_step.py --peer PEER/bin/python --malloc default warm /usr/lib/libjemalloc.so.2
    python benchmarks/lm_step.py --preset small --rows 64 --precision fp32 bf16
    python benchmarks/lm_step.py --peer PEER/bin/python --sampled-softmax 8192    # a third side, with that option

Ours is the trainer's own step (LanguageModelTask and PlainEngine: all dropouts, AR and TAR, clipping, fused AdamW).
fastai's is `language_model_learner(...).fit` on batches that lie ready, with the callbacks that it brings (AR and TAR,
no clipping), its sizes and dropouts the same. The share of the peak is that of a large fp32 matrix product (on a GPU
in the precision measured), the best of all rounds, and counts the arithmetic of the matrix products alone. In brackets
it is by CPU seconds on both sides of the fraction, which a busy machine disturbs less (set OMP_WAIT_POLICY=PASSIVE, or
waiting counts). Each side is a process of its own, so that peak memory is the step's; both learn on the same tokens
again and again, and their first losses must be alike. First of all our loss and gradients are compared with plain
torch. The sampled softmax is another loss (what it does to a model is in RESULTS.md); its share of the peak counts the
arithmetic that it does.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import side_by_side as sides
import torch

SIZES = {
    "tiny": (64, 128, 2),
    "small": (200, 512, 2),
    "base": (400, 1152, 3),
    "blog": (400, 1150, 3),
    "wide": (512, 1024, 3),
}  # stated again, because the peer's environment does not hold ulmfit


def lstm_flops(preset: str) -> float:
    """Of the matrix products of the encoder's forward pass, a token."""
    embedding, hidden, layers = SIZES[preset]
    widths = [embedding, *[hidden] * (layers - 1), embedding]
    return sum(8.0 * out * (inner + out) for inner, out in zip(widths[:-1], widths[1:], strict=True))


def flops_per_token(preset: str, output_words: int) -> float:
    """Of the matrix products of a training step: forward once, backward twice."""
    return 3 * (lstm_flops(preset) + 2 * SIZES[preset][0] * output_words)


def batch_of(rows: int, bptt: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(10, vocab_size, (rows, bptt + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def build_ours(
    preset: str,
    vocab_size: int,
    rows: int,
    bptt: int,
    precision: str,
    sampled: int | None = None,
    engine: Callable | None = None,
):
    """The trainer's task and engine for `rows` global rows, and step(): one step on this process's rows.

    `engine` makes another one than the plain one of a runtime.
    """
    from ulmfit.batches.lm import LMBatch
    from ulmfit.config import LMConfig
    from ulmfit.distributed.runtime import Runtime
    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.language_model import LanguageModelNet
    from ulmfit.training import optim, setup
    from ulmfit.training.engine import PlainEngine
    from ulmfit.training.lm_task import LanguageModelTask
    from ulmfit.training.stages import recipe_for

    assert tuple(PRESETS[preset].values()) == SIZES[preset]
    config = LMConfig(recipe="ulmfit", batch_size=rows, bptt=bptt, precision=precision, sampled_softmax=sampled)
    runtime = Runtime(config)
    recipe = recipe_for(config, pretrained=False)
    net = LanguageModelNet(AWDLSTMConfig(vocab_size, **PRESETS[preset]).with_dropouts("lm", recipe.drop_mult))
    net = setup.to_precision(net, config, runtime)
    own = runtime.own_rows(rows)
    task = LanguageModelTask(net, None, None, None, config=config, recipe=recipe, runtime=runtime, rows=own)
    trained, rates = range(len(task.groups)), [1e-3] * len(task.groups)
    optimizer = optim.build_optimizer(
        net, task.groups, trained, rates, weight_decay=recipe.weight_decay, eps=config.adam_eps, decay_bias_norm=True
    )
    engine = (engine or PlainEngine)(runtime)
    engine.begin_stage(net, optimizer)
    tokens, targets = (part[own.start : own.stop] for part in batch_of(rows, bptt, vocab_size))
    if runtime.device.type == "cuda":  # as the loop's prefetching thread does
        tokens, targets = tokens.pin_memory(), targets.pin_memory()
    batch = LMBatch(tokens, targets, rows * bptt, False, 0, 0)
    number = 0

    def step() -> torch.Tensor:
        """One step; this process's share of the loss, on the device."""
        nonlocal number
        result = task.step(engine, batch, number)
        engine.update(recipe.clip)
        number += 1
        return result.sums[0] / result.num_predictions

    return step, engine, runtime


def build_peer(preset: str, vocab_size: int, rows: int, bptt: int, precision: str, steps: int) -> Callable:
    """run(): `steps` steps of fastai's learner; their wall time and the first loss."""
    from fastai.text.all import (
        AWD_LSTM,
        Callback,
        CancelValidException,
        DataLoader,
        DataLoaders,
        LMTensorText,
        awd_lstm_lm_config,
        default_device,
        language_model_learner,
    )

    class Clock(Callback):
        def before_train(self):
            sides.synchronize()
            self.begun, self.first = time.perf_counter(), None

        def after_loss(self):
            if self.first is None:
                self.first = self.learn.loss.detach()

        def after_train(self):
            sides.synchronize()
            self.wall = time.perf_counter() - self.begun

        def before_validate(self):
            raise CancelValidException

    embedding, hidden, layers = SIZES[preset]
    tokens, targets = batch_of(rows, bptt, vocab_size)
    batches = [(LMTensorText(tokens), LMTensorText(targets))] * steps
    loader = DataLoader(batches, bs=None, device=default_device())
    loaders = DataLoaders(loader, loader)
    loaders.vocab = [f"word{i}" for i in range(vocab_size)]
    config = awd_lstm_lm_config | {"emb_sz": embedding, "n_hid": hidden, "n_layers": layers}
    learn = language_model_learner(loaders, AWD_LSTM, config=config, pretrained=False)
    if precision != "fp32":
        learn = learn.to_fp16() if precision == "fp16" else learn.to_bf16()
    clock = Clock()

    def run() -> tuple[float, float]:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3, wd=0.1, cbs=[clock])
        return clock.wall, clock.first.item()

    return run


def check() -> None:
    """Loss and gradients of our net equal those of plain torch modules with whole logits, both without dropout."""
    from torch.nn import functional as F

    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.language_model import LanguageModelNet

    torch.manual_seed(0)
    net = LanguageModelNet(AWDLSTMConfig(1000, **PRESETS["tiny"])).double()
    tokens, targets = batch_of(4, 12, 1000)
    x = F.embedding(tokens, net.encoder.embedding.weight)
    for layer in net.encoder.layers:
        plain = torch.nn.LSTM(layer.weight_ih.shape[1], layer.weight_hh.shape[1], batch_first=True, dtype=x.dtype)
        weights = {f"{name}_l0": parameter for name, parameter in layer.named_parameters()}
        x, _ = torch.func.functional_call(plain, weights, (x,))
    logits = x @ net.encoder.embedding.weight.t() + net.decoder_bias
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    wanted = torch.autograd.grad(loss, list(net.parameters()))
    ours = net(tokens, targets, net.init_state(4)).ce_sum
    torch.testing.assert_close(ours, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, list(net.parameters())), wanted, rtol=1e-8, atol=1e-12)


def first_loss(options: argparse.Namespace, *, sampled: bool) -> float:
    """Of a model that thinks all words about equally likely."""
    uniform = math.log(options.vocab_size)
    if not sampled:
        return uniform
    from ulmfit.model.sampled_softmax import inclusion_probabilities

    _, targets = batch_of(options.rows, options.bptt, options.vocab_size)
    inclusion = inclusion_probabilities(options.vocab_size, options.sampled_softmax)
    return uniform + inclusion.log()[targets].mean().item()


def serve(options: argparse.Namespace, precision: str) -> None:
    arguments = (options.preset, options.vocab_size, options.rows, options.bptt, precision)
    if options.side != "peer":
        check()
        step, *_ = build_ours(*arguments, options.sampled_softmax if options.side == "sampled" else None)

        def run() -> tuple[float, float]:
            losses: list[torch.Tensor] = []
            wall = sides.seconds(lambda: losses.extend(step() for _ in range(options.steps)))
            return wall, losses[0].item()
    else:
        run = build_peer(*arguments, options.steps)
    first: list[float] = []

    def measure() -> dict[str, float]:
        cpu = time.process_time()
        wall, loss = run()
        cpu = time.process_time() - cpu
        first.append(loss)
        tokens = options.rows * options.bptt * options.steps
        return {"tokens": tokens / wall, "by_cpu": tokens / cpu, "first": first[0], **sides.matrix_peak(precision)}

    sides.serve(measure, threads=torch.get_num_threads())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=SIZES)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--bptt", type=int, default=72)
    parser.add_argument("--steps", type=int, default=1, help="steps of a round (default 1; 50 or so on a GPU)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--sampled-softmax", type=int, metavar="N", help="a third side: ours with this option")
    sides.add_options(parser, rounds=5, malloc=True)
    options = parser.parse_args()
    if options.side:
        with sides.protocol():
            return serve(options, options.precision[-1])

    print(sides.machine())
    print(
        f"{options.preset}, V = {options.vocab_size}, {options.rows} x {options.bptt} tokens, medians of "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    flops = dict.fromkeys(("ours", "peer"), flops_per_token(options.preset, options.vocab_size))
    flops["sampled"] = flops_per_token(options.preset, options.sampled_softmax or 0)
    for precision in options.precision:
        for heap in options.malloc:
            found = sides.alternate(
                options,
                [*sys.argv, "--precision", precision],
                sides.environment(options.threads, heap),
                ["sampled"] if options.sampled_softmax else [],
            )
            peak, core = (max(max(side.values(key)) for side in found.values()) for key in ("peak", "peak_cpu"))
            threads = found["ours"].facts["threads"]
            print(f"{precision}, malloc {heap}, {threads} threads, peak {peak / 1e9:.0f} GFLOP/s")
            for name, side in found.items():
                pace = side.median("tokens")
                by_cpu = side.median("by_cpu")
                share = "" if torch.cuda.is_available() else f" ({by_cpu * flops[name] / core:.1%})"
                print(
                    f"  {name:7} {pace:10.1f} tokens/s, {by_cpu:.1f} a CPU second  "
                    f"{pace * flops[name] / peak:6.1%}{share} of the peak  {side.facts['memory']:6.2f} GiB",
                    flush=True,
                )
                expected = first_loss(options, sampled=name == "sampled")
                assert math.isclose(side.rounds[0]["first"], expected, rel_tol=0.05), side.rounds
            pairs = [("ours", "peer"), ("sampled", "peer"), ("sampled", "ours")]
            for first, second in [(a, b) for a, b in pairs if a in found and b in found]:
                a, b = found[first], found[second]
                print(
                    f"  {first} / {second}: {sides.ratio(a.values('tokens'), b.values('tokens'))} tokens/s, "
                    f"{sides.ratio(a.values('by_cpu'), b.values('by_cpu'))} a CPU second, "
                    f"{a.facts['memory'] / b.facts['memory']:.2f}x memory"
                )


if __name__ == "__main__":
    main()
