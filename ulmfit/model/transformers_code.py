"""ULMFiT text classifier for transformers: an AWD-LSTM, concat pooling and fastai's head. Needs torch and transformers.

`ulmfit export --to transformers` copies this file beside the weights, as modeling_ulmfit.py. It is for inference: there
are no dropouts. A document's logits do not depend on the other documents of a batch nor on the side of the padding.
Documents of any length are read in windows, so memory does not depend on their length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

WINDOW = 512  # tokens


class UlmfitConfig(PretrainedConfig):
    """Sizes of the network.

    Args:
        max_len: the last `max_len` tokens of a document are pooled; those before are read.
        backwards: texts are read from their end.
        logit_temperature: logits are divided by it (a calibrated classifier).
        thresholds: with several labels a text, by label the probability from which the text has it.
    """

    model_type = "ulmfit"

    def __init__(
        self,
        vocab_size: int = 60_000,
        embedding_size: int = 400,
        hidden_size: int = 1152,
        num_hidden_layers: int = 3,
        head_hidden: int = 50,
        max_len: int = 1400,
        backwards: bool = False,
        logit_temperature: float = 1.0,
        thresholds: list[float] | None = None,
        pad_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.embedding_size, self.hidden_size = vocab_size, embedding_size, hidden_size
        self.num_hidden_layers, self.head_hidden, self.max_len = num_hidden_layers, head_hidden, max_len
        self.backwards, self.logit_temperature, self.thresholds = backwards, logit_temperature, thresholds
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class UlmfitForSequenceClassification(PreTrainedModel):
    """Logits of documents, [n, labels]."""

    config_class = UlmfitConfig
    main_input_name = "input_ids"

    def __init__(self, config: UlmfitConfig) -> None:
        super().__init__(config)
        outer, inner, last = config.embedding_size, config.hidden_size, config.num_hidden_layers - 1
        self.embedding = nn.Embedding(config.vocab_size, outer)
        self.layers = nn.ModuleList(
            nn.LSTM(outer if i == 0 else inner, outer if i == last else inner, batch_first=True)
            for i in range(config.num_hidden_layers)
        )
        self.norm1 = nn.BatchNorm1d(3 * outer)
        self.linear1 = nn.Linear(3 * outer, config.head_hidden)
        self.norm2 = nn.BatchNorm1d(config.head_hidden)
        self.linear2 = nn.Linear(config.head_hidden, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Logits and, with labels, the mean loss.

        input_ids is [n, T] int64; attention_mask [n, T] is 1 for the tokens of a document, by default where the id is
        not that of the padding. labels is [n] int64, or [n, labels] float for several labels a text.
        """
        mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        pooled = self._pooled(*_packed(input_ids, mask, self.config.backwards))
        hidden = F.relu(self.linear1(self.norm1(pooled)))
        logits = self.linear2(self.norm2(hidden)) / self.config.logit_temperature
        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            else:
                loss = F.cross_entropy(logits, labels.view(-1))
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pooled(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[last, maximum, mean] of the outputs at a document's last `max_len` tokens, [n, 3E].

        ids is [n, T], with the padding on the right; lengths [n] are at least 1.
        """
        order = lengths.argsort(stable=True, descending=True)
        ids, lengths = ids[order], lengths[order]
        width = self.config.embedding_size
        weight = self.embedding.weight
        total = weight.new_zeros(len(ids), width)
        highest = torch.full_like(total, -torch.inf)
        last = torch.zeros_like(total)
        states: list[Any] = [None] * len(self.layers)
        for start in range(0, int(lengths[0]), WINDOW):
            live = int((lengths > start).sum())  # documents that reach this window, the first ones
            x = self.embedding(ids[:live, start : start + WINDOW])
            for i, layer in enumerate(self.layers):
                state = states[i] and tuple(part[:, :live].contiguous() for part in states[i])
                x, states[i] = layer(x, state)
            size = lengths[:live, None]
            place = torch.arange(start, start + x.shape[1], device=ids.device)[None]
            outside = ((place < size - self.config.max_len) | (place >= size))[..., None]
            total = torch.cat([total[:live] + x.masked_fill(outside, 0).sum(1), total[live:]])
            top = torch.maximum(highest[:live], x.masked_fill(outside, -torch.inf).amax(1))
            highest = torch.cat([top, highest[live:]])
            at_end = (place == size - 1)[..., None]
            last = torch.cat([last[:live] + x.masked_fill(~at_end, 0).sum(1), last[live:]])
        mean = total / lengths.clamp(max=self.config.max_len)[:, None]
        return torch.cat([last, highest, mean], 1)[order.argsort()]


def _packed(ids: Tensor, mask: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """The documents with their padding on the right, reversed if `backwards`, and their lengths (at least 1)."""
    lengths = mask.sum(1).clamp(min=1)
    ids = ids.gather(1, (~mask).long().argsort(dim=1, stable=True))
    if backwards:
        place = torch.arange(ids.shape[1], device=ids.device)[None]
        ids = ids.gather(1, torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place))
    return ids, lengths
