"""A token cache that several processes build together has the bytes of one that a single process builds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ulmfit.batches import cache, cache_writer, shared_build
from ulmfit.batches.cache import build_or_open
from ulmfit.batches.shared_build import build_together
from ulmfit.data.corpus import open_corpus
from ulmfit.errors import UserError

FILES, ROWS = 6, 40


class Words:
    """A tokenizer of made-up ids; counts the texts of this process."""

    fingerprint = "words"

    def __init__(self) -> None:
        self.texts = 0

    def __len__(self) -> int:
        return 50_000

    def encode_flat(self, texts: list[str]):
        import numpy as np

        self.texts += len(texts)
        ids = [np.array([hash_of(word) for word in text.split()], dtype=np.int32) for text in texts]
        return np.concatenate([*ids, np.empty(0, np.int32)]), np.array([len(part) for part in ids], dtype=np.int64)


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode()[-4:], "little") % 50_000


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Files of a few rows: each has an empty text, the third nothing else; small shards, so that shares end in one."""
    for number in range(FILES):
        rows = [
            {
                "text": "" if number == 2 or row == 7 else f"row {row} of {number} " + "x y " * row,
                "label": f"c{row % 3}",
            }
            for row in range(ROWS if number != 2 else 2)
        ]
        (tmp_path / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(shared_build, "SHARE_BYTES", 1)
    monkeypatch.setattr(shared_build, "POLL", 0.01)
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", 1000)
    monkeypatch.setattr(shared_build, "JOINED", 9)
    return lambda: open_corpus(str(tmp_path / "part-*.jsonl"), task="clf", valid=0.1).splits["train"]


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def together(split, folder: Path, builders: int = 2, **more):
    return build_together(split, Words(), folder, with_labels=True, builders=builders, **more)


@pytest.fixture
def whole(corpus, tmp_path):
    split = corpus()
    return content(build_or_open(split, Words(), tmp_path / "whole", with_labels=True).path), split


@pytest.mark.parametrize("share_bytes", [1, 5000, 10**9])
def test_the_shares_joined_have_the_bytes_of_one_pass(share_bytes, corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_build, "SHARE_BYTES", share_bytes)
    split, seen = corpus(), []
    assert len(split.shares(share_bytes, 1024)) == {1: FILES, 5000: 3, 10**9: 1}[share_bytes]
    store = together(split, tmp_path / "cache", progress=lambda batch: seen.append(batch.after["row"]))
    assert content(store.path) == whole[0] and len(json.loads(whole[0]["manifest.json"])["shards"]) > 5
    assert (split.skipped, split.num_rows) == (whole[1].skipped, whole[1].num_rows)
    assert seen == sorted(seen) and seen[-1] > 150
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {store.path.name, f"{store.path.name}.lock"}


def test_shares_are_those_of_the_corpus_alone(corpus, tmp_path):
    split = corpus()
    total = sum((tmp_path / f"part-{number}.jsonl").stat().st_size for number in range(FILES))
    shares = split.shares(1, 3)
    assert 2 <= len(shares) <= 3 and shares[-1].until == (1, 0)
    for before, after in zip(shares, shares[1:], strict=False):
        assert before.until == (after.start["part"], after.start["place"][0])
    assert len(split.shares(total, 100)) == 1
    assert open_corpus(None, task="clf").splits["train"].shares(1, 100) == []


def build(corpus, folder: Path, log: Path, die_after: int | None, all_at_work=None) -> None:
    """A builder; killed after so many batches. Each one with the same barrier waits until all have taken a share."""
    cache.SAVE_SECONDS, waited = 0, False

    def count(batch) -> None:
        nonlocal waited
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        if die_after is not None and log.read_text().count("\n") >= die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if all_at_work is not None and not waited:
            waited = True
            all_at_work.wait(60)

    split, batches = corpus(), type(corpus()).batches
    split.batches = lambda start=None, until=None: batches(split, 5, start, until)
    together(split, folder, progress=count)


def test_several_builders_share_the_work_and_one_that_is_killed_is_replaced(corpus, whole, tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    victim = context.Process(target=build, args=(corpus, folder, log, 12))
    victim.start()
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert list(folder.glob("*.share-00001.partial")) and list(folder.glob("*.share-00000"))
    at_work = context.Barrier(3)
    builders = [context.Process(target=build, args=(corpus, folder, log, None, at_work)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    (entry,) = (path for path in folder.iterdir() if path.is_dir())
    assert content(entry) == whole[0]
    workers = log.read_text().split()
    assert len(set(workers)) >= 3, "the killed one and at least two others"
    assert len(workers) <= 41 + 1 + cache.ENCODERS + 2, "what the killed one had done was not done again"


def test_a_process_alone_goes_on_with_the_shares_of_several(corpus, whole, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared_build, "_join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            together(corpus(), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.share-?????"))) == FILES
    tokenizer = Words()
    store = build_together(corpus(), tokenizer, tmp_path / "cache", with_labels=True, builders=1)
    assert content(store.path) == whole[0] and tokenizer.texts == 0


def tear(monkeypatch, folder: Path, corpus) -> list:
    """Join shares up to the fifth piece; returns where it began."""
    pieces, given = shared_build._pieces, []

    def torn(shares, after):
        given.append(after)
        for number, piece in enumerate(pieces(shares, after)):
            if number == 5:
                raise KeyboardInterrupt
            yield piece

    with monkeypatch.context() as patch:
        patch.setattr(shared_build, "_pieces", torn)
        with pytest.raises(KeyboardInterrupt):
            together(corpus(), folder)
    return given


def test_a_killed_joining_goes_on(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SAVE_SECONDS", 0)
    places = [tear(monkeypatch, tmp_path / "cache", corpus)[0] for _ in range(3)]
    assert places[0] is None and places[1]["share"] < places[2]["share"]
    assert content(together(corpus(), tmp_path / "cache").path) == whole[0]


def test_a_joining_is_not_gone_on_with_as_a_build_in_one(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SAVE_SECONDS", 0)
    tear(monkeypatch, tmp_path / "cache", corpus)
    assert content(build_or_open(corpus(), Words(), tmp_path / "cache", with_labels=True).path) == whole[0]


def test_a_build_in_one_is_not_gone_on_with_as_a_joining(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SAVE_SECONDS", 0)

    def die(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_open(corpus(), Words(), tmp_path / "cache", with_labels=True, progress=die)
    assert list((tmp_path / "cache").glob("*.partial/progress.json"))
    assert content(together(corpus(), tmp_path / "cache").path) == whole[0]


def test_a_damaged_share_is_told_and_built_anew(corpus, whole, tmp_path, monkeypatch):
    join = shared_build._join

    def damaged(split, path, key, folders, **options):
        (folders[1] / "lengths.bin").write_bytes(b"x" * (folders[1] / "lengths.bin").stat().st_size)
        join(split, path, key, folders, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shared_build, "_join", damaged)
        with pytest.raises(UserError, match=r"share-00001, is damaged .*; start the same command again"):
            together(corpus(), tmp_path / "cache")
    assert content(together(corpus(), tmp_path / "cache").path) == whole[0]


def test_a_mistake_in_one_share_leaves_none_of_it(corpus, tmp_path):
    split = corpus()
    split.label_names = ["c0", "c1"]
    with pytest.raises(UserError, match="label .c2. in the train rows"):
        together(split, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.share-?????")) and not list((tmp_path / "cache").glob("*.partial"))
