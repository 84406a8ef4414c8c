"""The processes that predict, and the backend of their models. Exported models in one process need no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ulmfit.exported.folder import is_export
from ulmfit.paths import as_path

if TYPE_CHECKING:
    from ulmfit.distributed.runtime import Runtime
    from ulmfit.inference import Backend

Result = TypeVar("Result")


class OneProcess:
    """The part of `Runtime` that prediction uses, for a process without others, on the CPU."""

    is_main, world_size, device = True, 1, "cpu"

    def own_rows(self, num_rows: int) -> range:
        return range(num_rows)

    def gather_objects(self, values: list[Any]) -> list[Any]:
        return values

    def broadcast(self, value: Any) -> Any:
        return value

    def on_main(self, action: Callable[[], Result]) -> Result:
        return action()


@contextmanager
def open_processes(models: Sequence[str]) -> Iterator[Runtime | OneProcess]:
    """The launcher's processes, or this one alone, without torch, if all models are exported."""
    if all(map(is_export, models)) and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        with _datasets_without_torch():
            yield OneProcess()
        return
    from ulmfit.config import ClassifierConfig
    from ulmfit.distributed.runtime import open_runtime

    with open_runtime(ClassifierConfig()) as (runtime, _):
        yield runtime


@contextmanager
def _datasets_without_torch() -> Iterator[None]:
    """Context in which an import of datasets does not import torch, which takes a second and is not used here."""
    given = os.environ.get("USE_TORCH")
    os.environ.setdefault("USE_TORCH", "NO")
    try:
        yield
    finally:
        if given is None:
            del os.environ["USE_TORCH"]


def backend_for(models: Sequence[str], *, int8: bool) -> Backend:
    """ONNX Runtime for exported models and with int8. Else torch, as building a graph for one call costs more."""
    return "auto" if int8 or any(map(is_export, models)) else "torch"


def identity_of(models: Sequence[str]) -> str:
    """A hash of the files of models, 16 hex digits. It determines their probabilities, but for rounding."""
    from ulmfit.bundle import each_model, mean_as_told

    digest = hashlib.sha256(mean_as_told(models).encode())
    for path in each_model(models):
        if is_export(path):
            folder = Path(as_path(path))
        else:
            from ulmfit.model.pretrained import find_model

            folder = find_model(path)
        for name in ("config.json", "tokenizer.json", "model.onnx" if is_export(path) else "model.safetensors"):
            with open(folder / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
