"""Using trained models: text generation and classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ulmfit.batches.documents import pad
from ulmfit.data.given_rows import given_rows
from ulmfit.errors import UserError
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.int8 import quantize_encoder
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import load_model
from ulmfit.parallel_inference import read_side_by_side, reading_batches
from ulmfit.texts import texts_of
from ulmfit.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predicted class of a text. It unpacks as `label, index, probabilities` and compares by these three.

    A row without a text (None, NaN, an empty or blank string) has a prediction too, so that predictions keep the places
    of their rows: the label is empty, the index -1, and the probabilities are NaN.

    Attributes:
        label: name of the most probable class; "" without a text.
        index: index of this class; -1 without a text.
        probabilities: float32 [C], in the order of the classes.
        reason: why there is no label: "no text", "empty" or "undecodable"; else "".
    """

    label: str
    index: int
    probabilities: np.ndarray
    reason: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.index, self.probabilities))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        return (self.label, self.index) == (other.label, other.index) and np.array_equal(
            self.probabilities, other.probabilities, equal_nan=True
        )

    def __hash__(self) -> int:
        known = tuple(self.probabilities.tolist()) if self.index >= 0 else ()  # NaNs have different hashes
        return hash((self.label, self.index, known))


def _load(path: str | Path, kind: type, wanted: str, device: str | torch.device | None) -> tuple[Any, Tokenizer, dict]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net, tokenizer, config = load_model(path, device=device)
    if not isinstance(net, kind):
        other = "TextClassifier" if wanted == "LanguageModel" else "LanguageModel"
        raise UserError(f"the model in {path} is not one for {wanted}; load it with {other}.from_pretrained")
    return net.eval(), tokenizer, config


class LanguageModel:
    """A trained language model with its tokenizer."""

    def __init__(self, net: LanguageModelNet, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.net, self.tokenizer, self.config = net, tokenizer, config

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device | None = None) -> LanguageModel:
        """Load a run directory or its model/. Raises UserError if it is missing, damaged, or a classifier."""
        return cls(*_load(path, LanguageModelNet, "LanguageModel", device))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first match is used
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        min_p: float | None = ...,
        seed: int | None = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        min_p: float | None = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.75,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """Continue a prompt, or each of several prompts.

        Args:
            max_new_tokens: tokens (words) to add, including special tokens.
            temperature: below 1 for more probable text; 0 always takes the most probable word.
            top_k: sample only from the k most probable words.
            min_p: exclude words with less than min_p times the highest probability.
            seed: the same seed gives the same text; with None each call gives another text.

        Returns:
            The unchanged prompt with its continuation as readable text. Unknown words are never generated.

        Raises:
            UserError: a setting is out of range, or the model reads texts backwards.
        """
        if self.config.get("backwards"):
            raise UserError(
                "this language model reads texts backwards and cannot continue one; "
                "give a model that was trained without --backwards"
            )
        prompts = texts_of(prompt)
        ids = [row.tolist() for row in self.tokenizer.encode(prompts)]
        generator = torch.Generator(self.net.decoder_bias.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        new = self.net.generate_ids(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            min_p=min_p,
            banned=self.tokenizer.banned_ids,
            generator=generator,
        )
        texts = [written + self._continuation(*parts) for written, *parts in zip(prompts, ids, new, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def _continuation(self, ids: list[int], new: list[int]) -> str:
        """The new text after the prompt. It is decoded together with the prompt, because spaces and capitals depend on
        it."""
        head, whole = self.tokenizer.decode(ids), self.tokenizer.decode(ids + new)
        return whole[len(head) :] if whole.startswith(head) else " " + self.tokenizer.decode(new)


class TextClassifier:
    """A trained classifier with its tokenizer and label names."""

    def __init__(self, net: ClassifierNet, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.net, self.tokenizer, self.config = net, tokenizer, config
        self.label_names: list[str] = config["label_names"]

    @classmethod
    def from_pretrained(
        cls, path: str | Path | Sequence[str | Path], *, device: str | torch.device | None = None, int8: bool = False
    ) -> TextClassifier:
        """Load a run directory or its model/, or several classifiers as one whose probabilities are the mean of theirs.

        Args:
            path: or several, such as a forward and a backward classifier; or a bundle of them, which
                `ulmfit export --model FORWARD --model BACKWARD` writes.
            int8: 8-bit matrix products (`ulmfit.model.int8`), on the CPU only. They are faster and change
                probabilities by about 0.001.

        Raises:
            UserError: the model is missing, damaged, or a language model; or int8 with a device other than the CPU; or
                several classifiers have other classes or columns.
        """
        from ulmfit.bundle import load_bundle, members_of

        paths = [path] if isinstance(path, str | Path) else list(path)
        if len(paths) != 1 or members_of(paths[0]):
            return load_bundle(paths, device=device, int8=int8)
        path = paths[0]
        net, tokenizer, config = _load(path, ClassifierNet, "TextClassifier", device)
        return cls(quantize_encoder(net) if int8 else net, tokenizer, config)

    @overload
    def predict(self, texts: str, *, text_column: str | None = ...) -> Prediction: ...
    @overload
    def predict(self, texts: Any, *, text_column: str | None = ...) -> list[Prediction]: ...

    def predict(self, texts: Any, *, text_column: str | None = None) -> Prediction | list[Prediction]:
        """Predict the class of a text, or of each row of several.

        The probabilities of a text do not depend on the other texts.

        Args:
            texts: a text; an iterable of texts (list, Series, array, generator); or a table (pandas or polars frame,
                `datasets.Dataset`, dict of columns, iterable of dicts).
            text_column: the column with the text of a table, or several joined by commas. Default: the columns that
                the classifier was trained on, else `text`, else the only column of strings.

        Returns:
            A Prediction for a str, else a list with one for each row, also for rows without a text.

        Raises:
            UserError: `texts` are not texts, or a table without a text column.
        """
        columns = self.config.get("text_columns", ())
        rows, reasons = given_rows(texts, text_column=text_column, trained_columns=columns)
        found = iter(self.probabilities([row for row, reason in zip(rows, reasons, strict=True) if not reason]))
        predictions = [self._no_prediction(reason) if reason else self._prediction(next(found)) for reason in reasons]
        return predictions[0] if isinstance(texts, str) else predictions

    def _prediction(self, row: np.ndarray) -> Prediction:
        return Prediction(self.label_names[row.argmax()], int(row.argmax()), row)

    def _no_prediction(self, reason: str) -> Prediction:
        return Prediction("", -1, np.full(len(self.label_names), np.nan, dtype=np.float32), reason)

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Class probabilities, float32 [n, C], in the order of the texts. It reads similar lengths together."""
        if not texts:
            return np.empty((0, len(self.label_names)), dtype=np.float32)
        documents = self.tokenizer.encode(texts)
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        result = np.empty((len(texts), len(self.label_names)), dtype=np.float32)
        device = next(self.net.parameters()).device

        def read(indices: np.ndarray) -> np.ndarray:
            ids = np.concatenate([documents[index] for index in indices])
            tokens = pad(
                ids, lengths[indices], pad_id=self.tokenizer.pad_id, backwards=bool(self.config.get("backwards"))
            )
            logits = self.net(torch.from_numpy(tokens).to(device), torch.from_numpy(lengths[indices])).logits
            return logits.float().softmax(1).cpu().numpy()

        batches = reading_batches(lengths, self.net, device)
        for indices, rows in zip(batches, read_side_by_side(read, batches, device), strict=True):
            result[indices] = rows
        return result
