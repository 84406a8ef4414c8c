"""A stand-in of the hub's HTTP API on this machine: repositories, commits, revisions and files, as huggingface_hub asks.

with hub_stand_in(monkeypatch, cache) as hub:
    model.push_to_hub("someone/model")
    hub.repositories["someone/model"].files()  # by name, bytes
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import yaml

TOKEN = "hf_of_the_stand_in"


def metadata(card: str) -> dict:
    """What stands before the text of a README.md: what the hub reads."""
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


@dataclass
class Repository:
    """Commits (by their hash, the files by name), and branches and tags (by name, a hash)."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.names[branch] = oid
        self.messages.append(message)
        return oid

    def oid(self, revision: str) -> str | None:
        return self.names.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.names.get(revision, revision)]


@dataclass
class Hub:
    """What the server has.

    Attributes:
        large: contents that came by git-lfs, by SHA-256.
        seen: method and path of every request.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        body = self._body()
        path, _, query = self.path.partition("?")
        path = unquote(path)
        self.hub.seen.append(f"{self.command} {path}")
        writes = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else f"me/{told['name']}"
            if not writes:
                return self._refused(401, "Unauthorized")
            there = name in self.hub.repositories
            self.hub.repositories.setdefault(
                name, Repository(told.get("private") or told.get("visibility") == "private")
            )
            return self._answer(409 if there else 200, {"url": f"{self.hub.url}/{name}", "id": name})
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            self.hub.large[match[1]] = body
            return self._answer(200)
        match = re.match(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?/(.*)", path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None or (repository.private and not writes):
            return self._refused(401, "RepoNotFound")
        assert match is not None
        return self._in(match[1], repository, match[2], body, writes, query)

    def _in(self, name: str, repository: Repository, rest: str, body: bytes, writes: bool, query: str) -> None:
        action, _, rest = rest.partition("/")
        if rest == "lfs/objects/batch":
            objects = [
                {"oid": each["oid"], "size": each["size"],
                 "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]  # fmt: skip
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if action == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith("safetensors") else "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]  # fmt: skip
            return self._answer(200, {"files": files})
        if action == "commit":
            if not writes:
                return self._refused(403, "Forbidden")
            files = dict(repository.files(rest)) if rest in repository.names else {}
            message = ""
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            oid = repository.commit(rest, files, message)
            return self._answer(
                200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
            )
        revision, _, file = rest.partition("/")
        oid = repository.oid(revision)
        if action == "tree" and not repository.commits:  # a new repository has a branch without files
            return self._answer(200, [])
        if oid is None:
            return self._refused(404, "RevisionNotFound")
        content = repository.commits[oid]
        if action == "tree":
            return self._answer(200, [{"type": "file", "path": path, "size": len(data), "oid": oid}
                                      for path, data in content.items()])  # fmt: skip
        if action == "revision":
            siblings = [{"rfilename": path} for path in content]
            return self._answer(200, {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "tags": [],
                                      "private": repository.private, "downloads": 0})  # fmt: skip
        if action == "tree":
            entries = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                       for path, data in content.items()]  # fmt: skip
            return self._answer(200, entries)
        if action == "resolve":
            if file not in content:
                return self._refused(404, "EntryNotFound")
            data = content[file]
            return self._answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=oid,
                                Content_Type="application/octet-stream")  # fmt: skip
        return self._refused(404, f"unknown {action}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle


@contextmanager
def hub_stand_in(monkeypatch, cache: Path) -> Iterator[Hub]:
    """Context in which huggingface_hub asks the stand-in, with a token that may write, and caches below `cache`."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by git-lfs, which is plain HTTP
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
