"""Inputs that are no files here: stdin, S3, a web server; copied, hashed, and kept secret of."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json
from servers import S3_ENVIRONMENT, Faults, Seen, file_server, proxy, s3_server

from shardkit import load_manifest, pack, verify
from shardkit.builder import append
from shardkit.errors import BadInput, StorageError, UsageError
from shardkit.sources.copies import Copies
from shardkit.storage import single
from shardkit.storage.urls import without_user


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("rows") / "a.json", alpaca_rows(60, n_bad=2))


@pytest.fixture(scope="module")
def s3(source: Path) -> Iterator[str]:
    """A server with a bucket: data/train.json, data/test.json, data/meta.json."""
    import fsspec

    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3", endpoint_url=url)
        fs.mkdir("bucket")
        fs.pipe("bucket/data/train.json", source.read_bytes())
        fs.pipe("bucket/data/test.json", b"[]")
        fs.pipe("bucket/data/meta.json", b'{"name": "x"}')
        yield url


def shards(out: Path) -> dict[str, str]:
    """The digests of what does not hold names of sources."""
    return {name: digest for name, digest in digests(out).items() if name.startswith("shard")}


def feed(patch: pytest.MonkeyPatch, data: bytes) -> None:
    patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_rows_from_stdin(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards of the file; nothing is left of the copy; append takes it too; none is refused."""
    pack_small(source, tmp_path / "file")
    feed(monkeypatch, source.read_bytes())
    manifest = pack_small("-", tmp_path / "out")
    assert [one.name for one in manifest.sources] == ["stdin"]
    assert manifest.sources[0].sha256 == load_manifest(tmp_path / "file").sources[0].sha256
    assert shards(tmp_path / "out") == shards(tmp_path / "file")
    assert not (tmp_path / "out/.building").exists()
    assert verify(tmp_path / "out", sources=[source]).findings == []
    feed(monkeypatch, write_json(tmp_path / "b.json", alpaca_rows(9, seed=5)).read_bytes())
    assert [one.n_rows for one in append(tmp_path / "out", "-").sources] == [60, 9]
    feed(monkeypatch, b"")
    with pytest.raises(BadInput, match="nothing came"):
        pack_small("-", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="inputs of pack and append alone"):
        verify(tmp_path / "out", sources=["-"])


@pytest.mark.parametrize(
    "url", ["s3://bucket/data/train.json", "s3://bucket/data", "s3://bucket/*/t*n.json"]
)
def test_a_file_folder_or_glob_of_s3(
    s3: str, source: Path, tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same shards as of the file here; test files and strays of a folder are named."""
    options: dict[str, Any] = {
        "storage_options": {"endpoint_url": s3, "key": "k3y", "secret": "s3cr3t"}
    }
    manifest = pack_small(url, tmp_path / "out", **options)
    pack_small(source, tmp_path / "file")
    assert [one.name for one in manifest.sources] == ["train.json"]
    assert shards(tmp_path / "out") == shards(tmp_path / "file")
    assert ("test.json" in caplog.text and "meta.json" in caplog.text) == url.endswith("data")
    assert b"s3cr3t" not in b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*.json"))


def test_a_web_server_and_its_secrets(source: Path, tmp_path: Path) -> None:
    """Neither manifest, plan nor message holds a password or a signed query; mixed with a file."""
    other = write_json(tmp_path / "b.json", alpaca_rows(9, seed=5))
    with file_server(source.parent) as url:
        secret = url.replace("http://", "http://me:hunter2@")
        urls: list[Any] = [f"{secret}/a.json?sig=hunter3", str(other)]
        share: dict[str, Any] = {
            "tokenizer": TOKENIZER,
            "template": "qwen_chat",
            "max_length": 64,
            "part_rows": 50,
        }
        assert pack(urls, tmp_path / "out", part=(1, 2), engine="hf", **share) is None
        written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
        assert b"hunter" not in written
        manifest = pack_small(urls, tmp_path / "out")
        assert sorted(Path(one.name).name for one in manifest.sources) == ["a.json", "b.json"]
        assert b"hunter" not in (tmp_path / "out/manifest.json").read_bytes()
        with pytest.raises(BadInput, match="there is no such input") as caught:
            pack_small(f"{secret}/none.json?sig=hunter3", tmp_path / "none")
    assert "hunter" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_fetch_that_fails_goes_on(
    s3: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came whole is not fetched again; a failure of the server is no missing file."""
    import fsspec

    monkeypatch.setenv("SHARDKIT_TRIES", "1")
    more = write_json(tmp_path / "b.json", alpaca_rows(9, seed=5)).read_bytes()
    fsspec.filesystem("s3", endpoint_url=s3).pipe("bucket/two/b.json", more)
    urls = ["s3://bucket/data/train.json", "s3://bucket/two/b.json"]

    def down(seen: Seen) -> str | None:
        return "error" if "b.json" in seen.path else None

    with proxy(s3, Faults(down)) as through, pytest.raises(StorageError):
        pack_small(urls, tmp_path / "out", storage_options={"endpoint_url": through})
    with proxy(s3, faults := Faults()) as through:
        manifest = pack_small(urls, tmp_path / "out", storage_options={"endpoint_url": through})
    assert [one.name for one in manifest.sources] == ["data/train.json", "two/b.json"]
    assert not faults.gets("train.json")
    assert faults.gets("b.json")


def test_a_file_that_is_replaced_while_it_is_fetched_is_refused(tmp_path: Path) -> None:
    """Half of each version would be packed; what was there before the fetch is not used either."""
    original = tmp_path / "a.jsonl"
    original.write_bytes(b"1" * 100)
    url = f"file://{original}"
    first = Copies(tmp_path / "work").of(url)
    os.utime(original, (7, 7))

    def replaced(name: str, done: int, total: int) -> None:
        original.write_bytes(b"2" * 100)

    with pytest.raises(BadInput, match="changed while it was fetched"):
        Copies(tmp_path / "work", on_bytes=replaced).of(url)
    assert Copies(tmp_path / "work").of(url).read_bytes() == b"2" * 100
    assert first.parent.name == Copies(tmp_path / "work").of(url).parent.name


def test_what_has_no_version_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size it may be another file; the same bytes are left as they are, for those who
    read them."""
    monkeypatch.setattr(single, "_MARKS", ())
    original, copies = tmp_path / "a.jsonl", Copies(tmp_path / "work")
    original.write_bytes(b"1" * 100)
    copy = copies.of(f"file://{original}")
    before = copy.stat()
    assert copies.of(f"file://{original}").stat().st_ino == before.st_ino
    assert copy.stat().st_ctime_ns == before.st_ctime_ns
    original.write_bytes(b"2" * 100)
    assert copies.of(f"file://{original}").read_bytes() == b"2" * 100
    assert sorted(p.name for p in copy.parent.iterdir()) == ["a.jsonl", "a.jsonl.is"]


def test_an_at_of_a_path_is_no_user(tmp_path: Path) -> None:
    """Files of one name at the same revision of two repositories are two copies; a password does
    not decide the place of one."""
    copies, places = Copies(tmp_path / "work"), []
    for repository in ("one", "two"):
        original = tmp_path / f"{repository}@main/train.jsonl"
        original.parent.mkdir()
        original.write_text(repository)
        places.append(copies.of(f"file://{original}"))
    assert [place.read_text() for place in places] == ["one", "two"]
    for url in ("hf://datasets/o/one@main/a.json", "https://host/a@b?sig=c@d"):
        assert without_user(url) == url
    assert without_user("https://me:secret@host/a@b?c@d") == "https://host/a@b?c@d"
