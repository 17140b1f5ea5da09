"""A hub on loopback: what huggingface_hub's own client asks for is answered from folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from servers import LOOPBACK, serving

_API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?"
)
_FILE = re.compile(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.*)")


@dataclass(frozen=True)
class Repo:
    """A repository: its folder by revision, and who may read it."""

    revisions: Mapping[str, Path]
    token: str | None = None
    """Without it the repository is private: it is not there."""
    is_gated: bool = False
    is_down: bool = False
    """Connections are closed without an answer."""


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    repos: Mapping[str, Repo]
    """By `datasets/owner/name` or `models/owner/name`."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""


@contextmanager
def hub_server(hub: Hub) -> Iterator[str]:
    """Serve a hub; its URL, for HF_ENDPOINT."""
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(_Answers, hub))
    with serving(server) as port:
        yield f"http://{LOOPBACK}:{port}"


class _Refused(Exception):
    """A status and the hub's word for the error."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self._hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        """A listing, or a file."""
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Facts of named paths."""
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        self._hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        try:
            if found := _API.fullmatch(path):
                kind, name, what, revision, inner = found.groups()
                folder = self._folder(f"{kind}/{name}", revision or "main")
                self._send_json(self._listed(folder, name, what, inner or "", body))
            elif found := _FILE.fullmatch(path):
                kind, name, revision, inner = found.groups()
                self._send_file(self._folder(f"{kind or 'models/'}{name}", revision) / inner)
            else:
                raise _Refused(404, "")
        except ConnectionError:
            self.close_connection = True
        except _Refused as err:
            status, word = err.args
            self._send(status, b'{"error": "no"}', {"X-Error-Code": word, "X-Error-Message": "no"})

    def _folder(self, name: str, revision: str) -> Path:
        repo = self._hub.repos.get(name)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and repo.token != given):
            raise _Refused(404 if given else 401, "RepoNotFound")
        if repo.is_down:
            raise ConnectionError
        by_commit = {_commit(name): name for name in repo.revisions}
        if by_commit.get(revision, revision) not in repo.revisions:
            raise _Refused(404, "RevisionNotFound")
        self._commit = _commit(by_commit.get(revision, revision))
        if repo.is_gated and self.path.find("/resolve/") > 0:
            raise _Refused(403, "GatedRepo")
        return repo.revisions[by_commit.get(revision, revision)]

    def _listed(self, folder: Path, name: str, what: str | None, inner: str, body: bytes) -> object:
        if what == "paths-info":
            paths = [folder / path for path in parse_qs(body.decode()).get("paths", [])]
            return [_facts(path, folder) for path in paths if path.exists()]
        if what == "tree":
            if not (folder / inner).is_dir():
                raise _Refused(404, "EntryNotFound")
            is_deep = parse_qs(urlsplit(self.path).query).get("recursive") in (["true"], ["True"])
            return [
                _facts(one, folder)
                for one in sorted((folder / inner).glob("**/*" if is_deep else "*"))
            ]
        return {"id": name, "sha": self._commit, "private": False, "tags": [], "siblings": []}

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            raise _Refused(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {
            "ETag": f'"{_sha(data)}"',
            "X-Repo-Commit": self._commit,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, headers)
            return
        begin, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self._send(206, data[begin : end + 1], headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _facts(path: Path, folder: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": _sha(data)}


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _commit(revision: str) -> str:
    return _sha(revision.encode())
