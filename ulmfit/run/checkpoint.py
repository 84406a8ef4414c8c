"""Checkpoints: atomic, checksummed snapshots of the complete state of a run.

    checkpoints/step-00001200/
        tensors.safetensors    every tensor, named by its path in the state ("model/embedding.weight")
        state.json             the rest, with a reference in place of each tensor
        manifest.json          size and SHA-256 of every other file; written last

The process may be killed between any two instructions. This leaves a complete checkpoint, or a folder whose name
starts with a dot, which only the next `write` reads. Only rank 0 may write, and only one process per run directory
(`DirectoryLock` of lock.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ulmfit.console import say
from ulmfit.errors import UserError
from ulmfit.files import parse_json, publish, sync, usual_mode
from ulmfit.processes import process_alive

FORMAT = 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
_COMPLETE = re.compile(r"step-(\d{8,})")
# tmp: being written. old: valid, but about to be replaced by another checkpoint of the same step. trash: being
# deleted.
_ASIDE = re.compile(r"\.step-(\d{8,})\.(tmp|old|trash)-(\d+)")


def _to_stderr(message: str) -> None:
    say(message, sys.stderr)


# ---------------------------------------------------------------- public interface


class Snapshot(NamedTuple):
    """A copy of a state. Later changes of the original tensors do not affect it.

    Attributes:
        tree: JSON-able; {"$tensor": name} is in place of each tensor.
        tensors: contiguous CPU tensors by name.
    """

    tree: Any
    tensors: dict[str, Tensor]


def snapshot(state: dict[str, Any]) -> Snapshot:
    """A copy of `state` for `write`.

    Args:
        state: nested dicts with string keys, lists, tuples, tensors (any device, dense), int, float (including nan
            and infinities), str, bool and None. Anything else is an AssertionError.
    """
    return _flatten(state)


def write(
    directory: Path,
    step: int,
    snapshot: Snapshot,
    *,
    keep: int,
    more: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = _to_stderr,
) -> Path:
    """Write the checkpoint of `step` and delete old ones, except the newest `keep`. Returns its path.

    Args:
        directory: the run's `checkpoints` folder; created if missing.
        keep: at least 1. Old checkpoints are deleted only after the new one is complete.
        more: texts by file name, which the checkpoint holds too (see `kept_file`).
        warn: called with a message if an old checkpoint cannot be deleted; this is not an error.

    Raises:
        OSError: disk full, read-only and the like. No partial checkpoint is left, and earlier ones are unchanged.
    """
    assert keep >= 1, "the newest checkpoint is always kept"
    path = directory / f"step-{step:08d}"
    aside = directory / f".{path.name}.tmp-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        with usual_mode(aside / TENSORS):
            save_file(snapshot.tensors, aside / TENSORS)
        (aside / STATE).write_text(json.dumps(snapshot.tree, allow_nan=False))
        for name, text in (more or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        _seal(aside, step)
        _publish(aside, path)
    except (OSError, safetensors.SafetensorError) as error:
        code = _error_number(error)
        raise OSError(
            code,
            f"the checkpoint of step {step} could not be written ({os.strerror(code)}); earlier ones are untouched",
            str(directory),
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _tidy(directory, step, keep, warn)
    return path


def load(path: Path) -> dict[str, Any]:
    """Load a state, with tensors on the CPU. Types, dtypes, shapes and bits are those that were saved.

    Tensors that shared memory (a tied weight) share it again. Checksums are not verified, because `latest` has done
    this.

    Raises:
        UserError: the files cannot be read.
    """
    try:
        with safetensors.safe_open(path / TENSORS, framework="pt") as file:
            # A copy, because safetensors maps the file, and the checkpoint may be deleted later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        return _unpack(parse_json((path / STATE).read_text()), tensors)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({error}); delete it to go on from an "
            "earlier one, or start afresh with --resume never"
        ) from error


def validate(path: Path, *, checksums: bool = True) -> list[str]:
    """A list of faults of a checkpoint, in words; empty if it is complete.

    Every byte is read to verify the checksums. With `checksums` False only sizes are compared.
    """
    try:
        manifest = parse_json((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return [f"its format is {manifest['format']}, this program reads {FORMAT}"]
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    problems = [f"{name} is not in its manifest" for name in (STATE, TENSORS) if name not in files]
    for name, (size, digest) in files.items():
        try:
            found = (path / name).stat().st_size
            if found != size:
                problems.append(f"{name} has {found} bytes instead of {size}")
            elif checksums and _sha256(path / name) != digest:
                problems.append(f"{name} does not match its checksum")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error}")
    return problems


def latest(directory: Path, *, warn: Callable[[str], None] = _to_stderr) -> Path | None:
    """The newest complete checkpoint of the `checkpoints` folder, or None.

    Damaged ones are skipped, and `warn` is called with their names.
    """
    found = []
    for entry in _entries(directory):
        if match := _COMPLETE.fullmatch(entry.name):
            found.append((int(match[1]), True, entry))
        elif (match := _ASIDE.fullmatch(entry.name)) and match[2] == "old":
            found.append((int(match[1]), False, entry))  # the checkpoint that replaces it, if complete, comes first
    for _, _, path in sorted(found, reverse=True):
        problems = validate(path)
        if not problems:
            return path
        warn(f"checkpoint {path} is damaged and passed over: {'; '.join(problems)}")
    return None


def kept_file(directory: Path, name: str) -> str | None:
    """The text of a file of the newest checkpoint that holds it undamaged; None if none does.

    Only this file is checked, because a checkpoint with damaged tensors may hold it undamaged.
    """
    steps = [(int(match[1]), entry) for entry in _entries(directory) if (match := _COMPLETE.fullmatch(entry.name))]
    for _, path in sorted(steps, reverse=True):
        try:
            manifest = parse_json((path / MANIFEST).read_text())
            if _sha256(path / name) == manifest["files"][name]["sha256"]:
                return (path / name).read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


# ---------------------------------------------------------------- state <-> json and tensors


def _flatten(state: dict[str, Any]) -> Snapshot:
    assert isinstance(state, dict), "the state is a dict"
    tensors: dict[str, Tensor] = {}
    names: dict[tuple, str] = {}  # identity of a view of memory -> name of its tensor

    def pack_tensor(value: Tensor, name: str) -> dict[str, str]:
        assert value.layout == torch.strided and not value.is_quantized and value.device.type != "meta", (
            f"{name}: only dense tensors that hold data can be saved"
        )
        value = value.detach().resolve_neg().resolve_conj()
        view = (value.device, value.dtype, value.data_ptr(), value.shape, value.stride())
        if value.numel() and view in names:
            return {"$tensor": names[view]}
        # Names may collide as in {"a/b": x, "a": {"b": y}}. safetensors reserves __metadata__.
        while name in tensors or name == "__metadata__":
            name += "'"
        names[view] = name
        # Always a copy, because training changes the original while this one is being written.
        tensors[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value)
        return {"$tensor": name}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return pack_tensor(value, name)
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, (list, tuple)):
            items = [pack(item, f"{name}/{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        assert isinstance(value, dict), f"{name}: a {type(value).__name__} cannot be saved"
        for key in value:
            assert isinstance(key, str) and not key.startswith("$"), f"{name}: key {key!r} is no plain string"
        return {key: pack(item, f"{name}/{key}" if name else key) for key, item in value.items()}

    return Snapshot(pack(state, ""), tensors)


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$float" in tree:
        return float(tree["$float"])
    if "$tuple" in tree:
        return tuple(_unpack(item, tensors) for item in tree["$tuple"])
    return {key: _unpack(item, tensors) for key, item in tree.items()}


# ---------------------------------------------------------------- files


def _seal(folder: Path, step: int) -> None:
    """Flush every file of the folder to disk, then write the manifest, which completes the checkpoint.

    All files of the folder are included, also those of another engine.
    """
    files = {}
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        sync(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    sync(folder / MANIFEST)
    for inner in (entry for entry in folder.rglob("*") if entry.is_dir()):
        sync(inner)
    sync(folder)


def _publish(aside: Path, path: Path) -> None:
    """Rename a sealed folder to its final name.

    If a checkpoint of the same step exists (e.g. a damaged one that was skipped), it is first renamed to a name that
    `latest` recognises. So at any time at least one of the two can be found.
    """
    if path.exists():
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    publish(aside, path)


def _tidy(directory: Path, step: int, keep: int, warn: Callable[[str], None]) -> None:
    """Delete remains of killed writers, and checkpoints older than the newest `keep` complete ones.

    The checkpoint of `step` is the first of these. Checkpoints of later steps (skipped as damaged when the run resumed)
    are neither counted nor deleted. Only sizes are compared to decide what is complete: reading all checkpoints at
    each save would take longer than the save.
    """
    doomed, complete = [], 1
    older = [(int(m[1]), e) for e in _entries(directory) if (m := _COMPLETE.fullmatch(e.name)) and int(m[1]) < step]
    for _, path in sorted(older, reverse=True):
        if complete >= keep:
            doomed.append(path)
        elif not validate(path, checksums=False):
            complete += 1
    for entry in _entries(directory):
        match = _ASIDE.fullmatch(entry.name)
        if match and (int(match[3]) == os.getpid() or not process_alive(int(match[3]))):
            doomed.append(entry)
    for path in doomed:
        try:
            if _COMPLETE.fullmatch(path.name):  # renamed first, because a partly deleted one would look damaged
                path = path.rename(path.with_name(f".{path.name}.trash-{os.getpid()}"))
            shutil.rmtree(path)
        except OSError as error:
            warn(f"old checkpoint {path} could not be deleted ({error}); going on")


def _entries(directory: Path) -> list[Path]:
    try:
        return [entry for entry in directory.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error_number(error: Exception) -> int:
    """The errno of an OSError, or the one in the message of a safetensors error."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else errno.EIO
