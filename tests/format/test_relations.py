"""A manifest that vouches for itself may still be wrong: what contradicts itself is found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import alpaca_rows, pack_small, write_json
from sealed import sealed

from shardkit import load_manifest, verify
from shardkit.builder import append, merge_datasets
from shardkit.builder.repair import repair
from shardkit.errors import BadManifest, ShardkitError, UnsupportedVersion
from shardkit.format.manifest import Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several parts, with rejects."""
    folder = tmp_path_factory.mktemp("made")
    pack_small(write_json(folder / "rows.json", alpaca_rows(90, n_bad=5)), folder / "out")
    return folder


def edited(made: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose manifest was changed and sealed again."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(made / "out", out)
    fields = json.loads((out / "manifest.json").read_bytes())
    change(fields)
    (out / "manifest.json").write_bytes(sealed(fields))
    return out


def test_every_bit_of_the_manifest_counts(made: Path) -> None:
    """One flipped bit in each byte of manifest.json, and any cut, is refused by every reader."""
    data = (made / "out/manifest.json").read_bytes()
    rng = random.Random(1)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.randrange(8)
        with pytest.raises((BadManifest, UnsupportedVersion)):
            Manifest.from_bytes(bytes(broken), "m")
    for end in range(0, len(data), 7):
        with pytest.raises((BadManifest, UnsupportedVersion)):
            Manifest.from_bytes(data[:end], "m")
    with pytest.raises(BadManifest, match="own hash"):
        Manifest.from_bytes(data + b"\n", "m")


def test_a_manifest_from_before_is_refused_by_name(made: Path) -> None:
    """Without the line that vouches for it: written before 1.0 was fixed, pack again."""
    fields = json.loads((made / "out/manifest.json").read_bytes())
    del fields["sha256"]
    with pytest.raises(BadManifest, match=r"before format 1\.0 was fixed(.|\n)*Pack the data"):
        Manifest.from_bytes(json.dumps(fields).encode(), "m")


def test_a_nested_manifest_is_refused() -> None:
    """A hundred thousand brackets are a damaged manifest, not a RecursionError."""
    data = b'{"format": "shardkit", "version": "1.0", "x": ' + b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(BadManifest):
        Manifest.from_bytes(data + b"}", "m")


def _sources(fields: dict[str, Any]) -> None:
    fields["sources"][0]["sha256"] = "0" * 64


def _kept(fields: dict[str, Any]) -> None:
    fields["sources"][0]["n_kept"] += 1


def _parts(fields: dict[str, Any]) -> None:
    fields["parts"] = fields["parts"][:-1]


def _moved_parts(fields: dict[str, Any]) -> None:
    fields["parts"][1]["first_row"] += 1


def _rejects(fields: dict[str, Any]) -> None:
    fields["rejects"] = None


def _examples(fields: dict[str, Any]) -> None:
    fields["checks"]["duplicate"]["examples"] = [["elsewhere.json", 1]]


CONTRADICTIONS = {
    "sources": _sources,
    "sources[0]": _kept,
    "parts": _parts,
    "parts ": _moved_parts,
    "rejects": _rejects,
    "checks.duplicate": _examples,
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_found(made: Path, tmp_path: Path, name: str) -> None:
    """verify reports it; append, merge and repair refuse before they do anything."""
    out = edited(made, tmp_path, CONTRADICTIONS[name])
    before = sorted(path.name for path in out.rglob("*"))
    found = {f.message.split(":")[0] for f in verify(out).findings if f.code == "manifest"}
    assert f"$.{name.strip()}" in found
    more = write_json(tmp_path / "more.json", alpaca_rows(9, seed=3))
    pack_small(more, tmp_path / "more")
    doings: list[Callable[[], object]] = [
        lambda: append(out, more),
        lambda: merge_datasets([tmp_path / "more", out], tmp_path / "both"),
        lambda: repair(out, ["shard-00000.tar"], [made / "rows.json"]),
    ]
    for do in doings:
        with pytest.raises(BadManifest):
            do()
    assert sorted(path.name for path in out.rglob("*")) == before
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "rejects.jsonl"])
def test_files_beside_the_shards_count(made: Path, tmp_path: Path, name: str) -> None:
    """A tokenizer or list of rejected rows that is gone or changed: no append, no merge."""
    out = edited(made, tmp_path, lambda fields: None)
    more = write_json(tmp_path / "more.json", alpaca_rows(9, seed=3))
    with open(out / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(BadManifest, match=name):
        append(out, more)
    (out / name).unlink()
    with pytest.raises(BadManifest, match=f"gone(.|\n)*{name}|{name}(.|\n)*gone"):
        append(out, more)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "..", "a/b"])
def test_no_name_of_any_kind_leaves_the_folder(made: Path, tmp_path: Path, name: str) -> None:
    """The list of rejected rows and the tokenizer's files are named as shards are."""

    def rejects(fields: dict[str, Any]) -> None:
        fields["rejects"]["name"] = name

    def tokenizer(fields: dict[str, Any]) -> None:
        fields["tokenizer_files"][0]["name"] = name

    for i, change in enumerate((rejects, tokenizer)):
        (tmp_path / str(i)).mkdir()
        with pytest.raises(ShardkitError, match="may leave the dataset"):
            load_manifest(edited(made, tmp_path / str(i), change))
