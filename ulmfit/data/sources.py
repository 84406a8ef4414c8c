"""Finds and opens corpora: a file, a glob, a folder, a hub name or the embedded sample.

`find` turns the value of --data into named `Source`s. These values are possible:

* a file: .csv .tsv .jsonl (.json .ndjson) .parquet, or .txt (.tokens) with one document per line; all except .parquet
  also as .gz .xz .zst .bz2. Blank lines of .jsonl files are no rows;
* a glob or a folder of such files. Files whose names contain train, valid (validation, val, dev), test or unsup
  (unsupervised, unlabelled) between dots, dashes or underscores are these splits (wiki.train.tokens.xz). If no name
  does, all files together are the corpus. A folder of .txt files without such names has one document per file;
* a folder of the aclImdb layout: train/neg/*.txt, train/pos/*.txt, test/..., unsup/*.txt or train/unsup/*.txt. It has
  one document per file, also in folders below a class. The classes are the names of the folders, and the columns are
  `text` and `label`. What is left out of a folder, and how folders are told apart, is described in `folders`;
* a URL that fsspec opens, such as s3://bucket/reviews.csv: a file, a glob, or the files directly in a folder;
* for the training of a language model, several of these with weights (see `mixture_options`);
* data in memory (see `ulmfit.data.in_memory`);
* owner/name or owner/name:configuration: a data set of the Hugging Face hub (the only case that uses the network).
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit import private_api
from ulmfit.data import sample
from ulmfit.data.fingerprint import COMPRESSED, Access
from ulmfit.data.folders import KINDS, Folder, LeftOut, class_name, divide, kind_of, scan, split_of, suffixes
from ulmfit.data.hub_sets import load, of_dataset
from ulmfit.data.in_memory import SPLIT_NAMES, InMemory, refuse_description
from ulmfit.data.locations import files_at, is_url
from ulmfit.data.magic import HEAD, refuse_binary
from ulmfit.data.mixture_options import is_mixture
from ulmfit.data.readers import open_documents, open_files, open_sample
from ulmfit.data.source import Source
from ulmfit.errors import UserError
from ulmfit.excerpts import listed


def find(data: str | InMemory | Source | None, access: Access | None = None) -> dict[str, Source]:
    """Sources by split name ("train", "valid", "test", "unsup" or a name of the hub's); None: the embedded sample.

    A source is one already, as that of standard input.

    Data without splits give {"train": source}.

    Raises:
        UserError: the path does not exist or contains nothing readable.
    """
    access = access or Access()
    if data is None:
        return {split: open_sample(split) for split in sample.SPLITS}
    if isinstance(data, InMemory):
        return data.sources
    if isinstance(data, Source):
        return {"train": data}
    refuse_description(data)
    if is_mixture(data):
        raise UserError(
            f"{data} names several sources, which only the training of a language model mixes; give one of them"
        )
    if is_url(data):
        return _remote(data, access)
    if os.path.isdir(data):
        return _folder_sources(data, access)
    if os.path.exists(data):
        if not os.path.isfile(data):
            raise UserError(f"{data} is a pipe, socket or device and cannot be read twice; give a file")
        if kind_of(data) is None:
            with open(data, "rb") as file:
                refuse_binary(data, file.read(HEAD))
            raise UserError(f"{data} is none of {' '.join(sorted(KINDS))}, plain or {' '.join(COMPRESSED)}; convert it, or "
                            "rename it to .txt if each line is a text")  # fmt: skip
        return {"train": open_files([data], str(kind_of(data)), data, access)}
    if any(sign in data for sign in "*?["):
        left_out = LeftOut(data)
        matches = [path for path in sorted(glob.glob(data, recursive=True)) if not os.path.isdir(path)]
        matches = [path for path in matches if not left_out.is_leftover(path)]
        files = [path for path in matches if os.path.isfile(path)]
        if no_files := [path for path in matches if path not in set(files)]:
            left_out.add("dangling links, pipes, sockets and devices", *no_files)
        if not files:
            raise UserError(f"no file matches {data}; check the path")
        other = [path for path in files if kind_of(path) is None]
        if other:
            raise UserError(f"{data} matches {other[0]}, which is none of {' '.join(sorted(KINDS))}; narrow the glob")
        return _with_notes(_by_name(files, data, access), left_out)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", data) and kind_of(data) is None:
        return _hub(data, access)
    raise UserError(f"no file or folder {data}{_nearest(data) or '; check the path'}")


def by_file(source: Source, access: Access) -> list[Source]:
    """A source of each file. A folder of documents, a single file and rows that are in no files stay one source."""
    if source.documents or len(source.files) < 2:
        return [source]
    if not source.header:
        access = replace(access, header=False)  # a file of one line would be taken for the names of its columns
    files = [open_files([path], str(kind_of(path)), path, access) for path in source.files]
    files[0].notes = source.notes
    return files


def unread_beside(data: Any, valid: str | None) -> list[str]:
    """A sentence about files of other splits that lie beside a file train.* and are not read; none if there are none.

    Args:
        data, valid: the values of the options.
    """
    if not isinstance(data, str) or _split_of(data) != "train" or not os.path.isfile(data):
        return []
    folder = os.path.dirname(data) or "."
    try:
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except OSError:  # a folder may be searched and not listed
        return []
    used = valid is not None and os.path.abspath(valid)
    others = [
        os.path.basename(path)
        for path in paths
        if kind_of(path) and _split_of(path) not in (None, "train") and os.path.abspath(path) != used
    ]
    if not others:
        return []
    return [f"not read: {listed(others)} beside {data}; to use them, give the folder as --data"]


# Files and folders


def _remote(url: str, access: Access) -> dict[str, Source]:
    """The sources of a file, a glob or a flat folder of files in an object store."""
    found = files_at(url)
    files = [path for path in found if kind_of(path) is not None]
    if not files:
        raise UserError(f"{url} is none of {' '.join(sorted(KINDS))}, plain or {' '.join(COMPRESSED)}; convert it")
    if len(files) > 1 and kind_of(files[0]) == "text" and not all(map(_split_of, files)):
        raise UserError(
            f"{url} holds several .txt files, which may be documents or lines of texts; copy them to a folder"
        )
    sources = _by_name(files, url, access)
    others = len(found) - len(files)
    if others:
        for source in sources.values():
            source.notes.append(f"left out of {url}: {others:,} files of other kinds")
    return sources


def _nearest(data: str) -> str:
    """For the message about a path that does not exist: the missing folder, or a similar name."""
    parent, name = os.path.split(data.rstrip("/"))
    if parent and not os.path.isdir(parent):
        return f" (the folder {parent} does not exist)"
    near = difflib.get_close_matches(name, os.listdir(parent or "."), n=1, cutoff=0.7)
    return f" (the nearest is {os.path.join(parent, near[0])})" if near else ""


def _split_of(path: str | Path) -> str | None:
    """The split that a file's name has as a word, or in one such as trainData or testset."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", Path(path).name)
    words = [re.sub(r"(?<=.)(set|data)$", "", word) for word in re.split(r"[^a-z]+", apart.lower())]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _by_name(paths: list[str], what: str, access: Access) -> dict[str, Source]:
    """One source per split, by the names of the files. If they name at most one split, all files are one source."""
    kinds = sorted({str(kind_of(path)) for path in paths})
    if len(kinds) > 1:
        raise UserError(f"{what} holds files of the kinds {' and '.join(kinds)}; give one file or a glob of one kind")
    (kind,) = kinds
    if kind == "text":
        _refuse_label_files(paths, what)
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


def _refuse_label_files(paths: list[str], what: str) -> None:
    """Raise UserError if lines of labels stand in files beside those of the texts, as train_text.txt, train_labels.txt."""
    labels = [path for path in paths if {"label", "labels"} & set(re.split(r"[^a-z]+", Path(path).name.lower()))]
    if labels and len(labels) < len(paths):
        raise UserError(f"{what} holds {labels[0]}, which by its name has the labels of the texts in another file; write both "
                        "into a table with the columns text and label, or give the files of texts alone")  # fmt: skip


def _with_notes(found: dict[str, Source], left_out: LeftOut) -> dict[str, Source]:
    for source in found.values():  # any of them may be the only one that is used
        source.notes += left_out.notes()
    return found


def _folder_sources(data: str, access: Access) -> dict[str, Source]:
    left_out = LeftOut(data, data)
    tree = _unwrapped(scan(data, left_out), left_out)
    found = _folder(tree, left_out, access)
    if not found:
        other = suffixes(tree)
        raise UserError(
            f"folder {data} holds no .csv, .tsv, .jsonl, .parquet or .txt file and no folder of them"
            + (f", but {other}; convert them or give another folder" if other else "; give one that does")
        )
    return _with_notes(found, left_out)


def _unwrapped(tree: Folder, left_out: LeftOut) -> Folder:
    """The only folder in a folder if it is a corpus with splits or tables, as an archive may be unpacked; else the folder."""
    full = [folder for folder in tree.folders if folder.is_read() or any(inside.is_read() for inside in folder.folders)]
    if tree.texts or tree.tables or len(full) != 1 or split_of(full[0].name):
        return tree
    only = full[0]
    parts = [split_of(inside.name) for inside in only.folders if inside.is_read()]
    if not only.tables and "train" not in parts:
        return tree
    left_out.remarks.append(f"{tree.path}: read from its only folder {only.name}")
    left_out.add("files beside it", *tree.others, *tree.plain)
    return _unwrapped(only, left_out)


def _folder(folder: Folder, left_out: LeftOut, access: Access) -> dict[str, Source]:
    """The sources of a folder; empty if it has no readable files."""
    if folder.tables:
        left_out.add("files beside the tables", *folder.texts, *folder.others, *folder.plain)
        left_out.add("folders beside the tables", *(inside.path for inside in folder.folders))
        return _by_name(folder.tables, folder.path, access)
    named = {_split_of(path): path for path in folder.texts}
    if None in named and len(named) > 2 and not folder.folders:
        other = named.pop(None)
        raise UserError(f"{folder.path} holds {other} beside {', '.join(map(os.path.basename, named.values()))}, which are "
                        "named like splits; move it away, or rename those if each file is a document")  # fmt: skip
    if folder.texts and None not in named:
        left_out.add("files of other kinds", *folder.others, *folder.plain)
        left_out.add("folders beside the files", *(inside.path for inside in folder.folders))
        return _by_name(folder.texts, folder.path, access)
    splits, classes = divide(folder, left_out)
    if not splits:
        return _documents(folder, classes, left_out, access)
    left_out.add("files beside the splits", *folder.texts, *folder.others, *folder.plain)
    found = _documents(folder, classes, left_out, access) if classes else {}
    for path in splits:
        for split, source in _folder(path, left_out, access).items():
            name = str(split_of(path.name)) if split == "train" else split
            if name in found:
                raise UserError(f"folder {folder.path} holds the split {name} twice; rename one of them")
            found[name] = source
    return found


def _documents(folder: Folder, classes: list[Folder], left_out: LeftOut, access: Access) -> dict[str, Source]:
    """Sources with one document per file, also in folders below. Each of `classes` is a class but unsup.

    Without classes, the files directly in the folder are documents without labels.
    """
    within = [below for inside in classes for below in inside.walk()]
    left_out.add("files of other kinds", *(path for at in within for path in (*at.tables, *at.others, *at.plain)))
    left_out.add("files of other kinds", *folder.others, *folder.plain)
    found = {}
    labelled = [inside for inside in classes if split_of(inside.name) != "unsup"]
    unlabelled = sorted(path for inside in classes if inside not in labelled for path in inside.documents())
    if labelled:
        left_out.add("files beside the class folders", *folder.texts)
        pairs = [(path, name) for inside in labelled for name in [class_name(inside)] for path in inside.documents()]
        if pairs:
            paths, names = [path for path, _ in pairs], [name for _, name in pairs]
            found["train"] = open_documents(paths, names, folder.path, access)
    elif folder.texts:
        found["train"] = open_documents(folder.texts, None, folder.path, access)
    if unlabelled:
        found["unsup"] = open_documents(unlabelled, None, f"{folder.path} (unsup)", access)
    return found


def _hub(data: str, access: Access) -> dict[str, Source]:
    """A data set of the hub at one revision. Read from the cache if offline or if the hub is silent for seconds.

    The revision is that of `access`, else the newest.

    Raises:
        UserError: neither the hub nor the cache has it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, configuration = data.partition(":")
    revision = access.revision if isinstance(access.revision, str) else None
    offline = bool(constants.HF_HUB_OFFLINE)
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
