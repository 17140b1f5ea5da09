"""P4: no flipped bit, cut file, missing or swapped shard is ever served as data."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from sealed import sealed
from synthetic import make_dataset, make_recipe

from shardkit.errors import BadManifest, CorruptShard, MissingShard, ShardkitError
from shardkit.format.shard import Shard
from shardkit.loader import ShardDataset, ShardLoader, ShardTable

SIZES = [6, 9, 4]
N_FLIPS = 500


def all_samples(path: Path) -> list[tuple[list[int], ...]]:
    """Every sample of the dataset, through the loader, in file order."""
    loader = ShardLoader(
        path, 5, shuffle=False, rank=0, world_size=1, drop_last=False, sample_keys=True, prefetch=2
    )
    found = []
    for batch in loader:
        names = [n for n in ("input_ids", "labels", "position_ids") if n in batch]
        found += [tuple(batch[n][i].tolist() for n in names) for i in range(5)]
    return found


def samples_or_error(path: Path) -> tuple[list[tuple[list[int], ...]], str | None]:
    """Every sample, or where the error is that was raised instead."""
    try:
        return all_samples(path), None
    except CorruptShard as err:
        return [], err.where or ""


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over (never overwrite: that is sometimes no change)."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("compression", "options"),
    [("none", {}), ("none", {"packed": True, "n_images": {2: 2, 8: 1}}), ("zstd:3", {})],
)
def test_one_flipped_bit_is_never_served(
    tmp_path: Path, compression: str, options: dict[str, Any]
) -> None:
    """At 500 random places: an error that names the shard, and the sample when the bit is in it,
    or no sample changes."""
    manifest = make_dataset(tmp_path, SIZES, compression=compression, **options)
    golden = all_samples(tmp_path)
    chance = random.Random(20261123)
    refused = 0
    for _ in range(N_FLIPS):
        entry = chance.choice(manifest.shards)
        path = tmp_path / entry.name
        whole = path.read_bytes()
        bit = chance.randrange(8 * len(whole))
        hit = sample_at(path, bit // 8)
        flip(path, bit)
        found, where = samples_or_error(tmp_path)
        if where is None:
            assert found == golden
            assert hit is None, f"bit {bit} of {entry.name}, in sample {hit}, was not noticed"
        else:
            refused += 1
            assert entry.name in where
            assert hit is None or f"sample {hit:08d}" in where
        path.write_bytes(whole)

    assert refused > N_FLIPS // 2
    assert all_samples(tmp_path) == golden


def sample_at(path: Path, offset: int) -> int | None:
    """The sample of an uncompressed shard in which a byte lies; None for all other bytes."""
    shard = Shard.open(path)
    if shard.is_compressed:
        return None
    for row, entry in enumerate(shard.index):
        if entry["offset"] <= offset < entry["offset"] + entry["span"]:
            return row
    return None


def test_one_flipped_bit_of_the_manifest(tmp_path: Path) -> None:
    """A damaged manifest is refused, or what it says of the samples is unchanged."""
    make_dataset(tmp_path, SIZES)
    golden = all_samples(tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    chance = random.Random(1)
    refused = 0
    for _ in range(N_FLIPS):
        flip(path, chance.randrange(8 * len(whole)))
        try:
            assert all_samples(tmp_path) == golden
        except ShardkitError:
            refused += 1
        path.write_bytes(whole)

    assert refused > N_FLIPS // 4


@pytest.mark.parametrize("n_bytes", [0, 1, 511, 512, 3000, -1, -512])
def test_a_cut_file_is_refused_before_the_first_batch(tmp_path: Path, n_bytes: int) -> None:
    """The size says so, at once and by name."""
    make_dataset(tmp_path, SIZES)
    path = tmp_path / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CorruptShard, match=r"shard-00001\.tar"):
        next(iter(ShardLoader(tmp_path, 1, shuffle=False, rank=0, world_size=1)))


def test_a_missing_shard_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    """By loader, dataset and table, by name."""
    make_dataset(tmp_path, SIZES)
    (tmp_path / "shard-00002.tar").unlink()
    with pytest.raises(MissingShard, match=r"shard-00002\.tar"):
        next(iter(ShardLoader(tmp_path, 1, shuffle=False, rank=0, world_size=1)))
    with pytest.raises(MissingShard, match=r"shard-00002\.tar"):
        next(iter(ShardDataset(tmp_path, shuffle=False, rank=0, world_size=1)))
    with pytest.raises(MissingShard, match=r"shard-00002\.tar"):
        ShardTable(tmp_path)[16]


def test_swapped_shards_are_refused(tmp_path: Path) -> None:
    """Two shards of one size and content type under each other's name are noticed."""
    make_dataset(tmp_path, [5, 5], lengths=[7] * 10)
    one, two = tmp_path / "shard-00000.tar", tmp_path / "shard-00001.tar"
    assert one.stat().st_size == two.stat().st_size
    shutil.move(one, tmp_path / "x")
    shutil.move(two, one)
    shutil.move(tmp_path / "x", two)
    with pytest.raises(CorruptShard, match="of another dataset, or swapped"):
        all_samples(tmp_path)


def test_a_shard_of_another_dataset_is_refused(tmp_path: Path) -> None:
    """Same name, size and samples, but packed by another recipe: the footer tells."""
    make_dataset(tmp_path / "a", [5], recipe=make_recipe(max_length=63))
    make_dataset(tmp_path / "b", [5], recipe=make_recipe(max_length=64))
    sizes = [(tmp_path / name / "shard-00000.tar").stat().st_size for name in "ab"]
    assert sizes[0] == sizes[1]
    shutil.copy(tmp_path / "a" / "shard-00000.tar", tmp_path / "b" / "shard-00000.tar")
    with pytest.raises(CorruptShard, match="of another dataset, or swapped"):
        all_samples(tmp_path / "b")


def test_an_edited_shard_list_is_refused(tmp_path: Path) -> None:
    """Counts that do not fit the content hash are noticed when the manifest is read."""
    make_dataset(tmp_path, SIZES)
    path = tmp_path / "manifest.json"
    fields = json.loads(path.read_bytes())
    fields["shards"][0]["n_samples"] -= 1
    path.write_bytes(sealed(fields))
    with pytest.raises(BadManifest, match="content"):
        all_samples(tmp_path)
