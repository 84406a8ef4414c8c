"""Every touch of what torch, accelerate, datasets, huggingface_hub and deepspeed do not promise to keep.

Names that begin with an underscore, and some that are public in name only. Each function says what it reaches for and
why. When a release breaks one, tests/test_private_api.py says which; pyproject.toml bounds the releases. A package is
imported where it is used, so that a room without torch stays one. Imports nothing of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: The versions that this file was written against.
VERSIONS = {
    "torch": "2.13.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "huggingface_hub": "2.4.0",
    "deepspeed": "0.19.8",
}


# ------------------------------------------------------------------------------------------------------- torch


def lstm(x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *, training: bool) -> tuple[Tensor, ...]:
    """One layer, one direction, batch first, with both biases and no dropout: output [B, T, H], h and c [1, B, H].

    `torch._VF.lstm`, behind nn.LSTM: that keeps its weights as parameters, and these are masked ones. `training`: the
    backward pass will follow (cuDNN keeps what it needs only then).
    """
    import torch

    return torch._VF.lstm(x, state, weights, True, 1, 0.0, training, False, True)


def lstm_cell(x: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One time step: x [B, I], state ([B, H], [B, H]) -> the new state. `torch._VF.lstm_cell`, behind nn.LSTMCell."""
    import torch

    return torch._VF.lstm_cell(x, state, *weights)


def skip_step_where(optimizer: Any, found_inf: Tensor) -> None:
    """Let the next step leave weights and moments alone where `found_inf` (0-d, on the device) is 1.

    `Optimizer.found_inf`: torch's loss scaler sets it and the fused kernel of AdamW reads it. The host need not wait.
    """
    optimizer.found_inf = found_inf


def packed_weight(weight: Tensor) -> Tensor:
    """A float32 weight [out, in] in the layout of `packed_linear`. `torch.ops.mkldnn._reorder_linear_weight`."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """x [N, in] -> [N, out] by oneDNN, in which a row does not depend on the number of rows, as in torch's default.

    `torch.ops.mkldnn._linear_pointwise`.
    """
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def packed_int8_weight(weight: Tensor) -> Tensor:
    """An int8 weight [M, K] in the layout of `add_int8_product`. `torch.ops.onednn.qlinear_prepack`."""
    import torch

    return torch.ops.onednn.qlinear_prepack(weight, None)


def add_int8_product(
    total: Tensor, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, *, x_scale: float, x_zero: int
) -> None:
    """total [n, M] (float32) += x W^T of bytes x [n, K], which stand for (x - x_zero) * x_scale, and int8 weights
    with a scale and a zero for each row. `torch.ops.onednn.qlinear_pointwise.binary`."""
    import torch

    # Behind the weight: the other summand, bias, the output's scale, zero and type, the other's scale and zero, what is
    # done with them, its factor, and no function on top.
    torch.ops.onednn.qlinear_pointwise.binary(
        x, x_scale, x_zero, packed, scale, zero, total, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
    )


def torch_library() -> str:
    """The file of torch's own code. `torch._C.__file__`."""
    import torch

    return torch._C.__file__


def group_store() -> Any:
    """The key-value store in which the ranks met. `torch.distributed.distributed_c10d._get_default_store`."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def abort_group(device: Any) -> None:
    """Break the connections of the process group, so that no rank waits for this one.

    `_get_default_group()._get_backend(device).abort()` of `torch.distributed.distributed_c10d`; RuntimeError from a
    backend that cannot.
    """
    from torch.distributed import distributed_c10d

    distributed_c10d._get_default_group()._get_backend(device).abort()


# -------------------------------------------------------------------------------------------------- accelerate


def shared_states() -> list[dict[str, Any]]:
    """The dicts in which accelerate keeps precision, process group and so on for the whole process; not copies.

    `_shared_state` of AcceleratorState, PartialState and GradientState.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]


def forget_prepared(accelerator: Any) -> None:
    """Let an Accelerator go of the models and optimizers that it was given to prepare.

    `Accelerator._models` and `_optimizers`: `free_memory` would let go of the scaler's state and more.
    """
    accelerator._models.clear()
    accelerator._optimizers.clear()


# ------------------------------------------------------------------------------- datasets and huggingface_hub


def features_of(dataset: Any) -> Any:
    """The columns of a Dataset or IterableDataset, from its first rows where it does not know them.

    `IterableDataset._resolve_features`.
    """
    return dataset.features or dataset._resolve_features().features or {}


def file_systems() -> Any:
    """The file systems of the hub that every data set shares. `HfFileSystem._cache`."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem._cache


def stream_state(stream: Any) -> dict[str, Any]:
    """Where the reader of an IterableDataset's files is; empty before it begins. `_state_dict` of the innermost."""
    return _innermost(stream)._state_dict or {}


def watch_tables(stream: Any, seen: Callable[[], None]) -> None:
    """Call `seen` at each table that a stream makes of its files, also of those that it makes only to skip them.

    `generate_tables_fn` of the innermost reader, where it has one.
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
    """What reads the files of an IterableDataset, below all that has been put around it. `_ex_iterable`."""
    reader = stream._ex_iterable
    while hasattr(reader, "ex_iterable"):
        reader = reader.ex_iterable
    return reader


def arrow_cache(owner: str, name: str) -> Path:
    """Where datasets keeps a hub data set: a folder of CONFIGURATION/VERSION/REVISION.

    `datasets.naming.camelcase_to_snakecase`, and the order of the folders.
    """
    import datasets
    from datasets.naming import camelcase_to_snakecase

    return Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___" * bool(owner) + camelcase_to_snakecase(name))


def cached_builder(owner: str, name: str, entry: Path) -> Any:
    """The builder of one entry, CONFIGURATION/VERSION/REVISION, of `arrow_cache`; it asks nobody.

    `datasets.packaged_modules.cache.cache.Cache`.
    """
    from datasets.packaged_modules.cache.cache import Cache

    configuration, version, revision = entry.parts[-3:]
    repository = f"{owner}/{name}" if owner else None
    return Cache(dataset_name=name, repo_id=repository, config_name=configuration, version=version, hash=revision)


# --------------------------------------------------------------------------------------------------- deepspeed


def without_shared_memory_reduction() -> None:
    """Leave out a reduction that DeepSpeed compiles at first use, for about two minutes. `__compatible_ops__`."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def zero_gradient_norm(optimizer: Any) -> Any:
    """The norm before clipping of the step just made, infinite or negative where it overflowed. `_global_grad_norm`."""
    return optimizer._global_grad_norm


def zero_partitions(optimizer: Any, stage: int) -> list[Tensor]:
    """This rank's flat part of each group of parameters, which is what the inner optimizer steps.

    `single_partition_of_fp32_groups` (stages 1 and 2), `fp32_partitioned_groups_flat` (stage 3).
    """
    return optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups


def link_zero_moments(optimizer: Any) -> None:
    """Let stages 1 and 2 find a parameter's share of the flat moments.

    They do so by themselves after the first group's step, when the other groups have no moments yet.
    `_hp_optimizer_states_linked`, `_lazy_init_hp_params_optimizer_state`.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
