"""Token ids that travel: a token store as compressed pieces with digests, and back to a store without the raw texts.

A piece holds whole documents: their lengths, source rows, classes and ids, little-endian, in one .xz file. Ids are
uint16, which `lp=1, pb=1` tells the compressor (2-byte alignment): about 1.05 bytes a token of English instead of 2.
`packed.json` names every piece of every store with its size and SHA-256. A folder may hold some of the pieces, so that
they can travel by several commands, each with a copy of `packed.json`.

A store whose pieces are all there is written with the bytes of the store that was packed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import side_by_side  # noqa: F401  (finds ulmfit where it is not installed)

from ulmfit.batches.cache import TokenStore, publish_entry
from ulmfit.batches.cache_writer import CacheWriter
from ulmfit.errors import UserError
from ulmfit.files import write_text

MANIFEST, TOKENIZER, FORMAT = "packed.json", "tokenizer.json", 1
FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}
MIB = 2**20


class Opened(NamedTuple):
    """A store and what it lacks: names of pieces that are nowhere or damaged."""

    store: TokenStore
    missing: list[str]


def pack(store: TokenStore, name: str, folder: Path, *, tokens: int) -> dict[str, Any]:
    """Write a store to `folder` in pieces of about so many tokens. Returns its entry of the manifest.

    Raises:
        UserError: the ids do not fit into 16 bits.
    """
    if store.dtype != np.dtype("<u2"):
        raise UserError(
            f"{store.vocab_size:,} words do not fit into 16 bits; give a vocabulary of 65,536 words or fewer"
        )
    number = max(1, round(store.num_tokens / tokens))
    ends = np.searchsorted(store.offsets, np.arange(1, number) * (store.num_tokens / number))
    cuts = np.unique([0, *ends, store.num_documents]).tolist()

    def write(part: int) -> dict[str, Any]:
        documents = np.arange(cuts[part], cuts[part + 1])
        ids, lengths = store.read(documents)
        columns = [lengths.astype("<i8"), store.rows[documents].astype("<i8")]
        if store.labels is not None:
            columns.append(store.labels[documents].astype("<i4"))
        content = b"".join(column.tobytes() for column in [*columns, ids.astype("<u2")])
        # The compressor takes ten times its dictionary of memory, so that is no larger than the piece.
        filters = [FILTER | {"dict_size": min(64 * MIB, max(4096, 1 << len(content).bit_length()))}]
        content = lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
        file = f"{name}-{part:02d}.xz"
        (folder / file).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return {"file": file, "bytes": len(content), "sha256": digest, "documents": len(lengths), "tokens": len(ids)}

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # xz releases the interpreter's lock
        pieces = list(threads.map(write, range(len(cuts) - 1)))
    return {
        "labels": store.labels is not None,
        "fingerprint": store.fingerprint,
        "skipped": store.skipped,
        "pieces": pieces,
    }


class Packed:
    """The pieces in some folders. Every folder has the same packed.json.

    Attributes:
        vocab_size: words of the tokenizer.
        tokenizer: its file.

    Raises:
        UserError: a folder has no manifest, or they differ.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        texts = {folder: _read(folder / MANIFEST) for folder in self.folders if folder.is_dir()}
        if not texts:
            raise UserError(f"{' and '.join(map(str, folders))}: no folder of pieces is there; copy it first")
        if len(set(texts.values())) > 1:
            raise UserError(f"{' and '.join(map(str, texts))} belong to two packings; copy the folders of one of them")
        try:
            self.manifest = json.loads(next(iter(texts.values())))
            self.vocab_size: int = self.manifest["vocab_size"]
            self.stores: dict[str, dict[str, Any]] = self.manifest["stores"]
            if self.manifest["format"] != FORMAT:
                raise ValueError(f"its format is {self.manifest['format']} and this program reads {FORMAT}")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{MANIFEST} in {self.folders[0]} cannot be read ({error}); copy it again") from None
        self.folders = list(texts)
        self.tokenizer = self.folders[0] / TOKENIZER

    def check(self) -> dict[str, str]:
        """By file: "whole", "damaged" or "nowhere", of every piece."""
        files = [piece for entry in self.stores.values() for piece in entry["pieces"]]
        return {piece["file"]: self._state(piece)[0] for piece in files}

    def _state(self, piece: dict[str, Any]) -> tuple[str, bytes]:
        found = "nowhere"
        for path in (folder / piece["file"] for folder in self.folders):
            if path.is_file():
                content = path.read_bytes()
                if len(content) == piece["bytes"] and hashlib.sha256(content).hexdigest() == piece["sha256"]:
                    return "whole", content
                found = "damaged"
        return found, b""

    def open(self, names: Sequence[str], target: Path, *, partly: bool = False) -> Opened:
        """Write the named stores, one after another, as one token store in `target`, and open it.

        Args:
            target: a store that was written there before is opened, if it has the same pieces.
            partly: leave out pieces that are not there, instead of raising.

        Raises:
            UserError: a piece is not there or does not match its digest; with `partly`, all of them.
        """
        entries = [self.stores[name] for name in names]
        pieces = [(entry, piece) for entry in entries for piece in entry["pieces"]]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = list(threads.map(lambda item: self._state(item[1]), pieces))
            missing = [piece["file"] for (_, piece), (state, _) in zip(pieces, found, strict=True) if state != "whole"]
            if missing and not (partly and len(missing) < len(pieces)):
                states = {piece["file"]: state for (_, piece), (state, _) in zip(pieces, found, strict=True)}
                raise UserError(
                    f"the piece {missing[0]} is {states[missing[0]]} ({len(missing)} of {len(pieces)} are not whole); copy it again"
                )
            there = [
                (entry, piece, content)
                for (entry, piece), (state, content) in zip(pieces, found, strict=True)
                if state == "whole"
            ]
            alone = len(names) == 1 and not missing
            labels = all(entry["labels"] for entry in entries)
            digests = " ".join(piece["sha256"] for _, piece, _ in there)
            fingerprint = entries[0]["fingerprint"] if alone else hashlib.sha256(digests.encode()).hexdigest()[:32]
            store = TokenStore.open_if_complete(target)
            if store is not None and store.fingerprint == fingerprint:
                return Opened(store, missing)
            shutil.rmtree(target, ignore_errors=True)
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = CacheWriter(partial, vocab_size=self.vocab_size, with_labels=labels)
            try:
                for (entry, piece, _), content in zip(
                    there, threads.map(lambda item: lzma.decompress(item[2]), there), strict=True
                ):
                    lengths, rows, classes, ids = _columns(content, piece, entry["labels"])
                    writer.add(ids, lengths, classes if labels else None, rows, after={})
                publish_entry(writer, target, fingerprint, entries[0]["skipped"] if alone else {})
            finally:
                writer.close()
        return Opened(TokenStore.open(target), missing)


def _columns(
    content: bytes, piece: dict[str, Any], labelled: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Lengths, rows, classes and ids of a piece."""
    number = piece["documents"]
    kinds = [("<i8", number), ("<i8", number), *([("<i4", number)] if labelled else []), ("<u2", piece["tokens"])]
    columns, at = [], 0
    for kind, count in kinds:
        columns.append(np.frombuffer(content, kind, count, at))
        at += columns[-1].nbytes
    assert at == len(content), f"{piece['file']} has another size than its manifest says"
    return columns[0], columns[1], columns[2] if labelled else None, columns[-1]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it with the pieces") from None


def split_file(path: Path, folder: Path, *, most: int) -> list[dict[str, Any]]:
    """Copy a file to `folder` in parts of at most so many bytes. Returns name, size and digest of each."""
    parts = []
    with open(path, "rb") as file:
        while content := file.read(most):
            name = f"{path.name}.{len(parts):02d}"
            (folder / name).write_bytes(content)
            parts.append({"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    write_text(folder / f"{path.name}.json", json.dumps({"parts": parts}, indent=1) + "\n")
    return parts


def join_file(listing: Path, target: Path) -> None:
    """Put together what `split_file` cut. `listing` is its .json; the parts lie beside it.

    Raises:
        UserError: a part is missing or does not match its digest.
    """
    with open(target, "wb") as file:
        for part in json.loads(_read(listing))["parts"]:
            path = listing.parent / part["file"]
            content = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != part["sha256"]:
                state = "does not match its digest" if path.is_file() else "is not there"
                target.unlink()
                raise UserError(f"the part {path} {state}; copy it again")
            file.write(content)
