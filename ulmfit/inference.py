"""A trained classifier: predictions for texts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, overload

import numpy as np

from ulmfit import model_folder
from ulmfit.data.given_rows import given_rows
from ulmfit.errors import UserError
from ulmfit.exported import folder as exported_folder
from ulmfit.exported.reader import OnnxReader, is_installed
from ulmfit.generation import LanguageModel as LanguageModel  # pickles of 0.2.0 look for it here
from ulmfit.hub import HubModel, local_folder
from ulmfit.prediction import Prediction
from ulmfit.texts import texts_of
from ulmfit.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from ulmfit.explanation import Explanation
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.ngrams import NGramNet


Backend = Literal["auto", "onnx", "torch"]
FEW = 16  # fewer documents than this are faster by ONNX Runtime, in fp32
_building = threading.Lock()


class _Reader(Protocol):
    """What gives probabilities, float32 [n, C], of documents: TorchReader or OnnxReader."""

    def probabilities(self, documents: Sequence[np.ndarray]) -> np.ndarray: ...


class TextClassifier(HubModel, pipeline_tag="text-classification", tags=["text-classification"]):
    """A trained classifier with its tokenizer and label names.

    Attributes:
        net: the network; None for a model that was exported to ONNX.
        label_names: names of the classes, in the order of the probabilities.
        thresholds: where a text may have several labels, by label the probability from which the text has it, float32
            [C]; else None.
    """

    def __init__(self, net: ClassifierNet | NGramNet | None, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.net, self.tokenizer, self.config = net, tokenizer, config
        self.label_names: list[str] = config["label_names"]
        self.thresholds: np.ndarray | None = None
        if config.get("multi_label"):
            found = config.get("thresholds") or [0.5] * len(self.label_names)
            self.thresholds = np.asarray(found, dtype=np.float32)
        self._exported: Path | bytes | None = None  # the graph of a model without net
        #: of the matrix products of the encoder.
        self.bits: Literal[8, 32] = 32
        self._backend: Backend = "torch"
        self._all: _Reader | None = None  # reads any number of documents; built when it is needed
        self._few: _Reader | None = None  # reads fewer than FEW, with backend auto in fp32

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        device: str | torch.device | None = None,
        int8: bool = False,
        backend: Backend = "auto",
        **hub: Any,
    ) -> TextClassifier:
        """Load a run directory, its model/, a folder of `ulmfit export --to onnx`, or OWNER/MODEL from the hub.

        Or several classifiers as one whose probabilities are the mean of theirs.

        Args:
            path: or several, such as a forward and a backward classifier; or a bundle of them, which
                `ulmfit export --model FORWARD --model BACKWARD` writes.
            device: of torch; by default the GPU if there is one.
            int8: 8-bit matrix products, on the CPU only. They are faster and change probabilities by some 0.004.
            backend: "onnx": ONNX Runtime, on the CPU; the graph is built in memory, nothing is written. "torch": torch.
                "auto": the faster one. That is ONNX Runtime, if the extra onnx is installed and the model is on the
                CPU in fp32: for fewer than 16 texts at a time, and with int8 for any number. Else it is torch.
                An exported model always uses ONNX Runtime, and does not import torch.
            hub: revision, token and the other options of `hub.local_folder`.

        Raises:
            UserError: the model is missing, damaged, or a language model, or the hub cannot be reached; int8 or backend "onnx" with a device other
                than the CPU; backend "onnx" without ONNX Runtime; several classifiers have other classes or columns.
        """
        from ulmfit.bundle import load_bundle, members_of

        if backend not in get_args(Backend):
            raise UserError(f"backend is {backend!r}; give one of {', '.join(get_args(Backend))}")
        paths = [local_folder(each, **hub) for each in ([path] if isinstance(path, str | Path) else path)]
        if len(paths) != 1 or members_of(paths[0]):
            return load_bundle(paths, device=device, int8=int8, backend=backend)
        path = paths[0]
        if exported_folder.is_export(path):
            return cls._load_export(path, device, int8, backend)
        self = cls(*model_folder.load(path, "TextClassifier", device or ("cpu" if backend == "onnx" else None)))
        self.loaded_from = model_folder.found(path)
        self.bits = 8 if int8 else 32
        self._backend = _backend_of(self.net, backend)
        if int8 or self._backend == "onnx":
            self._all = self._reader_of_all()
        return self

    @classmethod
    def _load_export(
        cls, path: str | Path, device: str | torch.device | None, int8: bool, backend: Backend
    ) -> TextClassifier:
        if backend == "torch":
            raise UserError(
                f"{path} holds an exported model, which torch cannot read; give the run that it was exported from"
            )
        if device is not None and not str(device).startswith("cpu"):
            raise UserError(f"{path} holds an exported model, which runs on the CPU and not on {device}; leave it out")
        reader, tokenizer, config = exported_folder.read_export(path)
        if int8 and config.get("exported", {}).get("bits") != 8:
            raise UserError(f"{path} holds a model exported in fp32; export it with --int8")
        self = cls(None, tokenizer, config)
        self._exported, self._backend, self._all = exported_folder.graph_of(path), "onnx", reader
        self.loaded_from, self.form = self._exported.parent, exported_folder.MODEL
        return self

    def keep_graph(self) -> None:
        """Keep the graph of an exported model in memory, as its file may be replaced."""
        if isinstance(self._exported, Path):
            self._exported = self._exported.read_bytes()

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._exported is None:
            model_folder.save(save_directory, self)
            return
        graph = self._exported if isinstance(self._exported, bytes) else self._exported.read_bytes()
        bits = self.config.get("exported", {}).get("bits", 32)
        exported_folder.write_export(save_directory, graph, self.tokenizer, self.config, bits=bits)

    def _card(self, **kwargs: Any) -> str:
        usage = """import ulmfit

classifier = ulmfit.TextClassifier.from_pretrained("NAME")
classifier.predict("An incredibly nice breath of fresh air")  # Prediction(label, index, probabilities)
"""
        return model_folder.card_of(self, usage, self.config | {"task": "classifier"}, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without sessions, which cannot be copied. The graph of an exported model goes along."""
        state = self.__dict__ | {"_all": None, "_few": None}
        if isinstance(self._exported, Path):
            state["_exported"] = self._exported.read_bytes()
        return state

    def _reader(self, documents: int) -> _Reader:
        """What reads this number of documents. It is built at its first use."""
        if self._backend == "auto" and self.bits == 32 and documents < FEW:
            if self._few is None:
                with _building:
                    self._few = self._few or self._onnx_reader()
            if self._few is not None:
                return self._few
        if self._all is None:
            with _building:
                self._all = self._all or self._reader_of_all()
        return self._all

    def _reader_of_all(self) -> _Reader:
        if self._backend == "onnx" or (self._backend == "auto" and self.bits == 8):
            reader = self._onnx_reader()
            if reader is not None:
                return reader
        from ulmfit.model.classifier import ClassifierNet
        from ulmfit.model.int8 import Int8AWDLSTM, quantize_encoder
        from ulmfit.parallel_inference import TorchReader

        assert self.net is not None
        if self.bits == 8 and isinstance(self.net, ClassifierNet) and not isinstance(self.net.encoder, Int8AWDLSTM):
            quantize_encoder(self.net)
        return TorchReader(
            self.net,
            pad_id=self.tokenizer.pad_id,
            backwards=bool(self.config.get("backwards")),
            temperature=self.config.get("temperature"),
        )

    def _onnx_reader(self) -> OnnxReader | None:
        """The model in ONNX Runtime. If that fails, the backend auto becomes torch."""
        try:
            if self._exported is not None:
                return OnnxReader(self._exported)
            assert self.net is not None
            return OnnxReader(model_folder.graph_of(self.net, self.config, self.bits))
        except UserError:
            if self._backend == "onnx":
                raise
        self._backend = "torch"
        return None

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
        predictions = [self._no_prediction(reason) if reason else self.prediction_of(next(found)) for reason in reasons]
        return predictions[0] if isinstance(texts, str) else predictions

    def prediction_of(self, row: np.ndarray) -> Prediction:
        """The prediction of a text with these probabilities, float32 [C]."""
        if self.thresholds is None:
            index = int(row.argmax())
            return Prediction(self.label_names[index], index, row)
        indices = tuple(np.flatnonzero(row >= self.thresholds).tolist())
        labels = tuple(self.label_names[index] for index in indices)
        index = max(indices, key=lambda place: row[place], default=-1)
        return Prediction(self.label_names[index] if indices else "", index, row, "", labels, indices)

    def _no_prediction(self, reason: str) -> Prediction:
        return Prediction("", -1, np.full(len(self.label_names), np.nan, dtype=np.float32), reason)

    def explain(self, text: str, label: str | None = None, *, tried: int = 5) -> Explanation:
        """What each word of a text adds to the log-odds of a class, by gradient times input.

        Words are those of the text as it was given. In a notebook the result is shown as the text in colours.

        Args:
            label: the class; by default the predicted one.
            tried: for so many of the strongest words, also the probability of the class without the word.

        Raises:
            UserError: there is no such class, no word in the text, or the model is exported or in 8 bits.
        """
        from ulmfit.explanation import explain

        return explain(self, text, label, tried=tried)

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """Class probabilities, float32 [n, C], in the order of the texts. It reads similar lengths together.

        Raises:
            UserError: they are no texts.
        """
        texts = texts_of(texts)
        if not texts:
            return np.empty((0, len(self.label_names)), dtype=np.float32)
        return self._reader(len(texts)).probabilities(self.tokenizer.encode(texts))


def _backend_of(net: ClassifierNet | NGramNet | None, wanted: Backend) -> Backend:
    """`wanted`, or torch where auto cannot have ONNX Runtime, or n-grams gain nothing by it."""
    import torch

    from ulmfit.model.ngrams import NGramNet

    assert net is not None
    if wanted == "auto" and isinstance(net, NGramNet):
        return "torch"
    weight = next(net.parameters())
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    if wanted == "onnx" and not fits:
        kind = str(weight.dtype).removeprefix("torch.")
        raise UserError(
            f"backend onnx runs models in fp32 on the CPU and this one is in {kind} on {weight.device.type}; leave it out"
        )
    return "torch" if wanted == "auto" and not (fits and is_installed()) else wanted
