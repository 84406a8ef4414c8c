from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch

from tests.training import runs
from ulmfit.batches import cache, cache_writer
from ulmfit.batches.cache import TokenStore, build_or_open
from ulmfit.batches.lm import CachedRows, StreamedRows
from ulmfit.errors import UserError


@pytest.mark.parametrize("shard_bytes", [cache_writer.SHARD_BYTES, 64, 2])
@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_what_is_read_back_is_what_was_written(tmp_path, fakes, monkeypatch, shard_bytes, vocab_size, dtype):
    make_tokenizer, make_split, make_documents = fakes
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", max(shard_bytes, np.dtype(dtype).itemsize))
    documents = make_documents(40, longest=60)
    split = make_split(documents, labels=[n % 3 for n in range(40)])
    split.skipped["empty"] = 2
    store = build_or_open(split, make_tokenizer(vocab_size), tmp_path, with_labels=True)

    assert (len(list(store.path.glob("tokens-*.bin"))) > 5) == (shard_bytes <= 64)
    assert store.num_documents == len(store) == 40 and store.vocab_size == vocab_size
    assert store.num_tokens == sum(map(len, documents))
    assert store.lengths.tolist() == [len(document) for document in documents]
    assert store.offsets.tolist() == [0, *np.cumsum(store.lengths)]
    assert store.labels.tolist() == split.labels and store.labels.dtype == np.int32
    assert store.rows.tolist() == list(range(0, 80, 2))
    assert store.skipped == {"empty": 2}
    for index, document in enumerate(documents):
        assert store.document(index).tolist() == document and store.document(index).dtype == dtype
    chosen = [7, 39, 0, 7, 20]
    ids, lengths = store.read(chosen)
    assert ids.tolist() == sum((documents[n] for n in chosen), []) and ids.dtype == dtype
    assert lengths.tolist() == [len(documents[n]) for n in chosen]
    assert store.read([])[0].tolist() == []
    starts, pieces = store.offsets[[3, 30]] + [0, 1], np.array([1, len(documents[30]) - 1])
    assert store.gather(starts, pieces).tolist() == documents[3][:1] + documents[30][1:]


def test_documents_without_tokens_and_labels(tmp_path, fakes):
    make_tokenizer, make_split, _ = fakes
    documents = [[], [1, 2], [], [3], []]
    store = build_or_open(make_split(documents), make_tokenizer(), tmp_path, with_labels=False)
    assert [store.document(n).tolist() for n in range(5)] == documents
    assert store.read([4, 1, 0, 3])[0].tolist() == [1, 2, 3]
    assert store.labels is None


def test_progress_is_told_of_every_batch(tmp_path, fakes):
    make_tokenizer, make_split, make_documents = fakes
    documents, seen = make_documents(7), []
    build_or_open(make_split(documents), make_tokenizer(), tmp_path, with_labels=False, progress=seen.append)
    assert [batch.after for batch in seen] == [3, 6, 7]


def test_a_cache_is_keyed_by_corpus_tokenizer_and_labels(tmp_path, fakes):
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(9), labels=[0] * 9)
    first = build_or_open(split, make_tokenizer(), tmp_path, with_labels=True)
    assert (split.passes, split.checks) == (1, 1)
    again = build_or_open(split, make_tokenizer(), tmp_path, with_labels=True)
    assert split.passes == 1 and again.fingerprint == first.fingerprint
    others = [
        build_or_open(split, make_tokenizer(), tmp_path, with_labels=False),
        build_or_open(split, make_tokenizer(2000), tmp_path, with_labels=True),
        build_or_open(make_split(make_documents(8), [0] * 8), make_tokenizer(), tmp_path, with_labels=True),
    ]
    assert len({store.fingerprint for store in [first, *others]}) == 4
    assert TokenStore.open(first.path).num_tokens == first.num_tokens


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "short shard", "no offsets", "old format"])
def test_a_damaged_entry_is_refused_and_built_again(tmp_path, fakes, damage):
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(9))
    path = build_or_open(split, make_tokenizer(), tmp_path, with_labels=False).path
    manifest = path / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "short shard":
        shard = path / "tokens-00000.bin"
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "no offsets":
        (path / "offsets.bin").unlink()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(UserError, match="no complete token cache"):
        TokenStore.open(path)
    store = build_or_open(split, make_tokenizer(), tmp_path, with_labels=False)
    assert split.passes == 2
    assert [store.document(n).tolist() for n in range(9)] == split.documents


def test_a_corpus_that_fails_its_check_leaves_nothing(tmp_path, fakes):
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(9))

    def check():
        raise UserError("6 of 100 rows have no text.")

    split.check = check
    with pytest.raises(UserError, match="no text"):
        build_or_open(split, make_tokenizer(), tmp_path, with_labels=False)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    with pytest.raises(UserError, match="no documents"):
        build_or_open(make_split([]), make_tokenizer(), tmp_path, with_labels=False)


def test_a_directory_that_cannot_be_written_is_the_users_to_cure(tmp_path, fakes, monkeypatch):
    make_tokenizer, make_split, make_documents = fakes
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/cache .*by --cache-dir"):
        build_or_open(make_split(make_documents(9)), make_tokenizer(), tmp_path / "file" / "cache", with_labels=False)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.CacheWriter, "add", full)
    with pytest.raises(UserError, match="No space left on device.*free space"):
        build_or_open(make_split(make_documents(9)), make_tokenizer(), tmp_path / "cache", with_labels=False)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def _build_on_a_full_disk(split, tokenizer, directory):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses to let a file grow beyond
    with pytest.raises(UserError, match="free space there, or name another folder by --cache-dir"):
        build_or_open(split, tokenizer, directory, with_labels=False)


@pytest.mark.parametrize("save_seconds", [0, 20])
def test_a_full_disk_leaves_nothing_torn(tmp_path, fakes, monkeypatch, save_seconds):
    make_tokenizer, make_split, make_documents = fakes
    monkeypatch.setattr(cache, "SAVE_SECONDS", save_seconds)
    split = make_split(make_documents(300))
    builder = multiprocessing.get_context("fork").Process(
        target=_build_on_a_full_disk, args=(split, make_tokenizer(5000), tmp_path)
    )
    builder.start()
    builder.join(60)
    assert builder.exitcode == 0
    # What was durable is kept for the next start, and no byte more.
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.suffix for path in left] == ([".partial"] if save_seconds == 0 else [])
    for path in left:
        sizes = json.loads((path / "progress.json").read_text())["sizes"]
        assert {name: (path / name).stat().st_size for name in sizes} == sizes and any(sizes.values())
    store = build_or_open(split, make_tokenizer(5000), tmp_path, with_labels=False)
    assert (split.starts[-1] is not None) == (save_seconds == 0)
    assert [store.document(n).tolist() for n in range(300)] == split.documents
    whole = build_or_open(split, make_tokenizer(5000), tmp_path / "whole", with_labels=False)
    assert _files(store.path) == _files(whole.path)


class LoggingSplit:
    """A split that notes each pass in a file, and stalls in the middle of it when told to."""

    def __init__(self, fakes, log, stall):
        _, make_split, make_documents = fakes
        self.inner, self.log, self.stall = make_split(make_documents(30)), log, stall
        self.name, self.fingerprint, self.skipped = "train", "logging", {}

    def batches(self, start=None, until=None):
        with open(self.log, "a") as file:
            file.write("pass\n")
        for number, batch in enumerate(self.inner.batches(start=start)):
            if number == 5:
                self.log.with_suffix(".middle").touch()
                time.sleep(self.stall)
            yield batch

    def check(self):
        pass


def _build_in_process(fakes, directory, stall):
    split = LoggingSplit(fakes, directory / "log", stall)
    build_or_open(split, fakes[0](), directory / "cache", with_labels=False)


def test_a_killed_build_is_cleaned_up_and_then_built_once_by_many_processes(tmp_path, fakes):
    context = multiprocessing.get_context("fork")
    victim = context.Process(target=_build_in_process, args=(fakes, tmp_path, 600))
    victim.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.middle").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    victim.join()
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [".partial"]

    builders = [context.Process(target=_build_in_process, args=(fakes, tmp_path, 0.2)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "pass\n" * 2  # the killed one and one other
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    store = TokenStore.open(entry)
    documents = fakes[2](30)
    assert [store.document(n).tolist() for n in range(30)] == documents


def _build_and_die(split, tokenizer, directory, log, where):
    """A build in this process that SIGKILLs it after some work; the texts it tokenises are counted in `log`."""
    cache.SAVE_SECONDS = 0
    killed = {"batches": 4, "saving": 3, "manifest": 1}[where]
    calls = itertools.count(1)

    def die(*_):
        if next(calls) == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, encode_flat = os.replace, tokenizer.encode_flat

    def dying_replace(source, target):
        if (where, os.path.basename(target)) in (("saving", "progress.json"), ("manifest", "manifest.json")):
            die()
        replace(source, target)

    def logged(texts):
        with open(log, "a") as file:
            file.write("x" * len(texts))
        return encode_flat(texts)

    os.replace, tokenizer.encode_flat = dying_replace, logged
    build_or_open(split, tokenizer, directory, with_labels=True, progress=die if where == "batches" else None)


def _files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _kill_until_built(split, tokenizer, directory, where, most):
    """Starts the build again after each kill; returns how many kills there were and how many texts were encoded."""
    log = directory.parent / "log"
    for kills in range(most):
        builder = multiprocessing.get_context("fork").Process(
            target=_build_and_die, args=(split, tokenizer, directory, log, where)
        )
        builder.start()
        builder.join(120)
        if builder.exitcode == 0:
            return kills, log.stat().st_size
        assert builder.exitcode == -signal.SIGKILL
        if where == "manifest":  # it would be killed at the end every time
            return kills + 1, log.stat().st_size
    raise AssertionError("the build does not get on")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["batches", "saving", "manifest"])
@pytest.mark.parametrize("shard_bytes", [cache_writer.SHARD_BYTES, 64])
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(tmp_path, fakes, monkeypatch, shard_bytes, where):
    make_tokenizer, make_split, make_documents = fakes
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", shard_bytes)
    split = make_split(make_documents(60), labels=[n % 3 for n in range(60)])  # 20 batches
    kills, encoded = _kill_until_built(split, make_tokenizer(), tmp_path / "cache", where, 30)
    assert kills >= (1 if where == "manifest" else 5)
    assert encoded <= 60 + kills * 3 * (cache.ENCODERS + 2)  # what was in work, and a batch that was not saved yet
    store = build_or_open(split, make_tokenizer(), tmp_path / "cache", with_labels=True)
    whole = build_or_open(split, make_tokenizer(), tmp_path / "whole", with_labels=True)
    assert _files(store.path) == _files(whole.path)
    assert (split.starts[0] is not None) == (where == "manifest") and split.starts[-1] is None


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_killed_build_of_real_texts_goes_on(tmp_path, suffix):
    import datasets

    from ulmfit.data.corpus import open_corpus
    from ulmfit.tokenizer.tokenizer import Tokenizer

    sample = open_corpus(None, task="clf").splits["train"]
    texts = [text for batch in sample.batches() for text in batch.texts][:50]
    rows = [{"text": "" if n % 100 == 7 else f"{n} {texts[n % 50]}", "label": f"c{n % 3}"} for n in range(7000)]
    table = datasets.Dataset.from_list(rows)
    getattr(table, {"jsonl": "to_json"}.get(suffix, f"to_{suffix}"))(str(tmp_path / f"data.{suffix}"))

    def split():
        return open_corpus(str(tmp_path / f"data.{suffix}"), task="clf", valid=0.05).splits["train"]

    tokenizer = Tokenizer.train(texts, vocab_size=500)
    kills, _ = _kill_until_built(split(), tokenizer, tmp_path / "cache", "batches", 10)
    assert kills >= 1
    store = build_or_open(split(), tokenizer, tmp_path / "cache", with_labels=True)
    whole = build_or_open(split(), tokenizer, tmp_path / "whole", with_labels=True)
    assert _files(store.path) == _files(whole.path) and store.skipped == {"empty": 70}


def test_the_embedded_sample_with_the_real_tokenizer(tmp_path):
    from ulmfit.data.corpus import open_corpus
    from ulmfit.tokenizer.tokenizer import Tokenizer

    split = open_corpus(None, task="clf").splits["valid"]
    batches = list(split.batches())
    texts = [text for batch in batches for text in batch.texts]
    tokenizer = Tokenizer.train(texts, vocab_size=500)
    store = build_or_open(split, tokenizer, tmp_path, with_labels=True)
    assert store.num_documents == len(texts) and store.vocab_size == len(tokenizer)
    for index in (0, 17, len(texts) - 1):
        assert np.array_equal(store.document(index), tokenizer.encode(texts[index])[0])
        assert store.document(index)[0] == tokenizer.bos_id
    assert store.labels.tolist() == [label for batch in batches for label in batch.labels]
    assert store.rows.tolist() == [row for batch in batches for row in batch.rows]
    again = open_corpus(None, task="clf").splits["valid"]
    assert build_or_open(again, tokenizer, tmp_path, with_labels=True).path == store.path

    options = {"batch_size": 4, "bptt": 20, "seed": 0, "rows": range(4)}
    ids = set(np.concatenate([store.document(n) for n in range(len(texts))]).tolist())
    for source in (CachedRows(store, **options), StreamedRows(split, tokenizer, **options)):
        seen = torch.cat([batch.tokens.flatten() for batch, _ in itertools.islice(source.batches(), 600)])
        assert set(seen.unique().tolist()) <= ids | {tokenizer.pad_id} and (seen == tokenizer.bos_id).sum() > 200


def test_an_interrupted_build_goes_on_after_the_last_document(tmp_path, fakes):
    make_tokenizer, make_split, make_documents = fakes
    documents, split = make_documents(30), make_split(make_documents(30))
    calls = []

    class Waiting:
        def __enter__(self):
            calls.append(None)

        def __exit__(self, *_):
            if len(calls) == 6:  # one for the lock, four batches of three documents, and then Ctrl-C
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_open(split, make_tokenizer(), tmp_path / "cut", with_labels=False, waiting=Waiting)
    again, tokenizer = make_split(documents), make_tokenizer()
    store = build_or_open(again, tokenizer, tmp_path / "cut", with_labels=False)
    assert again.starts == [12] and len(tokenizer.encoded) == 18
    whole = build_or_open(make_split(documents), make_tokenizer(), tmp_path / "whole", with_labels=False)
    for file in whole.path.iterdir():
        assert (store.path / file.name).read_bytes() == file.read_bytes()


def test_columns_take_half_of_the_memory_where_their_numbers_allow_it():
    small, large = np.array([0, 2**31 - 1]), np.array([0, 2**31])
    assert cache._narrow(small).dtype == np.int32 and cache._narrow(small).tolist() == small.tolist()
    assert cache._narrow(large) is large and len(cache._narrow(large[:0])) == 0


def test_the_store_of_the_benchmarks_is_built(tmp_path, monkeypatch):
    """It stands in for a corpus, so a change of what the builder asks of one would end every measurement."""
    monkeypatch.syspath_prepend(str(runs.ROOT / "benchmarks"))
    from lm_loader import make_store

    store = make_store(str(tmp_path), np.array([5, 60, 7]), 100, classes=2)
    assert store.lengths.tolist() == [5, 60, 7] and store.labels.tolist() == [0, 1, 0]
