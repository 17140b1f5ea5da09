"""A pack whose output is a URL: the same bytes, the manifest last, continued after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json
from servers import S3_ENVIRONMENT, Faults, Seen, proxy, s3_server

from shardkit import load_manifest, verify
from shardkit.errors import BuildConflict, StorageError, UsageError


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server with an empty bucket."""
    import fsspec

    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", endpoint_url=url).mkdir("bucket")
        yield url


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json(tmp_path / "a.json", alpaca_rows(300, n_bad=2))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(url: str, server: str) -> dict[str, str]:
    """The digest of every file below an S3 URL."""
    import hashlib

    import fsspec

    fs = fsspec.filesystem("s3", endpoint_url=server)
    fs.invalidate_cache()
    root = url.removeprefix("s3://")
    return {
        path.removeprefix(root + "/"): hashlib.sha256(fs.cat_file(path)).hexdigest()
        for path in fs.find(root)
    }


@pytest.mark.slow
def test_the_same_bytes_as_in_a_folder(s3: str, source: Path, tmp_path: Path, cache: Path) -> None:
    """Every file equals that of a local pack; packing again changes and uploads nothing."""
    options: dict[str, Any] = {"storage_options": {"endpoint_url": s3}}
    local = pack_small(source, tmp_path / "out", shard_size=8192)
    faults = Faults()
    assert pack_small(source, "s3://bucket/same", shard_size=8192, **options) == local
    assert stored("s3://bucket/same", s3) == digests(tmp_path / "out")
    assert not list((cache / "builds").iterdir())
    with proxy(s3, faults) as through:
        again = {"storage_options": {"endpoint_url": through}}
        assert pack_small(source, "s3://bucket/same", shard_size=8192, **again) == local
    assert not [seen for seen in faults.seen if seen.method == "PUT"]
    assert verify("s3://bucket/same", **options).findings == []


@pytest.mark.slow
def test_an_upload_that_fails_goes_on(
    s3: str, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest is there before all is; what arrived is not sent again."""
    monkeypatch.setenv("SHARDKIT_TRIES", "2")
    url = "s3://bucket/goes-on"

    def down(seen: Seen) -> str | None:
        return "error" if seen.method == "PUT" and "shard-00002" in seen.path else None

    with proxy(s3, Faults(down)) as through, pytest.raises(StorageError) as caught:
        pack_small(source, url, shard_size=4096, storage_options={"endpoint_url": through})
    assert caught.value.where == f"{url}/shard-00002.tar"
    assert "manifest.json" not in stored(url, s3)
    with proxy(s3, faults := Faults()) as through:
        reach = {"endpoint_url": through}
        manifest = pack_small(source, url, shard_size=4096, storage_options=reach)
    sent = [seen.path for seen in faults.seen if seen.method == "PUT"]
    assert not [path for path in sent if path.endswith(("shard-00000.tar", "shard-00001.tar"))]
    assert sent[-1].endswith("manifest.json")
    assert load_manifest(url, storage_options={"endpoint_url": s3}) == manifest


def test_another_dataset_is_there(s3: str, source: Path, cache: Path) -> None:
    """It is refused by what differs, and replaced when that is asked for."""
    url, options = "s3://bucket/other", {"storage_options": {"endpoint_url": s3}}
    pack_small(source, url, **options)
    before = stored(url, s3)
    with pytest.raises(BuildConflict, match="max_length"):
        pack_small(source, url, max_length=32, **options)
    assert stored(url, s3) == before
    manifest = pack_small(source, url, max_length=32, overwrite=True, **options)
    assert load_manifest(url, **options) == manifest


def test_nothing_older_stays_at_the_url(s3: str, source: Path, cache: Path) -> None:
    """A dataset of fewer shards leaves none of the ones that were there."""
    url = "s3://bucket/fewer"
    options: dict[str, Any] = {"storage_options": {"endpoint_url": s3}}
    many = pack_small(source, url, shard_size=4096, **options)
    few = pack_small(source, url, max_length=32, overwrite=True, **options)
    assert len(few.shards) < len(many.shards)
    assert verify(url, **options).findings == []


def test_a_run_killed_after_its_last_upload(
    s3: str, source: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rerun finds the dataset there, and removes the work folder."""
    url, options = "s3://bucket/killed", {"storage_options": {"endpoint_url": s3}}

    def kill(work: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shardkit.builder.upload._forget", kill)
        with pytest.raises(KeyboardInterrupt):
            pack_small(source, url, **options)
    assert list((cache / "builds").iterdir())
    pack_small(source, url, **options)
    assert not list((cache / "builds").iterdir())


def test_a_work_folder_that_may_be_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the current folder, nor one around it: refused before anything is built."""
    monkeypatch.chdir(tmp_path)
    for work in (".", "..", tmp_path):
        with pytest.raises(UsageError, match="work_dir"):
            pack_small(source, "s3://bucket/x", work_dir=work)
    assert not (tmp_path / ".building").exists()


def test_parts_need_a_folder(source: Path) -> None:
    """A share of a Slurm array is not built at a URL."""
    with pytest.raises(UsageError, match="folder"):
        pack_small(source, "s3://bucket/parts", part=(1, 2))


@pytest.mark.slow
def test_the_command(s3: str, source: Path, tmp_path: Path, cache: Path) -> None:
    """pack takes a URL and its options."""
    command = [sys.executable, "-m", "shardkit", "pack", str(source), "--out", "s3://bucket/cli"]
    command += ["--tokenizer", str(TOKENIZER), "--template", "qwen_chat", "--max-length", "64"]
    command += ["--storage-option", f"endpoint_url={s3}", "--work-dir", str(tmp_path / "work")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    assert "s3://bucket/cli" in done.stdout + done.stderr
    assert not (tmp_path / "work").exists()
    found = verify("s3://bucket/cli", storage_options={"endpoint_url": s3})
    assert found.findings == []
