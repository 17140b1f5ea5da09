"""What a first batch costs, counted: files opened, manifests read, modules imported. No clock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_dataset

from shardkit import dataset as dataset_module
from shardkit.format.codec import PlainStream, open_stream
from shardkit.loader import ShardLoader

N_SHARDS = 60
BATCH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 samples in 60 shards."""
    path = tmp_path_factory.mktemp("many")
    make_dataset(path, [8] * N_SHARDS)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened from now on."""
    names: list[str] = []
    read = dataset_module.read_manifest

    def counting(path: str | Path) -> Any:
        names.append(Path(path).name)
        return open_stream(path)

    def reading(store: Any) -> Any:
        names.append("manifest.json")
        return read(store)

    monkeypatch.setattr("shardkit.format.shard.open_stream", counting)
    monkeypatch.setattr(dataset_module, "read_manifest", reading)
    return names


@pytest.mark.parametrize("part", [0, 0.5, 0.9])
def test_a_batch_opens_its_own_shards_only(dataset: Path, opened: list[str], part: float) -> None:
    """At the start of an epoch, and resumed anywhere in it; each file once."""
    loader = ShardLoader(dataset, BATCH, rank=0, world_size=1, prefetch=0, sample_keys=True)
    assert opened == ["manifest.json"]
    loader.load_state_dict(loader.state_dict() | {"position": int(len(loader) * part) * BATCH})

    batch = next(iter(loader))

    shards = sorted({key.split("/")[0] for key in batch["keys"]})
    assert sorted(opened[1:]) == shards


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open some 20 files more than it has open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_epoch_opens_each_shard_once(dataset: Path, opened: list[str], few_files: None) -> None:
    """Also where a process may open fewer files than there are shards, in a full shuffle."""
    loader = ShardLoader(dataset, BATCH, rank=0, world_size=1, prefetch=0)
    assert sum(len(batch["input_ids"]) for batch in loader) == 8 * N_SHARDS
    assert len(opened) == len({*opened}) == 1 + N_SHARDS


def test_a_map_keeps_no_file_open_and_cannot_be_written(dataset: Path) -> None:
    """It is gone from the process's memory when nothing views it any more."""
    path = dataset / "shard-00000.tar"
    before = os.listdir("/proc/self/fd")

    stream = open_stream(path)
    view = stream.read(0, stream.size)

    assert view == path.read_bytes()
    assert view.readonly
    assert not isinstance(stream, PlainStream) or not stream.buffer.flags.writeable
    assert os.listdir("/proc/self/fd") == before
    assert str(path) in Path("/proc/self/maps").read_text()
    del stream, view
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_nothing_is_imported_between(dataset: Path) -> None:
    """What the first batch needs came with shardkit.loader."""
    code = (
        "import sys, torch, shardkit.loader;"
        "before = {*sys.modules};"
        "from shardkit.loader import ShardLoader;"
        "batches = iter(ShardLoader(sys.argv[1], 8, rank=0, world_size=1));"
        "next(batches);"
        "print(sorted({*sys.modules} - before))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(dataset)], check=True, capture_output=True, text=True
    )
    assert found.stdout == "[]\n"
