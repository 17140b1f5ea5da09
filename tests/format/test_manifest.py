"""The manifest: read back equal, refused with the path of what is wrong."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from sealed import sealed
from synthetic import make_recipe

from shardkit import load_manifest
from shardkit.errors import BadManifest, UnsupportedVersion
from shardkit.format.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    SourceEntry,
    content_of,
    fingerprint_of,
)

IDENTITY: dict[str, Any] = {
    "format": 1,
    "recipe": make_recipe(),
    "sources": [],
    "layout": {"shard_size": 1, "part_rows": 1, "part_bytes": 1},
    "shuffle_seed": None,
}


def make_manifest(n_shards: int = 2) -> Manifest:
    shards = [
        ShardEntry(
            name=f"shard-{i:05d}.tar",
            n_samples=10,
            n_tokens=100,
            n_supervised=50,
            n_images=0,
            length=100,
            longest=20,
            n_bytes=4096,
            sha256="0" * 64,
            footer=f"{i:016x}",
        )
        for i in range(n_shards)
    ]
    return Manifest(
        fingerprint=fingerprint_of(IDENTITY),
        content=content_of(shards),
        identity=IDENTITY,
        writer="shardkit test",
        engine="hf",
        sources=[SourceEntry(name="ä.json", sha256="1" * 64, n_bytes=5, n_rows=20, n_kept=20)],
        shards=shards,
        tokenizer_files=[FileEntry(name="tokenizer.json", sha256="2" * 64, n_bytes=7)],
    )


def broken(change: dict[str, Any]) -> bytes:
    fields = json.loads(make_manifest().to_bytes())
    fields.update(change)
    return sealed(fields)


def test_round_trip(tmp_path: Path) -> None:
    """A manifest written and read is equal, from its folder or by its own path."""
    manifest = make_manifest()
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path / "manifest.json") == manifest
    assert manifest.n_samples == 20
    assert manifest.sizes.tolist() == [10, 10]


def test_many_shards_set_off_no_search_for_cycles() -> None:
    """Reading 5,000 entries leaves Python's collector alone; beside torch it takes longest."""
    data = make_manifest(5000).to_bytes()
    collected: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collected.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        manifest = Manifest.from_bytes(data, "m")
    finally:
        gc.callbacks.remove(note)
    assert len(manifest.shards) == 5000
    assert collected.count("start") <= 1


def test_unknown_minor_fields_are_kept() -> None:
    """A field of a later minor version survives reading and writing."""
    data = broken({"version": "1.9", "later": {"a": [1]}})
    manifest = Manifest.from_bytes(data, "m")
    assert json.loads(manifest.to_bytes())["later"] == {"a": [1]}


def test_an_unknown_major_version_is_refused() -> None:
    """Both versions are named."""
    with pytest.raises(UnsupportedVersion, match=r"shardkit 1\.x.*shardkit 2\.0"):
        Manifest.from_bytes(broken({"version": "2.0"}), "m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": IDENTITY | {"recipe": make_recipe(packed=True)}}, "fingerprint"),
        ({"identity": {}}, "identity"),
        (
            {"identity": IDENTITY | {"recipe": make_recipe() | {"images": 1.5}}},
            r"\$\.recipe\.images",
        ),
        ({"identity": IDENTITY | {"recipe": make_recipe(packing=None)}}, r"\$\.recipe\.packing"),
        ({"identity": IDENTITY | {"builds": [{"sources": 5}]}}, r"\$\.builds\[0\]\.sources"),
        ({"content": "0" * 64}, "content"),
        ({"shards": 5}, r"shards"),
        ({"engine": 5}, r"\$\.engine"),
        (
            {"tokenizer_files": [{"name": "../x", "sha256": "", "n_bytes": 1}]},
            r"\$\.tokenizer_files\[0\]\.name",
        ),
        (
            {"tokenizer_files": [{"name": "x", "sha256": "", "n_bytes": -1}]},
            r"tokenizer_files\[0\]\.n_bytes",
        ),
        (
            {"sources": [{"name": "x", "sha256": "", "n_bytes": 1, "n_rows": 2**63, "n_kept": 0}]},
            r"sources\[0\]\.n_rows",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    """A manifest that is not what the format says is refused with the path of the field."""
    with pytest.raises(BadManifest, match=words):
        Manifest.from_bytes(broken(change), "m")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": "shardkit"'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Cut, empty or foreign files are refused, not crashed on."""
    with pytest.raises((BadManifest, UnsupportedVersion)):
        Manifest.from_bytes(data, "m")


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    """The error says that nothing is there and what to give."""
    with pytest.raises(BadManifest, match=r"no manifest\.json"):
        load_manifest(tmp_path)
