"""Servers on loopback: files over HTTP, S3, and a proxy in front of them that misbehaves."""

from __future__ import annotations

import http.client
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """Run a server in a thread; its port."""
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class QuietFiles(SimpleHTTPRequestHandler):
    """Files of a folder, and no word about it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Python's own HTTP server, which knows no ranges; its URL."""
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(QuietFiles, directory=str(folder)))
    with serving(server) as port:
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 in a process of its own; its URL."""
    code = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | S3_ENVIRONMENT | {"PYTHONWARNINGS": "ignore"},
    ) as process:
        try:
            yield _announced(process)
        finally:
            process.terminate()


def _announced(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "Running on http" in line:
            url = line.split()[-1]
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return url
    raise RuntimeError("the S3 server did not start")


@dataclass
class Seen:
    """One request that came through the proxy."""

    method: str
    path: str
    range: str | None
    fault: str | None
    given_up: threading.Event = field(default_factory=threading.Event)
    """Of a request that hangs: the client closed the connection itself."""


@dataclass
class Faults:
    """What the proxy does to answers. A rule gives the name of a fault, or None for none.

    `error`: status 503. `reset`: the connection is closed without an answer. `cut`: in the middle
    of the body. `short`: a whole answer with half of the body. `flip`: one wrong bit. `stall`:
    `stall_s` in the middle of the body. `hang`: no answer until the proxy ends.
    """

    rule: Callable[[Seen], str | None] = lambda seen: None
    stall_s: float = 2.0
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def decide(self, seen: Seen) -> str | None:
        """The fault of this request, which is noted."""
        with self.lock:
            seen.fault = self.rule(seen)
            self.seen.append(seen)
            return seen.fault

    def gets(self, name: str) -> list[Seen]:
        """GET requests of a file."""
        with self.lock:
            return [s for s in self.seen if s.method == "GET" and s.path.endswith(name)]


def some(
    share: float, *faults: str, seed: int = 0, only: str = "", most: int | None = None
) -> Callable[[Seen], str | None]:
    """A rule: this share of the requests whose path holds `only`, one of these faults each.

    `most`: so many for a path, at most. With 2, three tries always come through, in whatever order
    the threads of a reader ask.
    """
    rng = random.Random(seed)
    had: Counter[str] = Counter()

    def rule(seen: Seen) -> str | None:
        if only not in seen.path or rng.random() >= share or had[seen.path] == most:
            return None
        had[seen.path] += 1
        return rng.choice(faults)

    return rule


def once(fault: str, *, only: str) -> Callable[[Seen], str | None]:
    """A rule: the first GET of every path that holds `only`."""
    had: set[str] = set()

    def rule(seen: Seen) -> str | None:
        if seen.method != "GET" or only not in seen.path or seen.path in had:
            return None
        had.add(seen.path)
        return fault

    return rule


@contextmanager
def proxy(target: str, faults: Faults) -> Iterator[str]:
    """A server that passes requests on to `target`, with faults; its URL."""
    host = target.removeprefix("http://")
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(_Proxy, host, faults))
    try:
        with serving(server) as port:
            yield f"http://{LOOPBACK}:{port}"
    finally:
        faults.ended.set()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, host: str, faults: Faults, *args: Any) -> None:
        self.host = host
        self.faults = faults
        super().__init__(*args)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        seen = Seen(self.command, path, self.headers.get("Range"), None)
        fault = self.faults.decide(seen)
        body = self._body()
        if fault in ("error", "reset", "hang"):
            self._refuse(fault, seen)
            return
        status, headers, data = self._passed_on(body)
        if self.command == "GET" and status < 300 and len(data) > 1:
            if fault == "flip":
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault == "short":
                data = data[: len(data) // 2]
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        n_bytes = len(data)
        if self.command == "HEAD":
            n_bytes = int(dict(headers).get("Content-Length", 0))
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
        if self.command != "HEAD":
            self._send(data, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while n := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(n))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, fault: str, seen: Seen) -> None:
        if fault == "error":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "hang":
            self._wait_to_be_given_up(seen)
        self._drop()

    def _wait_to_be_given_up(self, seen: Seen) -> None:
        """Until the client closes the connection, or the proxy has ended; a minute at most."""
        give_up = time.monotonic() + 60
        has_ended = False
        while not has_ended and time.monotonic() < give_up:
            has_ended = self.faults.ended.wait(0.05)
            is_readable = select.select([self.connection], [], [], 0)[0]
            with suppress(ConnectionResetError):
                if not is_readable or self.connection.recv(1, socket.MSG_PEEK):
                    continue
            seen.given_up.set()
            return

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client may have gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        skip = ("transfer-encoding", "connection", "content-length", "accept-encoding", "expect")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skip}
        connection = http.client.HTTPConnection(self.host, timeout=120)
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, data: bytes, fault: str | None) -> None:
        half = len(data) // 2
        self.wfile.write(data[:half])
        if fault == "cut":
            self.wfile.flush()
            self._drop()
            return
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.faults.stall_s)
        self.wfile.write(data[half:])
