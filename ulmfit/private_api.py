"""All uses of private API of torch, accelerate, datasets, huggingface_hub and deepspeed, which may change any time.

Private are names that begin with an underscore, and some undocumented ones. Each function names what it uses and why.
If a release breaks one, tests/test_private_api.py tells which. pyproject.toml limits the releases. Packages are
imported inside the functions, so that modules that do without torch need not import it. Imports nothing of this
package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: The versions for which this file was written.
VERSIONS = {
    "torch": "2.13.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "huggingface_hub": "2.4.0",
    "deepspeed": "0.19.8",
}


# ------------------------------------------------------------------------------------------------------- torch


def lstm(x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *, training: bool) -> tuple[Tensor, ...]:
    """Run one LSTM layer: one direction, batch first, both biases, no dropout. Returns [B, T, H], h and c [1, B, H].

    Uses `torch._VF.lstm`, which nn.LSTM calls. nn.LSTM itself needs its weights as parameters, but these are masked
    copies. `training`: a backward pass will follow (only then cuDNN saves what it needs).
    """
    import torch

    return torch._VF.lstm(x, state, weights, True, 1, 0.0, training, False, True)


def lstm_cell(x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Run one time step: x [B, I], state (h [B, H], c [B, H]) -> the new state.

    Uses `torch._VF.lstm_cell`, which nn.LSTMCell calls.
    """
    import torch

    return torch._VF.lstm_cell(x, state, *weights)


def skip_step_where(optimizer: Any, found_inf: Tensor) -> None:
    """Make the next step change neither weights nor moments if `found_inf` (0-d, on the device) is 1.

    Sets `Optimizer.found_inf`, as torch's loss scaler does. The fused kernel of AdamW reads it on the device, so the
    host does not wait.
    """
    optimizer.found_inf = found_inf


def unpacked_size(path: str | os.PathLike[str]) -> int:
    """Bytes of all parts of a file of `torch.save`, as torch's reader finds them. Uses `torch._C.PyTorchFileReader`.

    Raises:
        RuntimeError: it is no such file.
    """
    import torch

    reader = torch._C.PyTorchFileReader(os.fspath(path))
    return sum(reader.get_record_size(name) for name in reader.get_all_records())


def leave_to_others(module: Any, names: list[str]) -> None:
    """Make DDP leave these parameters alone: it neither sends their values nor averages their gradients.

    Uses `DistributedDataParallel._set_params_and_buffers_to_ignore_for_model`; torch has no public way.
    """
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def packed_weight(weight: Tensor) -> Tensor:
    """Convert a float32 weight [out, in] for `packed_linear`, by `torch.ops.mkldnn._reorder_linear_weight`."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def unpacked_weight(packed: Tensor) -> Tensor:
    """The inverse of `packed_weight`, bit for bit. A packed tensor is opaque: it can neither be copied nor pickled."""
    return packed.to_dense()


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """A linear layer by oneDNN: x [N, in] -> [N, out]. Its rows do not depend on N, unlike those of torch's default.

    Uses `torch.ops.mkldnn._linear_pointwise`.
    """
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def packed_int8_weight(weight: Tensor) -> Tensor:
    """Convert an int8 weight [M, K] for `add_int8_product`, by `torch.ops.onednn.qlinear_prepack`."""
    import torch

    return torch.ops.onednn.qlinear_prepack(weight, None)


def unpacked_int8_weight(packed: Tensor) -> Tensor:
    """The inverse of `packed_int8_weight`, which stores the transposed weight."""
    return packed.to_dense().t().contiguous()


def add_int8_product(
    total: Tensor, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, *, x_scale: float, x_zero: int
) -> None:
    """total [n, M] (float32) += a W^T with a = (x - x_zero) * x_scale for bytes x [n, K].

    The int8 weight has a scale and a zero point for each row. Uses `torch.ops.onednn.qlinear_pointwise.binary`.
    """
    import torch

    # Arguments after the weight's: other summand, bias, the output's scale, zero point and dtype, the summand's scale
    # and zero point, the operation and the summand's factor, and no activation function.
    torch.ops.onednn.qlinear_pointwise.binary(
        x, x_scale, x_zero, packed, scale, zero, total, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
    )


def torch_library() -> str:
    """The path of torch's shared library, `torch._C.__file__`."""
    import torch

    return torch._C.__file__


def group_store() -> Any:
    """The process group's key-value store, by `torch.distributed.distributed_c10d._get_default_store`."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def abort_group(device: Any) -> None:
    """Abort the connections of the process group, so that no rank waits for this one.

    Uses `_get_default_group()._get_backend(device).abort()` of `torch.distributed.distributed_c10d`.

    Raises:
        RuntimeError: the backend cannot abort.
    """
    from torch.distributed import distributed_c10d

    distributed_c10d._get_default_group()._get_backend(device).abort()


# -------------------------------------------------------------------------------------------------- accelerate


def shared_states() -> list[dict[str, Any]]:
    """The dicts in which accelerate stores precision, process group etc. for the whole process. They are not copies.

    They are `_shared_state` of AcceleratorState, PartialState and GradientState.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]


def forget_prepared(accelerator: Any) -> None:
    """Remove an Accelerator's references to the models and optimizers that it has prepared.

    Clears `Accelerator._models` and `_optimizers`. `free_memory` would also remove the loss scaler's state and more.
    """
    accelerator._models.clear()
    accelerator._optimizers.clear()


# ------------------------------------------------------------------------------- datasets and huggingface_hub


def count_no_downloads() -> None:
    """Keep `datasets.load_dataset` from telling a server of each local file that is read: which reader, which versions.

    Without a network it would also wait for the answer. Sets `datasets.config.HF_UPDATE_DOWNLOAD_COUNTS`.
    """
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def http_error() -> type[Exception]:
    """What huggingface_hub's HTTP client raises where a host cannot be reached.

    Which client that is has changed with its versions; its errors are the base of huggingface_hub's own.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def features_of(dataset: Any) -> Any:
    """The columns of a Dataset or IterableDataset. If an IterableDataset does not know them, its first rows are read.

    Uses `IterableDataset._resolve_features`.
    """
    return dataset.features or dataset._resolve_features().features or {}


def file_systems() -> Any:
    """The hub's file system objects, which all data sets share, `HfFileSystem._cache`."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem._cache


def stream_state(stream: Any) -> dict[str, Any]:
    """The position of an IterableDataset's file reader; empty before it starts. It is the innermost `_state_dict`."""
    return _innermost(stream)._state_dict or {}


def watch_tables(stream: Any, seen: Callable[[], None]) -> None:
    """Call `seen` for each table that a stream reads from its files, including those that it only skips.

    Replaces `generate_tables_fn` of the innermost reader, if it has one.
    """
    reader = _innermost(stream)
    make = getattr(reader, "generate_tables_fn", None)
    if make is None:
        return

    def tables(*args: Any, **options: Any) -> Iterator[Any]:
        for table in make(*args, **options):
            seen()
            yield table

    reader.generate_tables_fn = tables


def _innermost(stream: Any) -> Any:
    """The file reader of an IterableDataset, inside all its wrappers (`_ex_iterable`)."""
    reader = stream._ex_iterable
    while hasattr(reader, "ex_iterable"):
        reader = reader.ex_iterable
    return reader


def arrow_cache(owner: str, name: str) -> Path:
    """The folder in which datasets stores a hub data set, with subfolders CONFIGURATION/VERSION/REVISION.

    Uses `datasets.naming.camelcase_to_snakecase` and depends on the order of these subfolders.
    """
    import datasets
    from datasets.naming import camelcase_to_snakecase

    return Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___" * bool(owner) + camelcase_to_snakecase(name))


def cached_builder(owner: str, name: str, entry: Path) -> Any:
    """The builder of one entry, CONFIGURATION/VERSION/REVISION, of `arrow_cache`. It does not use the network.

    It is a `datasets.packaged_modules.cache.cache.Cache`.
    """
    from datasets.packaged_modules.cache.cache import Cache

    configuration, version, revision = entry.parts[-3:]
    repository = f"{owner}/{name}" if owner else None
    return Cache(dataset_name=name, repo_id=repository, config_name=configuration, version=version, hash=revision)


# --------------------------------------------------------------------------------------------------- deepspeed


def without_shared_memory_reduction() -> None:
    """Disable a reduction that DeepSpeed compiles at first use, in about two minutes. Sets `__compatible_ops__`."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def zero_gradient_norm(optimizer: Any) -> Any:
    """The last step's gradient norm before clipping, `_global_grad_norm`; infinite or negative after an overflow."""
    return optimizer._global_grad_norm


def zero_partitions(optimizer: Any, stage: int) -> list[Tensor]:
    """This rank's flat partition of each parameter group, which the inner optimizer updates.

    It is `single_partition_of_fp32_groups` (stages 1 and 2) or `fp32_partitioned_groups_flat` (stage 3).
    """
    return optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups


def link_zero_moments(optimizer: Any) -> None:
    """In stages 1 and 2, link each parameter to its part of the flat moments.

    DeepSpeed links them after the step of the first group, when the other groups have no moments yet, which is too
    early. Uses `_hp_optimizer_states_linked` and `_lazy_init_hp_params_optimizer_state`.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
