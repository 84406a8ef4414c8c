"""Stores as pieces with digests: the bytes come back, and what is damaged or missing is told."""

import filecmp
import json
from itertools import islice

import gpu_pack
import numpy as np
import packed
import pandas
import pytest

from ulmfit.batches.cache import TokenStore
from ulmfit.batches.cache_writer import CacheWriter
from ulmfit.data import sample
from ulmfit.errors import UserError

VOCAB = 300


def written(path, documents, *, labels, vocab=VOCAB, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, documents)
    writer = CacheWriter(path, vocab_size=vocab, with_labels=labels)
    classes = rng.integers(0, 2, documents) if labels else None
    writer.add(rng.integers(0, VOCAB, lengths.sum()), lengths, classes, np.arange(documents) * 3, after={})
    writer.finish(f"{seed:032x}", {"empty": 2})
    writer.close()
    return TokenStore.open(path)


@pytest.fixture
def stores(tmp_path):
    names = {"wikipedia": False, "unsup": False, "train": True, "test": True}
    return {
        name: written(tmp_path / name, 200, labels=labels, seed=seed)
        for seed, (name, labels) in enumerate(names.items())
    }


@pytest.fixture
def folders(stores, tmp_path):
    """The pieces, dealt to the folders of two commands."""
    everything = tmp_path / "packed"
    everything.mkdir()
    entries = {name: packed.pack(store, name, everything, tokens=900) for name, store in stores.items()}
    assert all(len(entry["pieces"]) > 3 for entry in entries.values())
    imdb = sum(piece["bytes"] for name in ("unsup", "train", "test") for piece in entries[name]["pieces"])
    room = imdb + 2 * entries["wikipedia"]["pieces"][0]["bytes"] + 100
    commands = gpu_pack.deal(entries, room)
    found = {}
    for command in ("reproduction", "probe"):
        found[command] = tmp_path / command
        found[command].mkdir()
        manifest = {"format": packed.FORMAT, "vocab_size": VOCAB, "stores": entries}
        (found[command] / packed.MANIFEST).write_text(json.dumps(manifest))
        for file in commands[command]:
            (everything / file).rename(found[command] / file)
        assert sum(path.stat().st_size for path in found[command].glob("*.xz")) <= room
    return found


def test_a_store_comes_back_with_its_bytes(stores, folders, tmp_path):
    pieces = packed.Packed(list(folders.values()))
    assert set(pieces.check().values()) == {"whole"}
    for name, store in stores.items():
        opened = pieces.open([name], tmp_path / "opened" / name)
        files = sorted(file.name for file in store.path.iterdir())
        assert opened.missing == [] and sorted(file.name for file in opened.store.path.iterdir()) == files
        _, differ, missing = filecmp.cmpfiles(store.path, opened.store.path, files, shallow=False)
        assert not differ and not missing


def test_all_of_imdb_travels_with_the_reproduction_and_some_of_wikipedia(folders):
    names = {file.name.partition("-")[0] for file in folders["reproduction"].glob("*.xz")}
    assert names == {"wikipedia", "unsup", "train", "test"}
    assert {file.name.partition("-")[0] for file in folders["probe"].glob("*.xz")} == {"wikipedia"}
    with pytest.raises(UserError, match="--room"):
        gpu_pack.deal({"wikipedia": {"pieces": []}, "test": {"pieces": [{"bytes": 9, "file": "test-00.xz"}]}}, 8)


def test_two_stores_become_one(stores, folders, tmp_path):
    store = packed.Packed(list(folders.values())).open(["unsup", "train"], tmp_path / "both").store
    assert store.labels is None and store.num_documents == 400
    for index in (0, 199, 200, 399):
        source = stores["unsup" if index < 200 else "train"]
        np.testing.assert_array_equal(store.document(index), source.document(index % 200))


def test_what_is_damaged_or_did_not_travel_is_told(folders, tmp_path):
    victim = sorted(folders["reproduction"].glob("wikipedia-*.xz"))[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    pieces = packed.Packed(list(folders.values()))
    with pytest.raises(UserError, match=f"{victim.name} is damaged"):
        pieces.open(["wikipedia"], tmp_path / "no")
    assert not (tmp_path / "no").exists()
    some = pieces.open(["wikipedia"], tmp_path / "some", partly=True)
    assert some.missing == [victim.name] and 0 < some.store.num_documents < 200
    alone = packed.Packed([folders["reproduction"], tmp_path / "not there"])
    assert alone.check()[sorted(folders["probe"].glob("*.xz"))[0].name] == "nowhere"
    fewer = alone.open(["wikipedia"], tmp_path / "some", partly=True)  # the same target, of other pieces
    assert fewer.store.num_documents < some.store.num_documents and victim.name in fewer.missing
    for file in folders["reproduction"].glob("test-*.xz"):
        file.unlink()
    with pytest.raises(UserError, match="nowhere"):  # not even partly: there would be none
        alone.open(["test"], tmp_path / "none", partly=True)


def test_a_store_that_was_written_is_opened_again(folders, tmp_path):
    pieces = packed.Packed(list(folders.values()))
    first = pieces.open(["train"], tmp_path / "train").store
    before = (first.path / "manifest.json").stat().st_ino
    assert (pieces.open(["train"], tmp_path / "train").store.path / "manifest.json").stat().st_ino == before


def test_folders_of_two_packings_are_refused(folders, tmp_path):
    path = folders["probe"] / packed.MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="two packings"):
        packed.Packed(list(folders.values()))
    with pytest.raises(UserError, match="its format is 2"):
        packed.Packed([folders["probe"]])
    with pytest.raises(UserError, match="no folder of pieces"):
        packed.Packed([tmp_path / "not there"])


def test_ids_of_more_than_16_bits_are_refused(tmp_path):
    store = written(tmp_path / "wide", 5, labels=False, vocab=70_000)
    with pytest.raises(UserError, match="16 bits"):
        packed.pack(store, "wide", tmp_path, tokens=900)


def test_a_file_comes_back_in_parts(tmp_path):
    whole, parts = tmp_path / "model.tar", tmp_path / "parts"
    whole.write_bytes(np.random.default_rng(0).bytes(1000))
    parts.mkdir()
    assert [part["bytes"] for part in packed.split_file(whole, parts, most=400)] == [400, 400, 200]
    packed.join_file(parts / "model.tar.json", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole.read_bytes()
    (parts / "model.tar.01").write_bytes(b"x" * 400)
    with pytest.raises(UserError, match="model.tar.01 does not match"):
        packed.join_file(parts / "model.tar.json", tmp_path / "again")
    (parts / "model.tar.01").unlink()
    with pytest.raises(UserError, match="model.tar.01 is not there"):
        packed.join_file(parts / "model.tar.json", tmp_path / "again")


def test_both_corpora_are_tokenised_packed_and_dealt(tmp_path, monkeypatch, capsys):
    """With --every, as in a rehearsal."""
    rows = [{"text": row["text"], "label": row["label"]} for row in islice(sample.generate("train"), 120)]
    (tmp_path / "imdb").mkdir()
    for number, name in enumerate(("train", "test", "unsup")):
        some = rows[40 * number : 40 * number + 40]
        table = pandas.DataFrame(some if name != "unsup" else [{"text": row["text"]} for row in some])
        table.to_parquet(tmp_path / "imdb" / f"{name}.parquet")
    pandas.DataFrame({"text": [row["text"] for row in rows]}).to_parquet(tmp_path / "wikipedia.parquet")
    options = {"wikipedia": tmp_path / "wikipedia.parquet", "imdb": tmp_path / "imdb", "output": tmp_path / "packed",
               "cache-dir": tmp_path / "cache", "every": 2, "tokens": 2000, "vocab-size": 500}  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["gpu_pack.py", "make", *words])
    gpu_pack.main()
    told = capsys.readouterr().out
    assert "wikipedia: 60 documents" in told and told.count(": 20 documents") == 3
    whole = packed.Packed([tmp_path / "packed" / "reproduction", tmp_path / "packed" / "probe"])
    assert set(whole.check().values()) == {"whole"}
