"""A stand-in of S3 on this machine, for s3fs.

with s3_stand_in(monkeypatch) as store:
    store.objects["bucket/a.csv"] = b"text"
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest


class Store(BaseHTTPRequestHandler):
    """What a reader asks of S3, the head of an object, parts of it, and lists by prefix; and objects put in one piece."""

    objects: dict[str, bytes] = {}
    busy = 0  # how many requests for content are refused first
    read: set[str] = set()  # names of the objects of which content was sent

    def do_HEAD(self):
        self._object(head=True)

    def do_PUT(self):
        if self.headers.get("Expect"):  # the client waits for this before it sends the content
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = _unchunked(content)
        name = urlsplit(self.path).path.strip("/")
        self.objects[name] = content
        self._answer(200, b"", {"ETag": f'"{hash(content)}"'})

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


def _unchunked(content: bytes) -> bytes:
    """The bytes of a body in pieces, each after a line with its length in hexadecimal digits."""
    found = b""
    while content:
        line, _, content = content.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            return found
        found, content = found + content[:size], content[size + 2 :]
    return found


@contextmanager
def s3_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """Context in which s3:// is the stand-in, in this process and in those that it starts."""
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "x",
                        "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    Store.objects, Store.busy, Store.read = {}, 0, set()
    try:
        yield Store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        s3fs.S3FileSystem.clear_instance_cache()
