"""What a URL holds beside the place: a user, a signed query; and servers that know no ranges."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from servers import LOOPBACK, QuietFiles, serving
from shardkit_cli.main import main
from synthetic import make_dataset

from shardkit import ShardTable, verify
from shardkit.dataset import open_dataset
from shardkit.errors import BadManifest, IdentityMismatch, ShardkitError
from shardkit.report.page.build import write_report
from shardkit.storage import remote

SECRET = "s3cret/+x"
"""As of a signature in base64."""


class Guarded(QuietFiles):
    """Files for those who name the user, or whose query is signed; it knows no ranges."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """A file, or 403."""
        path, _, query = self.path.partition("?")
        user = base64.b64encode(f"me:{SECRET}".encode()).decode()
        if query != f"sig={SECRET}" and self.headers.get("Authorization") != f"Basic {user}":
            self.send_error(403)
            return
        self.asked.append(path)
        self.path = path
        super().do_GET()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("urls") / "set"
    make_dataset(path, [60])
    return path


@pytest.fixture
def host(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(Guarded, directory=str(folder.parent)))
    Guarded.asked.clear()
    with serving(server) as port:
        yield f"{LOOPBACK}:{port}"


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET.replace('/', '%2F')}@HOST/set",
        f"http://HOST/set?sig={SECRET}",
        f"http://HOST/set/manifest.json?sig={SECRET}",
    ],
)
def test_secrets_are_asked_with_and_never_shown(
    url: str, host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file is asked for with the URL's user or query; no message, page or name has it."""
    url, missing = url.replace("HOST", host), url.replace("HOST/set", f"{host}/none")
    table = ShardTable(url, cache_dir=tmp_path / "cache")
    assert len(list(table)) == 60
    assert verify(url, cache_dir=tmp_path / "cache").path == f"http://{host}/set"
    errors: list[ShardkitError] = []
    for place, options in ((url, {"max_length": 7}), (missing, {})):
        with pytest.raises((IdentityMismatch, BadManifest)) as caught:
            ShardTable(place, **options)  # type: ignore[arg-type]
        errors.append(caught.value)
    write_report(open_dataset(url, cache_dir=tmp_path / "cache"), tmp_path / "page.html")
    assert main(["inspect", url, "--cache-dir", str(tmp_path / "cache")]) == 0

    shown = capsys.readouterr()
    texts = [*map(str, errors), shown.out, shown.err, (tmp_path / "page.html").read_text()]
    texts += [repr(table.member), *map(str, (tmp_path / "cache").rglob("*"))]
    assert f"http://{host}/set" in shown.out
    assert not [text for text in texts if "s3cret" in text]


def test_a_server_without_ranges_is_asked_once(
    host: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends the whole file for any block of it: a shard of 64 blocks comes once, not 64
    times."""
    size = (folder / "shard-00000.tar").stat().st_size
    monkeypatch.setattr(remote, "BLOCK_BYTES", size // 64)
    ShardTable(f"http://{host}/set?sig={SECRET}", cache_dir=tmp_path)[0]
    assert Guarded.asked.count("/set/shard-00000.tar") == 1
