"""The text classifier: an encoder that reads documents in windows, concat pooling, and fastai's head.

Padding has no effect on the result. Documents are sorted longest first, windows are counted from a document's start,
and a window contains only the documents that reach it. So the result of a document does not depend on the other
documents of the batch, and memory is bounded for documents of any length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit.device import to_device
from ulmfit.errors import UserError
from ulmfit.model.awd_lstm import AWDLSTM, AWDLSTMConfig, DropoutMasks, State
from ulmfit.model.loss import activation_regularization


class Encoding(NamedTuple):
    """Pooled documents, the input of the head, and the sums for AR and TAR.

    The sums (0-d) are over the last `backprop_tokens` tokens of each document; they are zero if the encoder is not
    trained. AR is ar_sum / (number of these tokens in the step * E). TAR is tar_sum / (number of neighbouring pairs
    among them * E).
    """

    pooled: Tensor
    """[n, 3E]: last, maximum and mean of the outputs."""
    ar_sum: Tensor
    """Squared outputs of the last layer."""
    tar_sum: Tensor
    """Squared differences of neighbouring outputs."""


class ClassifierOutput(NamedTuple):
    """Logits [n, C] and the sums of `Encoding`."""

    logits: Tensor
    ar_sum: Tensor
    tar_sum: Tensor


class ClassifierHead(nn.Module):
    """BatchNorm, dropout, linear, ReLU, BatchNorm, dropout, linear (fastai v1's PoolingLinearClassifier)."""

    def __init__(self, input_size: int, hidden_size: int, num_classes: int, dropouts: tuple[float, float]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm1d(input_size)
        self.linear1 = nn.Linear(input_size, hidden_size)
        self.norm2 = nn.BatchNorm1d(hidden_size)
        self.linear2 = nn.Linear(hidden_size, num_classes)
        self.dropouts = dropouts

    def forward(self, pooled: Tensor, masks: DropoutMasks | None = None, update_statistics: bool = True) -> Tensor:
        """Logits [n, C] of pooled [n, 3E], in the parameters' dtype.

        With masks, BatchNorm uses the statistics of these rows. It also updates its running statistics, unless
        `update_statistics` is False (a step may call with the same rows several times). Without masks, or with a
        single row, which has no variance, BatchNorm uses its running statistics.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            x = pooled.to(self.linear1.weight.dtype)
            training = masks is not None and len(x) > 1
            for i, (norm, linear) in enumerate(((self.norm1, self.linear1), (self.norm2, self.linear2))):
                x = _batch_norm(norm, x, training, update_statistics)
                mask = None if masks is None else masks.per_row(self.dropouts[i], x.shape[1], "head", i)
                x = linear(x if mask is None else x * mask)
                if i == 0:
                    x = F.relu(x)
        return x


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor, training: bool, update: bool) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    if training:
        if update:
            norm.num_batches_tracked += 1
        else:
            mean = var = None
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training, norm.momentum, norm.eps)


class _RowsOf:
    """Masks of a selection of a micro-batch's rows."""

    def __init__(self, masks: DropoutMasks, rows: Tensor) -> None:
        self.shared = masks.shared
        self._masks, self._rows = masks, rows

    def per_row(self, p: float, width: int, *place: int | str) -> Tensor | None:
        mask = self._masks.per_row(p, width, *place)
        return None if mask is None else mask.index_select(0, self._rows)


class ClassifierNet(nn.Module):
    """AWD-LSTM encoder, concat pooling and head.

    Dropout acts, and BatchNorm uses batch statistics, if and only if masks are given to `forward`; train() and eval()
    have no effect. The reason: a mask is a function of seed and step, so that any division of the batch into ranks and
    micro-batches trains the same model.

    Args:
        config: sizes and dropout probabilities; output_p is the first dropout of the head.
        num_classes: width of the logits.
        bptt: tokens of a window. Back-propagation does not cross windows (BPT3C, Howard & Ruder 2018,
            section 3.3, with fastai's truncation).
        max_len: a document's last `max_len` tokens are pooled. Windows before them are read without gradient.
        head_hidden, head_p: width and second dropout of the head.
        gradient_window: if given, only windows with some of a document's last `gradient_window` tokens are read with
            gradient. This is faster and gives the same logits, but another gradient.
        multi_label: a document may have any number of the classes; see `probabilities`.
    """

    def __init__(
        self,
        config: AWDLSTMConfig,
        num_classes: int,
        *,
        bptt: int = 72,
        max_len: int = 1440,
        head_hidden: int = 50,
        head_p: float = 0.1,
        gradient_window: int | None = None,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_classes", num_classes),
            ("bptt", bptt),
            ("max_len", max_len),
            ("head_hidden", head_hidden),
            ("gradient_window", gradient_window),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give a positive number")
        self.config, self.num_classes = config, num_classes
        self.bptt, self.max_len, self.gradient_window = bptt, max_len, gradient_window
        self.head_hidden, self.head_p = head_hidden, head_p
        self.multi_label = multi_label
        self.encoder = AWDLSTM(config)
        self.head = ClassifierHead(3 * config.embedding_size, head_hidden, num_classes, (config.output_p, head_p))

    @property
    def rows_of_a_core(self) -> int:
        """Documents of a batch at which a core reads the most of them in a second."""
        return self.encoder.rows_of_a_core

    @property
    def backprop_tokens(self) -> int:
        """Number of a document's last tokens that are read with gradient; those before are read without."""
        return self.max_len if self.gradient_window is None else min(self.gradient_window, self.max_len)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | Sequence[int],
        masks: DropoutMasks | None = None,
        combine: Callable[[Tensor], Tensor] | None = None,
        head_masks: DropoutMasks | None = None,
        update_statistics: bool = True,
        window_tokens: int | None = None,
    ) -> ClassifierOutput:
        """Logits [n, C] of documents; see `encode` and `ClassifierHead.forward`.

        `combine` maps this process's pooled rows to the input of the head: the rows of the global batch, whose
        statistics BatchNorm needs. `head_masks` are the masks of those rows.
        """
        assert combine is None or (masks is None) == (head_masks is None), "masks of the combined rows"
        encoding = self.encode(tokens, lengths, masks, window_tokens)
        pooled = encoding.pooled if combine is None else combine(encoding.pooled)
        logits = self.head(pooled, masks if head_masks is None else head_masks, update_statistics)
        return ClassifierOutput(logits, encoding.ar_sum, encoding.tar_sum)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, [n, C]: they sum to 1, or with `multi_label` each is for itself."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def layer_groups(self) -> list[list[str]]:
        """Parameter names by layer group, as in fastai: embedding, each LSTM layer, head."""
        layers = [
            [f"encoder.layers.{i}.{name}" for name, _ in layer.named_parameters()]
            for i, layer in enumerate(self.encoder.layers)
        ]
        head = [f"head.{name}" for name, _ in self.head.named_parameters()]
        return [["encoder.embedding.weight"], *layers, head]

    def encode(
        self,
        tokens: Tensor,
        lengths: Tensor | Sequence[int],
        masks: DropoutMasks | None = None,
        window_tokens: int | None = None,
    ) -> Encoding:
        """Pool documents: [last, maximum, mean] of the outputs at the last `max_len` tokens.

        tokens is [n, T] int64; tokens after a document's length are ignored. lengths is [n], each at least 1, on the
        CPU, or the host waits for the device. Rows may have any order; longest first is fastest. Results are in the
        order of the rows, in the parameters' dtype, under autocast too.

        `window_tokens`, only without masks and gradient: windows of few rows are longer than `bptt`, up to this number
        of tokens in all. On the CPU this is faster, because torch rearranges the weights for each window.
        """
        rows = tokens.shape[0]
        if rows == 0:
            # Read one token and discard the result, so that every parameter gets a (zero) gradient. Engines that
            # shard gradients wait for the gradients of all ranks.
            nothing = tokens.new_full((1, 1), self.config.pad_id)
            encoding = self._encode_sorted(nothing, [1], None, torch.zeros_like(nothing[0]))
            return Encoding(encoding.pooled[:0], 0 * encoding.ar_sum, 0 * encoding.tar_sum)
        sizes = [int(length) for length in torch.as_tensor(lengths).tolist()]
        assert len(sizes) == rows and min(sizes) >= 1 and max(sizes) <= tokens.shape[1]
        order = sorted(range(rows), key=lambda i: -sizes[i])
        if order == list(range(rows)):
            return self._encode_sorted(tokens, sizes, masks, torch.arange(rows, device=tokens.device), window_tokens)
        index = to_device(torch.tensor(order), tokens.device)
        encoding = self._encode_sorted(tokens[index], [sizes[i] for i in order], masks, index, window_tokens)
        return encoding._replace(pooled=encoding.pooled[index.argsort()])

    def trained_windows(self, lengths: Iterable[int]) -> list[tuple[int, int]]:
        """(rows, tokens a row) of each window that `encode` reads with gradient, for documents of these lengths."""
        sizes = sorted((int(length) for length in lengths), reverse=True)
        windows = []
        for start in range(0, max(sizes, default=0), self.bptt):
            live = [size for size in sizes if size > start]
            rows = sum(size < start + self.bptt + self.backprop_tokens for size in live)
            if rows:
                windows.append((rows, min(self.bptt, live[0] - start)))
        return windows

    def _encode_sorted(
        self,
        tokens: Tensor,
        sizes: list[int],
        masks: DropoutMasks | None,
        index: Tensor,
        window_tokens: int | None = None,
    ) -> Encoding:
        """`encode` for rows sorted longest first; index[i] is the index of row i in the masks' rows."""
        negated = [-size for size in sizes]  # ascending, for bisect

        def longer_than(length: int) -> int:
            return bisect_left(negated, -length)

        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        assert window_tokens is None or (masks is None and not trains)
        weight = self.encoder.embedding.weight
        tokens = tokens[:, : sizes[0]]
        live, start = len(sizes), 0
        state = self.encoder.init_state(live)
        total = weight.new_zeros(live, self.config.embedding_size)
        highest = torch.full_like(total, -torch.inf)
        length = to_device(torch.tensor(sizes), tokens.device)
        done: list[Tensor] = []
        ar_sum = tar_sum = weight.new_zeros((), dtype=torch.promote_types(weight.dtype, torch.float32))
        before: Tensor | None = None  # the last outputs of the previous window
        while live:
            stop = start + max(self.bptt, (window_tokens or 0) // live)
            without_gradient = min(longer_than(stop + self.backprop_tokens - 1), live) if trains else 0
            output, state = self._read_window(
                tokens[:live, start:stop], state, masks, index[:live], start // self.bptt, without_gradient
            )
            output = output.to(weight.dtype)
            length, end = length[:live], start + output.shape[1]
            if sizes[live - 1] - self.max_len < end:  # at least one row pools tokens of this window
                inside = output
                outside = None
                if sizes[live - 1] < end or sizes[0] - self.max_len > start:
                    position = torch.arange(start, end, device=tokens.device)
                    first, past = (length - self.max_len).unsqueeze(1), length.unsqueeze(1)
                    outside = ((position < first) | (position >= past)).unsqueeze(2)
                    inside = output.masked_fill(outside, 0)
                total = total + inside.sum(1)
                peaks = output if outside is None else output.masked_fill(outside, -torch.inf)
                highest = torch.maximum(highest, peaks.amax(1))
            if without_gradient < live and trains:
                ar, tar = self._regularization(output, before, start, length, without_gradient)
                ar_sum, tar_sum = ar_sum + ar, tar_sum + tar
            left = longer_than(end)
            if left < live:  # rows left..live end here
                size = length[left:]
                last = output[torch.arange(left, live, device=tokens.device), size - 1 - start]
                mean = total[left:] / size.clamp(max=self.max_len).unsqueeze(1)
                done.append(torch.cat([last, highest[left:], mean], 1))
                total, highest, state = total[:left], highest[:left], [(h[:left], c[:left]) for h, c in state]
            before = output[:left, -1]
            live, start = left, stop
        return Encoding(torch.cat(done[::-1]), ar_sum, tar_sum)

    def _regularization(
        self, output: Tensor, before: Tensor | None, start: int, length: Tensor, without_gradient: int
    ) -> tuple[Tensor, Tensor]:
        """Sums for AR and TAR over the tokens of a window that are trained on.

        output is [live, T, E], `before` the outputs of the token before the window, [live, E]. The first
        `without_gradient` rows are not counted.
        """
        length = length[without_gradient:]
        if without_gradient:  # a copy: autograd saves what is squared, and a view would keep the whole tensor in memory
            output = output[without_gradient:].clone()
        position = torch.arange(start, start + output.shape[1], device=output.device)
        first = length - self.backprop_tokens
        ar_sum, tar_sum = activation_regularization(
            output, output, (position >= first.unsqueeze(1)) & (position < length.unsqueeze(1))
        )
        if before is not None:  # pairs across the border of two windows
            step = (output[:, 0] - before[without_gradient:]).to(tar_sum.dtype)
            tar_sum = tar_sum + (step.square() * (first < start).unsqueeze(1)).sum()
        return ar_sum, tar_sum

    def _read_window(
        self,
        tokens: Tensor,
        state: State,
        masks: DropoutMasks | None,
        index: Tensor,
        window: int,
        without_gradient: int,
    ) -> tuple[Tensor, State]:
        """Read one window of the live rows, the first `without_gradient` of them (the longest) without gradient.

        These are read in a separate call, so that the window's graph contains only rows that need it. This bounds the
        memory of a step to max_len tokens per document for any mixture of lengths.
        """

        def read(rows: slice) -> tuple[Tensor, State]:
            some = None if masks is None else _RowsOf(masks, index[rows])
            return self.encoder(tokens[rows], [(h[rows], c[rows]) for h, c in state], some, window)

        if without_gradient == 0:
            return read(slice(None))
        with torch.no_grad():
            early, early_state = read(slice(0, without_gradient))
        if without_gradient == len(index):
            return early, early_state
        late, late_state = read(slice(without_gradient, None))
        joined = [
            (torch.cat([h1, h2]), torch.cat([c1, c2]))
            for (h1, c1), (h2, c2) in zip(early_state, late_state, strict=True)
        ]
        return torch.cat([early, late]), joined
