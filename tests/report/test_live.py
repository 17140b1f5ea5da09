"""`shardkit view`: a real server, asked by a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import psutil
import pytest
from launch import environment
from records import alpaca_rows, pack_small, write_json

from shardkit.dataset import open_dataset

HOSTILE = "<script>window.planted=1</script>"
N = 130


@dataclass
class Server:
    """A running `shardkit view`."""

    process: subprocess.Popen[str]
    address: str
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    def ask(
        self, path: str, *, host: str | None = None, cookie: str | None = None, method: str = "GET"
    ) -> tuple[int, str]:
        """Status and body; `headers` are those of the last answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Cookie": self.cookie if cookie is None else cookie}
        if host is not None:
            sent["Host"] = host
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        body = answer.read().decode()
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, body

    def page(self, path: str) -> str:
        status, body = self.ask(path)
        assert status == 200, body
        return body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` in several shards, `again` of the first rows, and the rows themselves."""
    folder = tmp_path_factory.mktemp("live")
    rows = alpaca_rows(N, n_bad=10)
    rows[3] = {"instruction": f"zebra {HOSTILE}", "output": HOSTILE}
    rows[50]["output"] = "cut " * 300
    source = write_json(folder / "rows.json", rows)
    pack_small(source, folder / "data", shard_size=30_000)
    pack_small(write_json(folder / "few.json", rows[:20]), folder / "again", max_length=60)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Serving `data`; the token is used, the cookie kept."""
    words = ["-m", "shardkit", "view", "data", "--source", "rows.json", "--compare", "again"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith("Open http://127.0.0.1:"), process.stderr.read()
    server = Server(process, line.split()[1])
    path = server.address.split(str(server.port))[1]
    assert server.ask(path)[0] == 303
    server.cookie = server.headers["set-cookie"].split(";")[0]
    yield server
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == 0


def test_only_this_machine_may_look(server: Server) -> None:
    """It listens on loopback alone, for its own host name, and for who came with the token."""
    listening = [
        one.laddr.ip
        for one in psutil.Process(server.process.pid).net_connections()
        if one.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    assert server.ask("/samples", host=f"evil.example:{server.port}")[0] == 421
    assert server.ask("/samples", host=f"localhost:{server.port}")[0] == 200
    assert server.ask("/samples", cookie="")[0] == 403
    assert server.ask("/samples", cookie=f"shardkit-{server.port}=guess")[0] == 403
    token = server.address.split("?")[1]
    assert server.ask(f"/?{token}", cookie="")[0] == 403, "the token is good for one visit"
    assert server.ask("/samples", method="POST")[0] == 405


def test_headers_forbid_what_is_not_needed(server: Server) -> None:
    """No script but ours, no frame, nothing kept in caches; the cookie is no script's."""
    server.page("/samples")
    policy = server.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert server.headers["cache-control"] == "no-store"
    assert server.headers["x-content-type-options"] == "nosniff"


def anchors(page: str) -> list[str]:
    return re.findall(r'<article class="card" id="([^"]+)"', page)


def walk(server: Server, path: str) -> list[str]:
    """The samples of all pages from an address on."""
    found: list[str] = []
    while path:
        page = server.page(path)
        found += anchors(page)
        after = re.search(r'href="([^"]+)" rel="next"', page)
        path = unescape(after[1]) if after else ""
    return found


def test_pages_hold_every_sample_once(server: Server, folder: Path) -> None:
    """All samples in order; with a filter exactly those whose index rows fit."""
    dataset = open_dataset(folder / "data")
    shards = [dataset.open_shard(i) for i in range(len(dataset.manifest.shards))]
    assert len(shards) > 2
    places = [(s.name[:-4], i) for s in shards for i in range(s.n_samples)]
    names = [f"{shard}/{i:08d}" for shard, i in places]
    index = np.concatenate([shard.index for shard in shards])
    assert walk(server, "/samples") == names
    cut = [name for name, one in zip(names, index, strict=True) if one["n_cut"]]
    assert walk(server, "/samples?cut=1") == cut
    assert cut
    short = [n for n, one in zip(names, index, strict=True) if 20 <= one["n_tokens"] <= 25]
    assert walk(server, "/samples?low=20&high=25") == short
    assert 0 < len(short) < len(names)
    assert walk(server, "/samples?text=ZEBRA") == names[3:4]
    assert walk(server, "/samples?source=nowhere.json") == []
    page = server.page("/samples?from=47")
    (back,) = set(re.findall(r'href="([^"]+)" rel="prev"', page))
    assert anchors(server.page(unescape(back))) == names[27:47]


def test_jumps(server: Server, folder: Path) -> None:
    """SHARD/KEY, a number and FILE:ROW lead to the sample; what is not there is told in words."""
    dataset = open_dataset(folder / "data")
    shard = dataset.open_shard(1)
    row = int(shard.index["record"][2])
    number = int(dataset.manifest.sizes[0]) + 2
    for wanted in ("shard-00001/00000002", str(number), f"rows.json:{row}"):
        assert server.ask(f"/jump?to={quote(wanted)}")[0] == 303
        assert server.headers["location"] == "/sample/shard-00001/00000002"
    page = server.page("/sample/shard-00001/00000002")
    rows = json.loads((folder / "rows.json").read_text())
    shown = unescape(page.split('aria-label="Source row">')[1].split("</pre>")[0])
    assert json.loads(shown) == rows[row]
    for wrong in ("99999", "shard-00009/0", "rows.json:12", "x", "/samples?from=x", "/nowhere"):
        path = wrong if wrong.startswith("/") else f"/jump?to={quote(wrong)}"
        status, body = server.ask(path)
        assert status == 404, wrong
        assert "Traceback" not in body


def test_rejected_rows_stand_beside_their_source(server: Server, folder: Path) -> None:
    """Every line of rejects.jsonl with the row that the file holds; by reason on demand."""
    lines = [json.loads(x) for x in (folder / "data/rejects.jsonl").read_text().splitlines()]
    rows = json.loads((folder / "rows.json").read_text())
    page = server.page("/rejects")
    shown = [
        json.loads(unescape(t)) for t in re.findall(r'label="The row">(.*?)</pre>', page, re.S)
    ]
    assert shown == [rows[line["row"]] for line in lines]
    reason = lines[0]["reason"]
    page = server.page(f"/rejects?reason={reason}")
    assert page.count("<article") == sum(line["reason"] == reason for line in lines)


def test_two_datasets_are_compared(server: Server) -> None:
    """What differs in identity is marked, and two samples are compared token by token."""
    page = server.page("/compare?a=0&b=0")
    assert "input_ids are equal." in page
    assert len(anchors(page)) == 2
    differing = re.findall(r'<tr class="differs"><th scope="row">([a-z ]+)', page)
    assert "max length " in differing
    assert "template " not in differing
    assert "differ from token" in server.page("/compare?a=0&b=1")


def test_data_stays_text(server: Server) -> None:
    """The planted script is escaped wherever it is shown; the page has one script of its own."""
    for path in (
        "/samples",
        "/sample/shard-00000/00000003",
        "/samples?text=%3Cscript%3E",
        "/figures",
    ):
        page = server.page(path)
        assert page.count("<script>") == 1, path
    assert "&lt;script&gt;window.planted" in server.page("/samples")
    status, body = server.ask("/jump?to=%3Cscript%3Ealert(1)%3C/script%3E")
    assert (status, body.count("<script>")) == (404, 1)


def test_another_file_is_not_shown_as_the_source(folder: Path, tmp_path: Path) -> None:
    """A file of the same name with other bytes is refused by its hash, in words."""
    from shardkit.report.live.sources import SourceFiles

    write_json(tmp_path / "rows.json", alpaca_rows(N, seed=9))
    files = SourceFiles(open_dataset(folder / "data"), [tmp_path / "rows.json"], tmp_path)
    found = files.row("rows.json", 3)
    assert found.text is None
    assert "sha256 differs" in found.note
    files = SourceFiles(open_dataset(folder / "data"), [folder / "rows.json"], tmp_path)
    assert HOSTILE in (files.row("rows.json", 3).text or "")
