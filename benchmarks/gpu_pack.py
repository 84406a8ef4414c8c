"""Packs token ids for a rented GPU machine with slow uploads, checks them, and puts together what came back.

    python benchmarks/gpu_pack.py make --wikipedia "FOLDER/*.parquet" --imdb FOLDER --output packed
    python benchmarks/gpu_pack.py check packed/probe packed/reproduction
    python benchmarks/gpu_pack.py join results/model.tar.json --output runs/from_gpu

`make` tokenises both corpora with one vocabulary (trained on Wikipedia and on IMDb's training and unlabelled reviews;
the test reviews are not among them) and writes two folders, one for each command of the plan in gpu_plan.md: the
reproduction's has all of IMDb and as much of Wikipedia as still fits into --room, the probe's more of Wikipedia. IMDb's
FOLDER has train, test and unsup, as `--data` takes them. Slow: xz takes about 1.5 s a million tokens on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import packed
from packed import MIB

from ulmfit.batches.cache import TokenStore, build_or_open
from ulmfit.cache_folder import cache_folder
from ulmfit.data.corpus import open_corpus
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find
from ulmfit.data.splits import Split, TextBatch
from ulmfit.errors import UserError
from ulmfit.tokenizer.tokenizer import Tokenizer


class EveryNth(Split):
    """Every `every`-th row of a split, for a rehearsal."""

    every = 1

    @property
    def fingerprint(self) -> str:
        return super().fingerprint + (f"/{self.every}" if self.every > 1 else "")

    def batches(self, batch_size=1000, start=None, until=None):
        for batch in super().batches(batch_size, start, until):
            kept = [place for place, row in enumerate(batch.rows) if row % self.every == 0]
            if kept:
                chosen = [None if part is None else [part[place] for place in kept] for part in batch[:3]]
                yield TextBatch(*chosen, batch.after)


def splits(options: argparse.Namespace) -> dict[str, Split]:
    """The texts by store: wikipedia, unsup, train and test."""
    access = Access(cache_dir=cache_folder(options.cache_dir))
    corpus = open_corpus(options.imdb, task="clf", access=access)
    imdb, wikipedia = find(options.imdb, access), find(options.wikipedia, access)
    labels = {"label_column": corpus.label_column, "label_names": corpus.label_names}
    found = {
        "wikipedia": EveryNth("train", [wikipedia["train"]], ["text"]),
        "unsup": EveryNth("unsup", [imdb["unsup"]], corpus.text_columns),
        "train": EveryNth("train", [imdb["train"]], corpus.text_columns, **labels),
        "test": EveryNth("test", [imdb["test"]], corpus.text_columns, **labels),
    }
    for split in found.values():
        split.every = options.every
    return found


def tokenizer_for(options: argparse.Namespace, texts: dict[str, Split]) -> Tokenizer:
    """The one given, or one trained on all texts but those of the test."""
    if options.tokenizer:
        return Tokenizer.from_file(options.tokenizer)

    def all_texts() -> Iterator[str]:
        for name in ("wikipedia", "unsup", "train"):
            for batch in texts[name].batches():
                yield from batch.texts

    return Tokenizer.train(all_texts(), vocab_size=options.vocab_size, min_freq=options.min_freq)


def deal(stores: dict[str, dict], room: int) -> dict[str, list[str]]:
    """Which files travel with which command: all of IMDb with the reproduction, Wikipedia wherever there is room.

    The first pieces of Wikipedia go with the reproduction, which needs some if the machine of the probe is gone.

    Raises:
        UserError: IMDb alone does not fit.
    """
    imdb = [piece for name, entry in stores.items() if name != "wikipedia" for piece in entry["pieces"]]
    left = {"reproduction": room - sum(piece["bytes"] for piece in imdb), "probe": room}
    if left["reproduction"] < 0:
        raise UserError(f"IMDb takes {(room - left['reproduction']) / MIB:.1f} MiB; give --room that much")
    dealt = {"reproduction": [piece["file"] for piece in imdb], "probe": [], "left here": []}
    command = "reproduction"
    for piece in stores["wikipedia"]["pieces"]:
        if command == "reproduction" and piece["bytes"] > left[command]:
            command = "probe"
        if command == "probe" and piece["bytes"] > left[command]:
            dealt["left here"].append(piece["file"])
            continue
        left[command] -= piece["bytes"]
        dealt[command].append(piece["file"])
    return dealt


def make(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.exists():
        raise UserError(f"{output} exists; name a new folder")
    texts = splits(options)
    tokenizer = tokenizer_for(options, texts)
    aside = output.with_name(output.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    stores = {}
    for name, split in texts.items():
        labelled = split.label_column is not None
        store: TokenStore = build_or_open(split, tokenizer, cache_folder(options.cache_dir), with_labels=labelled)
        stores[name] = entry = packed.pack(store, name, aside, tokens=options.tokens)
        size = sum(piece["bytes"] for piece in entry["pieces"])
        print(
            f"{name}: {store.num_documents:,} documents, {store.num_tokens:,} tokens, {len(entry['pieces'])} pieces, "
            f"{size / MIB:.1f} MiB, {size / store.num_tokens:.2f} bytes a token",
            flush=True,
        )
    dealt = deal(stores, int(options.room * MIB))
    manifest = {"format": packed.FORMAT, "vocab_size": len(tokenizer), "tokenizer": tokenizer.fingerprint}
    manifest |= {"commands": dealt, "stores": stores}
    for command, files in dealt.items():
        folder = aside / command.replace(" ", "_")
        folder.mkdir()
        (folder / packed.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        tokenizer.save(folder / packed.TOKENIZER)
        for file in files:
            (aside / file).rename(folder / file)
        print(f"{folder.name}: {len(files)} pieces, {sum(f.stat().st_size for f in folder.iterdir()) / MIB:.1f} MiB")
    aside.rename(output)


def check(options: argparse.Namespace) -> None:
    states = packed.Packed([Path(folder) for folder in options.folders]).check()
    for file, state in states.items():
        print(f"{state:8} {file}")
    if "damaged" in states.values():
        raise UserError("a piece does not match its digest; copy it again")


def join(options: argparse.Namespace) -> None:
    output = Path(options.output)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "model.tar")
        packed.join_file(Path(options.listing), whole)
        with tarfile.open(whole) as archive:
            archive.extractall(output, filter="data")
    print(f"{output} holds the model: ulmfit predict --model {output} TEXT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    maker = commands.add_parser("make", help="tokenise and pack")
    maker.add_argument("--wikipedia", required=True, help="texts for pretraining, as --data takes them")
    maker.add_argument("--imdb", required=True, help="a folder with train, test and unsup")
    maker.add_argument("--output", required=True, help="a new folder")
    maker.add_argument("--tokenizer", help="a tokenizer.json (default: trained on these texts)")
    maker.add_argument("--vocab-size", type=int, default=60_000)
    maker.add_argument("--min-freq", type=int, default=2)
    maker.add_argument("--tokens", type=int, default=4_300_000, help="of a piece, about (default: 4.3 million)")
    maker.add_argument("--room", type=float, default=46, help="MiB of pieces that a command can carry (default: 46)")
    maker.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th document, for a rehearsal")
    maker.add_argument("--cache-dir", help="of token stores (default: ulmfit's)")
    maker.set_defaults(work=make)
    checker = commands.add_parser("check", help="compare pieces with their digests")
    checker.add_argument("folders", nargs="+")
    checker.set_defaults(work=check)
    joiner = commands.add_parser("join", help="the parts of a model into a model")
    joiner.add_argument("listing", help="the .json beside the parts")
    joiner.add_argument("--output", required=True)
    joiner.set_defaults(work=join)
    options = parser.parse_args()
    try:
        options.work(options)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
