"""A training step as fastai 2.8.12 does it, re-created in plain torch for machines that cannot have fastai.

What it does the same, read off fastai's sources: the embedding matrix is masked whole (V x E copied every call), the
recurrent weight of an nn.LSTM is replaced every call (so cuDNN copies the weights into one piece again), masks are
of the activations' dtype, logits are whole and upcast to fp32 under AMP (MixedPrecision.after_pred), AR and TAR are
means in fp32, gradients are zeroed and not let go, Adam goes parameter by parameter, the GradScaler's step asks the
device for infinities and its scale is read, the recorder fetches the loss at every step, and batches come from
ordinary memory. What it leaves out is Python's share: callbacks, hooks, the learner. So it is rather faster than
fastai. `python benchmarks/fastai_style.py` shows that without dropout its loss and gradients are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROPOUTS = {"embed": 0.02, "input": 0.25, "hidden": 0.15, "weight": 0.2, "output": 0.1}  # fastai's, drop_mult 1
ALPHA, BETA = 2.0, 1.0
MOMENTUM, SQUARE, EPS, DECAY = 0.9, 0.99, 1e-5, 0.1
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class LanguageModel(nn.Module):
    """Embedding, LSTM layers and tied decoder; forward(tokens [B, T]) -> logits, last output, last output dropped."""

    def __init__(
        self, vocab_size: int, embedding: int, hidden: int, layers: int, device: str, drop_mult: float = 1.0
    ) -> None:
        super().__init__()
        self.p = {name: p * drop_mult for name, p in DROPOUTS.items()}
        self.embedding = nn.Embedding(vocab_size, embedding, device=device)
        self.decoder = nn.Linear(embedding, vocab_size, device=device)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.embedding.weight
        widths = [embedding, *[hidden] * (layers - 1), embedding]
        self.lstms = nn.ModuleList(
            nn.LSTM(into, out, batch_first=True, device=device)
            for into, out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.raw = nn.ParameterList()
        for lstm in self.lstms:
            self.raw.append(lstm.weight_hh_l0.data)
            del lstm.weight_hh_l0
            lstm.flatten_parameters = lambda: None
        self.states: list = [None] * layers

    def _drop(self, x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        p = self.p[name]
        return x * x.new_empty(shape).bernoulli_(1 - p).div_(1 - p) if p else x

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table = self._drop(self.embedding.weight, "embed", (self.embedding.num_embeddings, 1))
        x = F.embedding(tokens, table, padding_idx=1)
        x = self._drop(x, "input", (len(x), 1, x.shape[2]))
        for i, lstm in enumerate(self.lstms):
            lstm.weight_hh_l0 = F.dropout(self.raw[i], self.p["weight"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x, (h, c) = lstm(x, self.states[i])
            self.states[i] = (h.detach(), c.detach())
            if i + 1 < len(self.lstms):
                x = self._drop(x, "hidden", (len(x), 1, x.shape[2]))
        dropped = self._drop(x, "output", (len(x), 1, x.shape[2]))
        return self.decoder(dropped), x, dropped


def losses(net: LanguageModel, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and it with AR and TAR. Under autocast, where there is one."""
    logits, raw, dropped = net(tokens)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    regularized = loss + ALPHA * dropped.float().pow(2).mean()
    return loss.clone(), regularized + BETA * (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()


class Adam:
    """Decoupled decay, both moments debiased, parameter by parameter."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        self._rate, self._steps = rate, 0
        self._state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.param_groups = [{"params": parameters}]  # where GradScaler looks for gradients

    def step(self) -> None:
        self._steps += 1
        first, second = 1 - MOMENTUM**self._steps, 1 - SQUARE**self._steps
        for p, mean, square in self._state:
            p.data.mul_(1 - self._rate * DECAY)
            mean.mul_(MOMENTUM).add_(p.grad, alpha=1 - MOMENTUM)
            square.mul_(SQUARE).addcmul_(p.grad, p.grad, value=1 - SQUARE)
            p.data.addcdiv_(mean, (square / second).sqrt() + EPS, value=-self._rate / first)


class _Finite:
    """What GradScaler steps in fastai: it only notes that there was no infinity."""

    def __init__(self, inner: Adam) -> None:
        self.param_groups, self.reached = inner.param_groups, False

    def step(self) -> None:
        self.reached = True


def build(
    sizes: tuple[int, int, int], vocab_size: int, precision: str, device: str
) -> Callable[[Tensor, Tensor], float]:
    """step(tokens, targets) on batches of the CPU's memory; the loss."""
    net = LanguageModel(vocab_size, *sizes, device)
    optimizer = Adam(list(net.parameters()), 1e-3)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    smooth = torch.zeros(())

    def step(tokens: Tensor, targets: Tensor) -> float:
        nonlocal smooth
        tokens, targets = tokens.to(device), targets.to(device)
        with torch.autocast(device, dtype=HALF.get(precision), enabled=precision in HALF):
            loss, regularized = losses(net, tokens, targets)
        scaler.scale(regularized).backward()
        finite = _Finite(optimizer)
        scaler.step(finite)
        if finite.reached:
            scaler.get_scale()
            optimizer.step()
        scaler.update()
        for p in net.parameters():
            p.grad.detach_().zero_()
        smooth = torch.lerp(loss.detach().cpu(), smooth, 0.98)
        return loss.item()

    return step


def check() -> None:
    """Loss and gradients, AR and TAR among them, are those of our net, both without dropout."""
    from lm_step import batch_of

    from ulmfit.model.awd_lstm import AWDLSTMConfig
    from ulmfit.model.language_model import LanguageModelNet

    torch.manual_seed(0)
    ours = LanguageModelNet(AWDLSTMConfig(500, 20, 36, 3)).double()
    theirs = LanguageModel(500, 20, 36, 3, "cpu", drop_mult=0).double()
    with torch.no_grad():
        theirs.embedding.weight.copy_(ours.encoder.embedding.weight)
        for i, layer in enumerate(ours.encoder.layers):
            theirs.raw[i].copy_(layer.weight_hh)
            for name in ("weight_ih", "bias_ih", "bias_hh"):
                getattr(theirs.lstms[i], f"{name}_l0").copy_(getattr(layer, name))
    tokens, targets = batch_of(4, 9, 500)
    out = ours(tokens, targets, ours.init_state(4))
    loss, regularized = losses(theirs, tokens, targets)
    count, width = tokens.numel(), 20
    torch.testing.assert_close(loss.double(), out.ce_sum / count, rtol=1e-6, atol=0)
    (out.ce_sum / count + ALPHA * out.ar_sum / (count * width) + BETA * out.tar_sum / ((count - 4) * width)).backward()
    regularized.backward()
    torch.testing.assert_close(theirs.embedding.weight.grad, ours.encoder.embedding.weight.grad, rtol=1e-4, atol=1e-6)
    for i, layer in enumerate(ours.encoder.layers):
        torch.testing.assert_close(theirs.raw[i].grad, layer.weight_hh.grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    import side_by_side  # noqa: F401  (finds ulmfit where it is not installed)

    check()
    print("loss and gradients are ours")
