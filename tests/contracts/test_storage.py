"""Every kind of place serves the same samples, through the same calls and commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, digests, pack_small, write_json
from servers import S3_ENVIRONMENT, file_server, s3_server
from synthetic import make_dataset, number_of

from shardkit import ShardDataset, ShardLoader, ShardMixture, ShardTable, load_manifest, verify
from shardkit.dataset import open_dataset
from shardkit.errors import BadManifest, IdentityMismatch, UsageError
from shardkit.report import Topology, summarize, trace_batch, view_sample
from shardkit.storage.cache_folder import default_limit

SIZES = [50, 30, 70, 20, 40, 60]
KINDS = ["file", "memory", "http", "s3"]
Served = Callable[[Path], tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module", params=KINDS)
def serve(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Puts a folder into a place of this kind; its URL and storage options."""
    root = tmp_path_factory.mktemp("served")
    if request.param == "file":
        yield lambda folder: (f"file://{folder}", {})
    elif request.param == "memory":
        yield lambda folder: (_put("memory", {}, folder, "/sets"), {})
    elif request.param == "http":
        with file_server(root) as url:
            yield lambda folder: (_copied(folder, root, url), {})
    else:
        with pytest.MonkeyPatch.context() as patch, s3_server() as url:
            for name, value in S3_ENVIRONMENT.items():
                patch.setenv(name, value)
            options = {"endpoint_url": url}
            yield lambda folder: (_put("s3", options, folder, "bucket/sets"), options)


def _copied(folder: Path, root: Path, url: str) -> str:
    if not (root / folder.name).exists():
        (root / folder.name).symlink_to(folder)
    return f"{url}/{folder.name}"


def _put(protocol: str, options: dict[str, Any], folder: Path, place: str) -> str:
    import fsspec

    fs = fsspec.filesystem(protocol, **options)
    if not fs.exists(place):
        fs.makedirs(place)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{place}/{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    return f"{protocol}://{place}/{folder.name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain"
    make_dataset(path, SIZES)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pack, with a tokenizer and rejects."""
    root = tmp_path_factory.mktemp("real")
    pack_small(write_json(root / "a.json", alpaca_rows(120, n_bad=3)), root / "real")
    return root / "real"


def numbers(batches: Any) -> list[int]:
    """The sample numbers in the batches, in order."""
    return [number_of(row.tolist()) for batch in batches for row in batch["input_ids"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader(serve: Served, folder: Path, tmp_path: Path, workers: int) -> None:
    """Two ranks read the same sequence as from the folder, each sample once."""
    url, options = serve(folder)
    found: list[int] = []
    for rank in range(2):
        place: dict[str, Any] = {"rank": rank, "world_size": 2, "shuffle": "window", "seed": 3}
        remote = ShardLoader(
            url, 5, num_workers=workers, storage_options=options, cache_dir=tmp_path, **place
        )
        local = numbers(ShardLoader(folder, 5, **place))
        assert numbers(remote) == local
        found += local
    assert len(found) == len(set(found)) == sum(SIZES)


def test_resume(serve: Served, folder: Path, tmp_path: Path) -> None:
    """A state that was made on the folder continues on the URL."""
    url, options = serve(folder)
    local = ShardLoader(folder, 5, rank=0, world_size=1, shuffle="window")
    batches = iter(local)
    for _ in range(17):
        next(batches)
    remote = ShardLoader(
        url, 5, rank=0, world_size=1, shuffle="window", storage_options=options, cache_dir=tmp_path
    )
    remote.load_state_dict(local.state_dict())
    assert numbers(remote) == numbers(batches)


def test_table_mixture_and_groups(serve: Served, folder: Path, tmp_path: Path) -> None:
    """Random access, a mixture and length groups read through the same cache."""
    url, options = serve(folder)
    reach: dict[str, Any] = {"storage_options": options, "cache_dir": tmp_path}
    table = ShardTable(url, **reach)
    assert [number_of(table[i]["input_ids"].tolist()) for i in (0, 269, 77)] == [0, 269, 77]
    mixture = ShardMixture({url: 1.0}, rank=0, world_size=1, **reach)
    assert sorted(numbers(ShardLoader(mixture, 5))) == list(range(270))
    grouped = ShardLoader(url, 5, rank=0, world_size=1, group_by_length=True, **reach)
    assert sorted(numbers(grouped)) == list(range(270))
    plain = ShardDataset(url, rank=0, world_size=1, **reach)
    assert sorted(number_of(s["input_ids"].tolist()) for s in plain) == list(range(270))


def test_manifest_reports_and_verify(serve: Served, packed: Path, tmp_path: Path) -> None:
    """What is said of a URL is what is said of the folder."""
    url, options = serve(packed)
    reach: dict[str, Any] = {"storage_options": options, "cache_dir": tmp_path}
    assert load_manifest(url, storage_options=options) == load_manifest(packed)
    here, there = open_dataset(packed), open_dataset(url, **reach)
    assert summarize(there) == summarize(here)
    assert view_sample(there, 0, 3) == view_sample(here, 0, 3)
    topology = Topology(world_size=2, batch_size=4, shuffle="window")
    traced = [trace_batch(d, topology, step=2, rank=1) for d in (here, there)]
    assert traced[0] == traced[1]
    workers = 1 if url.startswith("memory") else 2  # another process has another memory
    assert verify(url, workers=workers, **reach).findings == []


def test_refusals(serve: Served, packed: Path, folder: Path, tmp_path: Path) -> None:
    """No dataset, and another template: refused by name before the first batch."""
    url, options = serve(packed)
    reach: dict[str, Any] = {"storage_options": options, "cache_dir": tmp_path}
    with pytest.raises(BadManifest, match="no dataset here"):
        load_manifest(f"{url}/nothing", storage_options=options)
    with pytest.raises(IdentityMismatch, match="max_length"):
        ShardLoader(url, 4, rank=0, world_size=1, max_length=99, **reach)
    ShardLoader(url, 4, rank=0, world_size=1, template="qwen_chat", **reach)


def test_the_command(serve: Served, packed: Path, tmp_path: Path) -> None:
    """inspect and verify take URLs, with options from the command line and the environment."""
    url, options = serve(packed)
    if url.startswith("memory"):
        pytest.skip("another process has another memory")
    given = [f"--storage-option={name}={value}" for name, value in options.items()]
    for command in (["verify"], ["inspect"], ["inspect", "--sample", "5"]):
        whole = [*command[:1], url, *command[1:], "--json", "--cache-dir", str(tmp_path), *given]
        done = subprocess.run(
            [sys.executable, "-m", "shardkit", *whole],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    shard = subprocess.run(
        [sys.executable, "-m", "shardkit", "inspect", f"{url}/shard-00000.tar", "--json", *given],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "SHARDKIT_CACHE": str(tmp_path)},
    )
    assert json.loads(shard.stdout)["name"] == "shard-00000.tar"


def test_the_source_is_never_touched(serve: Served, folder: Path, tmp_path: Path) -> None:
    """A cache with no room for two shards evicts copies, and nothing else."""
    url, options = serve(folder)
    before = digests(folder)
    loader = ShardLoader(
        url,
        5,
        rank=0,
        world_size=1,
        storage_options=options,
        cache_dir=tmp_path,
        cache_limit=90_000,
    )
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert sorted(numbers(loader)) == list(range(270))
    assert digests(folder) == before
    if not url.startswith("file"):
        assert load_manifest(url, storage_options=options).n_samples == 270


def test_a_limit_that_is_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the environment is read as every size, or refused."""
    for text, n_bytes in (("500G", 500 << 30), ("1.5GiB", 3 << 29), ("64MB", 64_000_000)):
        monkeypatch.setenv("SHARDKIT_CACHE_LIMIT", text)
        assert default_limit() == n_bytes
    monkeypatch.setenv("SHARDKIT_CACHE_LIMIT", "lots")
    with pytest.raises(UsageError, match="SHARDKIT_CACHE_LIMIT"):
        open_dataset("memory://none/at/all")
