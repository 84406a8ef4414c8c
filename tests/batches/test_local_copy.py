"""--local-cache: tokens from a copy on the node's own disk, and from the shared cache wherever that fails."""

import os
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from ulmfit.batches import cache, cache_writer, checksums, local_copy
from ulmfit.batches.cache import build_or_open
from ulmfit.batches.local_copy import copied_to_node, local_folder
from ulmfit.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several shards of several blocks, with a partial block at the end of each."""
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", 250)
    monkeypatch.setattr(checksums, "BLOCK", 64)
    monkeypatch.setitem(cache.TokenFiles.__init__.__globals__, "BLOCK", 64)
    monkeypatch.setattr(local_copy, "_PIECE", 100)


@pytest.fixture
def staged(tmp_path, fakes):
    """A shared store, the folder of a copy, `stage()`, and what the user was told."""
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(60))
    shared = build_or_open(split, make_tokenizer(), tmp_path / "cache", with_labels=False)
    told = []

    def stage():
        return copied_to_node(shared, tmp_path / "node", notice=told.append, waiting=nullcontext)

    def reads(store):
        return [store.document(n).tolist() for n in range(60)] == split.documents

    return SimpleNamespace(
        shared=shared,
        copy=tmp_path / "node" / f"ulmfit-cache-{os.getuid()}" / shared.path.name,
        stage=stage,
        told=told,
        reads=reads,
    )


def shards(folder):
    return sorted(folder.glob("tokens-*.bin"))


def test_the_copy_is_read_and_made_once(staged, monkeypatch):
    store = staged.stage()
    assert len(shards(staged.copy)) > 2 and not staged.told
    shutil.rmtree(staged.shared.path)  # only the copy is left
    assert staged.reads(store) and store.fingerprint == staged.shared.fingerprint
    part = store.subset(np.array([7, 3]))
    assert part.document(0).tolist() == store.document(7).tolist()
    monkeypatch.setattr(local_copy, "_copy", pytest.fail)
    assert staged.reads(staged.stage())


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_where_the_copy_fails_the_shared_cache_is_read(staged, how):
    store = staged.stage()
    file = shards(staged.copy)[1]
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content if how == "flipped" else content[:9] if how == "cut" else b"")
    assert staged.reads(store)
    assert len(staged.told) == 1 and "the shared one is read" in staged.told[0]
    assert staged.reads(staged.stage()) and len(staged.told) == 1  # the next start copies it again


def test_what_is_damaged_in_the_shared_cache_is_not_copied(staged):
    file = shards(staged.shared.path)[2]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store = staged.stage()
    assert "is not used" in staged.told[0] and "does not match its checksum" in staged.told[0]
    assert not staged.copy.exists()
    with pytest.raises(UserError, match="the token cache is damaged"):
        staged.reads(store)


def test_without_space_or_a_folder_the_shared_cache_is_read(staged, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    assert staged.stage() is staged.shared and "0.1 GiB are needed and 0.0 are free" in staged.told[0]
    assert not staged.copy.exists()
    (tmp_path / "file").touch()
    store = copied_to_node(staged.shared, tmp_path / "file", notice=staged.told.append, waiting=nullcontext)
    assert store is staged.shared and "Not a directory" in staged.told[1]


def test_an_interrupted_copy_leaves_nothing_behind(staged, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checksums.BlockSums, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        staged.stage()
    assert not staged.copy.exists()


def test_a_folder_that_somebody_else_has_put_there_is_not_written_to(staged, monkeypatch, tmp_path):
    """As in /tmp, where anybody may make a folder or a link of this name before."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    staged.copy.parent.parent.mkdir()
    staged.copy.parent.symlink_to(theirs)
    assert staged.reads(staged.stage()) and not list(theirs.iterdir())
    assert "is not used (" in staged.told[-1] and "is not a folder of this user" in staged.told[-1]
    staged.copy.parent.unlink()
    assert staged.reads(staged.stage()) and staged.copy.exists() and staged.copy.parent.stat().st_mode & 0o777 == 0o700
    other = staged.copy.parent.stat().st_uid + 1
    staged.copy.parent.rename(staged.copy.parent.with_name(f"ulmfit-cache-{other}"))
    monkeypatch.setattr("os.getuid", lambda: other)
    assert staged.reads(staged.stage()) and len(staged.told) == 2


def test_variables_are_those_of_the_node(monkeypatch):
    monkeypatch.setenv("NODE_DISK", "/scratch/7")
    assert str(local_folder("$NODE_DISK/a")) == "/scratch/7/a"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(UserError, match=r"--local-cache \$\{NODE_DISK\}/a names a variable that is not set here; name"):
        local_folder("${NODE_DISK}/a")
