"""Corpora in an object store: a stand-in of S3 on this machine, and stores whose package is missing."""

from __future__ import annotations

import json

import pytest

from tests.s3_stand_in import s3_stand_in
from ulmfit.data.corpus import open_corpus
from ulmfit.data.fingerprint import Access
from ulmfit.data.locations import file_system, version_of
from ulmfit.data.mixed_corpus import open_any_corpus
from ulmfit.errors import UserError


@pytest.fixture
def s3(monkeypatch):
    with s3_stand_in(monkeypatch) as store:
        yield store


def texts(split):
    return [text for batch in split.batches() for text in batch.texts]


def test_a_corpus_in_s3_has_the_rows_of_files_and_a_stream_is_not_read_for_its_fingerprint(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "c").mkdir()
    for shard in range(3):
        lines = "".join(
            json.dumps({"text": f"text {shard} {row} " + "x" * 50}) + "\n" for row in range(500 if shard else 11_000)
        )
        (tmp_path / "c" / f"{shard}.jsonl").write_text(lines)
        s3.objects[f"bucket/c/{shard}.jsonl"] = lines.encode()
    s3.objects["bucket/held/out.txt"] = b"one\ntwo\n"
    local = open_corpus(str(tmp_path / "c"), task="lm")
    s3.busy = 2
    for data in ("s3://bucket/c", "s3://bucket/c/*.jsonl"):
        remote = open_corpus(data, task="lm")
        assert remote.fingerprint == local.fingerprint
    assert texts(remote.splits["train"]) == texts(local.splits["train"]) and s3.busy == 0

    assert len(s3.read) == 3
    s3.read.clear()
    options = {"task": "lm", "streaming": True, "valid": "s3://bucket/held/out.txt", "access": Access(by_content=False)}
    stream = open_any_corpus("a=1:s3://bucket/c/*.jsonl", **options)
    assert s3.read == {"bucket/c/0.jsonl", "bucket/held/out.txt"}  # whose first lines tell the columns
    first = stream.fingerprint
    train = stream.splits["train"].members[0].split
    batches = train.batches(700)
    read = [next(batches) for _ in range(16)]
    start, done = read[-1].after, sum(len(batch.texts) for batch in read)
    rest = [text for batch in train.batches(700, start=json.loads(json.dumps(start))) for text in batch.texts]
    assert rest == texts(train)[done:]
    s3.objects["bucket/c/2.jsonl"] = s3.objects["bucket/c/2.jsonl"].replace(b'x"', b'y"')
    file_system("s3://bucket/c")[0].invalidate_cache()
    again = open_any_corpus("a=1:s3://bucket/c/*.jsonl", **options)
    assert again.fingerprint != first


def test_a_store_whose_package_is_missing_is_told_in_a_sentence(monkeypatch):
    import fsspec

    def missing(url):
        raise ImportError(words[url])

    words = {
        "s3://bucket/a.csv": "Install s3fs to access S3",
        "gs://b/a.csv": "Please install gcsfs to access Google Storage",
        "x://b": "No x here.",
    }
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for url, told in (
        ("s3://bucket/a.csv", "s3://bucket/a.csv needs the package s3fs; pip install 'ulmfit[s3]'"),
        ("gs://b/a.csv", "gs://b/a.csv needs the package gcsfs; pip install 'gcsfs'"),
        ("x://b", "x://b needs another package (No x here); install it"),
    ):
        with pytest.raises(UserError) as error:
            file_system(url)
        assert str(error.value) == told


def test_the_version_of_an_object_is_its_tag_and_no_hash_of_all_that_the_store_tells(monkeypatch):
    class System:
        def info(self, path):
            return {"size": 3, "ETag": '"abc"', "more": more}

        def ukey(self, path):
            return "hash"

    monkeypatch.setattr("ulmfit.data.locations.file_system", lambda url: (System(), url))
    more = 1
    first = version_of("s3://b/a")
    more = 2
    assert version_of("s3://b/a") == first == [3, '"abc"']
    monkeypatch.setattr(System, "info", lambda self, path: {"size": 3, "ETag": None})
    assert version_of("s3://b/a") == [3, "hash"]
