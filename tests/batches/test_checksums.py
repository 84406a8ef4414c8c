"""Changed bits and lost bytes of a token cache are noticed, whenever they happen."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from ulmfit.batches import cache, cache_writer, checksums
from ulmfit.batches.cache import TokenStore, build_or_open
from ulmfit.batches.checksums import BlockSums
from ulmfit.errors import UserError
from ulmfit.files import sealed, unsealed

COLUMNS = ["lengths.bin", "labels.bin", "offsets.bin", "checksums.bin", "manifest.json"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several shards of several blocks, with a partial block at the end of each."""
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", 250)
    for module in (checksums, cache.TokenFiles.__init__.__globals__):
        values = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(values, "BLOCK", 64)


@pytest.fixture
def corpus(tmp_path, fakes):
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(60), labels=[n % 3 for n in range(60)])

    def build():
        return build_or_open(split, make_tokenizer(), tmp_path / "cache", with_labels=True)

    return split, build


def flip(file, byte, bit=0):
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMNS)
def test_a_changed_column_is_noticed_at_opening_and_built_again(corpus, capsys, name):
    split, build = corpus
    path, passes = build().path, 1
    whole = (path / name).read_bytes()
    for byte in np.linspace(0, len(whole) - 1, 12).astype(int).tolist():
        flip(path / name, byte, byte % 8)
        store = build()
        if name == "manifest.json" and split.passes == passes:  # a space or so: it says the same
            assert json.loads((path / name).read_text()).keys() >= {"checksums"}
        else:
            passes += 1
            assert split.passes == passes and "damaged; building it again" in capsys.readouterr().err
            assert (path / name).read_bytes() == whole
        assert [store.document(n).tolist() for n in range(60)] == split.documents
    assert passes > 8


def test_a_changed_row_number_is_noticed_when_rows_are_read(corpus):
    _, build = corpus
    store = build()
    assert store.subset(np.array([4, 7])).subset(np.array([1])).rows.tolist() == [14]
    flip(store.path / "rows.bin", 17)
    with pytest.raises(UserError, match="damaged.*rows.bin"):
        _ = build().rows


@pytest.mark.slow
@pytest.mark.parametrize("read", ["document", "read", "gather"])
def test_a_changed_token_is_noticed_at_its_first_read(corpus, read):
    split, build = corpus
    store = build()
    shards = sorted(store.path.glob("tokens-*.bin"))
    assert len(shards) > 2 and all(len(BlockSums().add(memoryview(s.read_bytes()))) >= 1 for s in shards[:-1])
    for shard in shards:
        for byte in range(shard.stat().st_size):
            position = sum(s.stat().st_size for s in shards if s < shard) + byte
            document = int(np.searchsorted(store.offsets, position // 2, side="right")) - 1
            kept = (store.path / "manifest.json").read_bytes()
            flip(shard, byte)
            store = TokenStore.open(store.path)
            store.read([n for n in range(60) if abs(n - document) > 40])  # elsewhere all is well
            with pytest.raises(UserError, match=f"damaged: .*{shard.name} does not match.*same command again"):
                if read == "document":
                    store.document(document)
                elif read == "read":
                    store.read([0, document, 59])
                else:
                    store.gather(store.offsets[[document]], store.lengths[[document]])
            assert not (store.path / "manifest.json").exists()
            flip(shard, byte)
            (store.path / "manifest.json").write_bytes(kept)
    flip(shards[1], 5)
    with pytest.raises(UserError):
        TokenStore.open(store.path).read(range(60))
    assert [build().document(n).tolist() for n in range(60)] == split.documents and split.passes == 2


def test_each_block_is_checked_once(corpus, monkeypatch):
    _, build = corpus
    store = build()
    computed = []
    real = checksums.zlib.crc32
    monkeypatch.setattr(checksums.zlib, "crc32", lambda data, *start: computed.append(len(data)) or real(data, *start))
    for _ in range(3):
        store.read(range(60))
        store.subset(np.array([3, 4])).document(0)
    assert sum(computed) == 2 * store.num_tokens


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_file_cut_while_it_is_open_is_an_error_and_no_signal(corpus, left):
    split, build = corpus
    store = build()
    store.read(range(60))
    for shard in store.path.glob("tokens-*.bin"):
        os.truncate(shard, left)
    for column in ("offsets.bin", "lengths.bin", "labels.bin"):
        os.truncate(store.path / column, 0)
    with pytest.raises(UserError, match="tokens-.*is shorter than it was"):
        store.read(range(60))
    assert store.labels.tolist() == split.labels  # in memory
    assert [build().document(n).tolist() for n in range(60)] == split.documents


def test_a_failing_disk_is_named(corpus, monkeypatch):
    _, build = corpus
    store = build()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="token cache cannot be read.*tokens-00000.bin"):
        store.document(0)
    assert (store.path / "manifest.json").exists()


def test_an_entry_of_an_earlier_version_is_read_as_it_is(corpus):
    split, build = corpus
    path = build().path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["checksums"], manifest["checksum"], manifest["sizes"]["checksums.bin"]
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (path / "checksums.bin").unlink()
    store = build()
    assert [store.document(n).tolist() for n in range(60)] == split.documents and split.passes == 1
    assert store.rows.tolist() == list(range(0, 120, 2))
    os.truncate(path / "tokens-00000.bin", 10)
    with pytest.raises(UserError, match="is shorter"):
        store.read(range(60))


def test_a_partial_build_of_an_earlier_version_begins_again(corpus):
    split, build = corpus
    path = build().path
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    partial = path.with_name(path.name + ".partial")
    shutil.move(path, partial)
    (partial / "manifest.json").unlink()
    progress = {"num_documents": 3, "num_tokens": 9, "after": 3, "shards": ["tokens-00000.bin"], "sizes": {}}
    (partial / "progress.json").write_text(json.dumps(progress))
    assert {file.name: file.read_bytes() for file in build().path.iterdir()} == whole
    assert split.starts == [None, None]


def test_sums_of_blocks_do_not_depend_on_how_the_bytes_come():
    content = memoryview(os.urandom(1000))
    whole = BlockSums()
    expected = [*whole.add(content), *whole.end()]
    assert len(expected) == checksums.num_blocks(1000) == 16
    for step in (1, 7, 64, 65, 500):
        sums, found = BlockSums(), []
        for start in range(0, 1000, step):
            found += sums.add(content[start : start + step]).tolist()
            sums = BlockSums(sums.crc, sums.size)  # as after a kill
        assert [*found, *sums.end()] == expected and (sums.crc, sums.size) == (0, 0)


def test_sealed_json_notices_every_change():
    content = {"name": "\ud800", "tuple": (1, 2), "nested": {"b": None, "a": 1.5}}
    text = sealed(content)
    assert unsealed(text) == {"name": "\ud800", "tuple": [1, 2], "nested": {"b": None, "a": 1.5}}
    for change in (("1.5", "1.6"), ("null", "true"), ("ud800", "ud801"), ("tuple", "duple")):
        with pytest.raises(ValueError):
            unsealed(text.replace(*change))
    assert unsealed('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError):
        unsealed("[1]")
