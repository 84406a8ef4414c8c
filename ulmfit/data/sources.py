"""Finds and opens corpora: a file, a glob, a folder, a hub name or the embedded sample.

`find` turns the value of --data into named `Source`s. These values are possible:

* a file: .csv .tsv .jsonl (.json .ndjson) .parquet, or .txt (.tokens) with one document per line; all except .parquet
  also as .gz .xz .zst .bz2. Blank lines of .txt and .jsonl files are skipped;
* a glob or a folder of such files. Files whose names contain train, valid (validation, val, dev), test or unsup
  (unsupervised, unlabelled) between dots, dashes or underscores are these splits (wiki.train.tokens.xz). If no name
  does, all files together are the corpus. A folder of .txt files without such names has one document per file;
* a folder of the aclImdb layout: train/neg/*.txt, train/pos/*.txt, test/..., unsup/*.txt or train/unsup/*.txt. It has
  one document per file, the classes are the names of the folders, and the columns are `text` and `label`;
* data in memory (see `ulmfit.data.in_memory`);
* owner/name or owner/name:configuration: a data set of the Hugging Face hub (the only case that uses the network).
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ulmfit import private_api
from ulmfit.data import sample
from ulmfit.data.fingerprint import COMPRESSED, Access
from ulmfit.data.in_memory import SPLIT_NAMES, InMemory, refuse_description
from ulmfit.data.readers import Source, load, of_dataset, open_documents, open_files, open_sample
from ulmfit.errors import UserError

_KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl",
          ".parquet": "parquet", ".txt": "text", ".tokens": "text"}  # fmt: skip


def find(data: str | InMemory | None, access: Access | None = None) -> dict[str, Source]:
    """Sources by split name ("train", "valid", "test", "unsup" or a name of the hub's); None: the embedded sample.

    Data without splits give {"train": source}.

    Raises:
        UserError: the path does not exist or contains nothing readable.
    """
    access = access or Access()
    if data is None:
        return {split: open_sample(split) for split in sample.SPLITS}
    if isinstance(data, InMemory):
        return data.sources
    refuse_description(data)
    if os.path.isdir(data):
        found = _folder(Path(data), access)
        if found is None:
            raise UserError(
                f"folder {data} holds no .csv, .tsv, .jsonl, .parquet or .txt file and no folder of them; give one that does"
            )
        return found
    if os.path.exists(data):
        if _kind(data) is None:
            raise UserError(
                f"{data} is none of {' '.join(sorted(_KINDS))}, plain or {' '.join(COMPRESSED)}; convert it"
            )
        return {"train": open_files([data], str(_kind(data)), data, access)}
    if any(sign in data for sign in "*?["):
        matches = sorted(path for path in glob.glob(data, recursive=True) if os.path.isfile(path))
        if not matches:
            raise UserError(f"no file matches {data}; check the path")
        other = [path for path in matches if _kind(path) is None]
        if other:
            raise UserError(f"{data} matches {other[0]}, which is none of {' '.join(sorted(_KINDS))}; narrow the glob")
        return _by_name(matches, data, access)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", data) and _kind(data) is None:
        return _hub(data, access)
    raise UserError(f"no file or folder {data}{_nearest(data) or '; check the path'}")


# Files and folders


def _kind(path: str | Path) -> str | None:
    name = Path(path).name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return _KINDS.get(Path(name).suffix)


def _nearest(data: str) -> str:
    """For the message about a path that does not exist: the missing folder, or a similar name."""
    parent, name = os.path.split(data.rstrip("/"))
    if parent and not os.path.isdir(parent):
        return f" (the folder {parent} does not exist)"
    near = difflib.get_close_matches(name, os.listdir(parent or "."), n=1, cutoff=0.5)
    return f" (the nearest is {os.path.join(parent, near[0])})" if near else ""


def _split_of(path: str | Path) -> str | None:
    words = re.split(r"[^a-z]+", Path(path).name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _by_name(paths: list[str], what: str, access: Access) -> dict[str, Source]:
    """One source per split, by the names of the files. If they name at most one split, all files are one source."""
    kinds = sorted({str(_kind(path)) for path in paths})
    if len(kinds) > 1:
        raise UserError(f"{what} holds files of the kinds {' and '.join(kinds)}; give one file or a glob of one kind")
    (kind,) = kinds
    groups: dict[str | None, list[str]] = {}
    for path in paths:
        groups.setdefault(_split_of(path), []).append(path)
    if len(groups) == 1:
        return {"train": open_files(paths, kind, what, access)}
    if None in groups:
        raise UserError(
            f"{what} holds {groups[None][0]} beside files named by splits; "
            "rename it to train*, valid*, test* or unsup*, or give a glob that leaves it out"
        )
    return {
        str(split): open_files(group, kind, group[0] if len(group) == 1 else f"{what} ({split})", access)
        for split, group in groups.items()
    }


def _folder(folder: Path, access: Access) -> dict[str, Source] | None:
    """The sources of a folder; None if it has no readable files."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    folders = [path for path in inside if path.is_dir()]
    files = [str(path) for path in inside if path.is_file() and _kind(path)]
    tables = [path for path in files if _kind(path) != "text"]
    named = [path for path in folders if path.name.lower() in SPLIT_NAMES]
    split_folders = [path for path in named if SPLIT_NAMES[path.name.lower()] != "unsup"]
    if split_folders and not tables:
        found: dict[str, Source] = {}
        for path in named:
            for split, source in (_folder(path, access) or {}).items():
                name = SPLIT_NAMES[path.name.lower()] if split == "train" else split
                if name in found:
                    raise UserError(f"folder {folder} holds the split {name} twice; rename one of them")
                found[name] = source
        return found or None
    if tables:
        return _by_name(tables, str(folder), access)
    if files and all(_split_of(path) for path in files):
        return _by_name(files, str(folder), access)
    return _documents(folder, folders, files, access)


def _documents(folder: Path, folders: list[Path], files: list[str], access: Access) -> dict[str, Source] | None:
    """Sources with one document per file. Each folder is a class; files directly in the folder have no classes."""
    classes = {path.name: sorted(str(file) for file in path.iterdir() if _kind(file) == "text") for path in folders}
    classes = {name: paths for name, paths in classes.items() if paths}
    unlabelled = [path for name in classes if SPLIT_NAMES.get(name.lower()) == "unsup" for path in classes[name]]
    labelled = {name: paths for name, paths in classes.items() if SPLIT_NAMES.get(name.lower()) != "unsup"}
    found = {}
    if labelled:
        pairs = [(path, name) for name, paths in labelled.items() for path in paths]
        found["train"] = open_documents([path for path, _ in pairs], [name for _, name in pairs], str(folder), access)
    elif files:
        found["train"] = open_documents(files, None, str(folder), access)
    if unlabelled:
        found["unsup"] = open_documents(unlabelled, None, f"{folder} (unsup)", access)
    return found or None


def _hub(data: str, access: Access) -> dict[str, Source]:
    """A data set of the hub at one revision. Read from the cache if offline or if the hub is silent for seconds.

    The revision is that of `access`, else the newest.

    Raises:
        UserError: neither the hub nor the cache has it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, configuration = data.partition(":")
    revision, offline = access.revision, bool(constants.HF_HUB_OFFLINE)
    try:
        if not offline:
            revision = str(HfApi().dataset_info(name, revision=revision, timeout=5).sha)
    except RevisionNotFoundError:
        raise UserError(f"the hub no longer holds the revision {revision} of {data}, with which this run began; "
                        "start afresh with --resume never") from None  # fmt: skip
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 404)
        if status < 500:
            cure = "log in with `hf auth login` and accept its terms" if status == 403 else "check the name"
            raise UserError(f"{data} is no file or folder{_nearest(data)}, and the hub gives no data set of that name; "
                            f"{cure}") from None  # fmt: skip
        offline = True  # the hub is down
    except Exception:  # no route, no name server, a refusing proxy etc.: the hub cannot be reached
        offline = True
    try:
        if offline:
            loaded, revision = _from_cache(data, revision, access.streaming)
        else:
            loaded = load(name, configuration or None, revision=revision, streaming=access.streaming)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the hub's data set {data} cannot be read ({str(error).strip().splitlines()[0]}); check its page"
        ) from error
    found = {}
    for split, dataset in loaded.items():
        key = f"{name} {configuration} {revision} {split}"
        source = of_dataset(dataset, f"{data} ({split})", hashlib.sha256(key.encode()).hexdigest()[:16], [], [], access)
        source.revision = revision
        found[SPLIT_NAMES.get(str(split), str(split))] = source
    return found


def _from_cache(data: str, revision: str | None, streaming: bool) -> tuple[Any, str]:
    """(splits, revision) of a hub data set in the Arrow cache: the given revision, or if None, the last one stored.

    `datasets` itself would always take the last one stored, even if another revision is requested.
    """
    name, _, configuration = data.partition(":")
    owner, _, base = name.rpartition("/")
    folder = private_api.arrow_cache(owner, base)
    entries = [file.parent for file in folder.glob(f"{configuration or '*'}/*/{revision or '*'}/dataset_info.json")]
    if not entries:
        if revision is not None:
            raise UserError(f"the hub cannot be reached, and the local cache does not hold the revision {revision} of "
                            f"{data}, with which this run began; go on line")  # fmt: skip
        raise UserError(f"{data} is no file or folder{_nearest(data)}, and the hub cannot be reached to look for a "
                        "data set of that name; check the path, or go on line")  # fmt: skip
    names = sorted({entry.parts[-3] for entry in entries})
    if len(names) > 1:
        raise UserError(f"the local cache holds the configurations {', '.join(names)} of {data}; "
                        f"name one of them, as in {data}:{names[0]}")  # fmt: skip
    newest = max(entries, key=lambda entry: entry.stat().st_mtime)
    builder = private_api.cached_builder(owner, base, newest)
    return builder.as_streaming_dataset() if streaming else builder.as_dataset(), newest.name
