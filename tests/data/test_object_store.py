"""Corpora in an object store: a stand-in of S3 on this machine, and stores whose package is missing."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from ulmfit.data.corpus import open_corpus
from ulmfit.data.fingerprint import Access
from ulmfit.data.locations import file_system, version_of
from ulmfit.data.mixed_corpus import open_any_corpus
from ulmfit.errors import UserError


class Store(BaseHTTPRequestHandler):
    """What a reader asks of S3: the head of an object, parts of it, and lists by prefix."""

    objects: dict[str, bytes] = {}
    busy = 0  # how many requests for content are refused first
    read: set[str] = set()  # names of the objects of which content was sent

    def do_HEAD(self):
        self._object(head=True)

    def do_GET(self):
        path, query = urlsplit(self.path).path.strip("/"), parse_qs(urlsplit(self.path).query)
        if "/" in path:
            return self._object(head=False)
        prefix, inner = query.get("prefix", [""])[0], query.get("delimiter", [None])[0]
        names = sorted(name.partition("/")[2] for name in self.objects if name.startswith(f"{path}/"))
        names = [name for name in names if name.startswith(prefix)]
        folders = {name[: name.index("/", len(prefix)) + 1] for name in names if inner and "/" in name[len(prefix) :]}
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[f'{path}/{name}'])}</Size>{self._tag(f'{path}/{name}')}"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in names if not any(name.startswith(folder) for folder in folders)
        )  # fmt: skip
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        body = f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _object(self, *, head):
        content = self.objects.get(urlsplit(self.path).path.strip("/"))
        if content is None:
            return self._answer(404, b"" if head else b"<Error><Code>NoSuchKey</Code></Error>", {})
        name = urlsplit(self.path).path.strip("/")
        headers = {"ETag": f'"{hash(self.objects[name])}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if head:
            return self._answer(200, content, headers, body=False)
        if Store.busy:
            Store.busy -= 1
            return self._answer(503, b"<Error><Code>SlowDown</Code></Error>", {})
        first, last = 0, len(content) - 1
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(last, int(match[2] or last))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        Store.read.add(name)
        self._answer(206 if match else 200, content[first : last + 1], headers)

    def _tag(self, name):
        return f"<ETag>&quot;{hash(self.objects[name])}&quot;</ETag>"

    def _answer(self, status, content, headers, *, body=True):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def s3(monkeypatch):
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "x",
                        "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    Store.objects, Store.busy, Store.read = {}, 0, set()
    yield Store
    server.shutdown()
    thread.join()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


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
