"""Repair: what was lost or damaged comes back byte for byte from the source, or not at all."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import alpaca_rows, digests, pack_small, write_json, write_llava

from shardkit.builder.repair import repair
from shardkit.check import verify
from shardkit.dataset import load_manifest
from shardkit.errors import BadInput, BuildConflict, BuildFailed, TokenizerError

PLAIN: dict[str, Any] = {"shard_size": 20_000, "part_rows": 40}
KINDS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "shuffled": {**PLAIN, "shuffle_seed": 3},
    "concat": {**PLAIN, "shard_size": 8_000, "packing": "concat", "max_length": 96},
    "best-fit": {**PLAIN, "shard_size": 8_000, "packing": "best-fit", "max_length": 96},
    "zstd": {**PLAIN, "compression": "zstd"},
    "tokenizer": {**PLAIN, "template": "tokenizer"},
}


def damage(out: Path, *, n_gone: int, n_flipped: int) -> list[str]:
    """Delete some shards and flip a bit in others; the names of all of them."""
    names = [entry.name for entry in load_manifest(out).shards]
    chosen = random.Random(5).sample(names, n_gone + n_flipped)
    for name in chosen[:n_gone]:
        (out / name).unlink()
    for name in chosen[n_gone:]:
        data = bytearray((out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (out / name).write_bytes(data)
    return sorted(chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_come_back_byte_for_byte(tmp_path: Path, kind: str) -> None:
    """Of 20 shards and more, two are deleted and three damaged: all files are again as before."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(290, n_bad=5))
    out = tmp_path / "out"
    manifest = pack_small(source, out, **KINDS[kind])
    assert len(manifest.shards) >= (7 if kind in ("zstd", "best-fit", "concat") else 20)
    before = digests(out)
    damaged = damage(out, n_gone=2, n_flipped=3)
    assert verify(out).damaged_shards == damaged
    untouched = {p: p.stat().st_mtime_ns for p in out.glob("*.tar*") if p.name not in damaged}

    assert repair(out, damaged, [source]) == damaged

    assert digests(out) == before
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert verify(out, sources=[source]).findings == []


def test_pictures_come_back(tmp_path: Path) -> None:
    """LLaVA data needs --image-root, and is whole again with it; also with several sources."""
    a, b = write_llava(tmp_path / "a", 30), write_llava(tmp_path / "b", 30, seed=1)
    b = b.rename(tmp_path / "a" / "more.json")
    for picture in (tmp_path / "b/images").iterdir():
        shutil.copy(picture, tmp_path / "a/images" / picture.name)
    out = tmp_path / "out"
    images = tmp_path / "a/images"
    options = {"image_root": images, "image_size": 16, "image_tokens": 3, "part_rows": 15}
    pack_small(a.parent, out, shard_size=20_000, max_length=None, **options)
    before = digests(out)
    damaged = damage(out, n_gone=2, n_flipped=2)
    with pytest.raises(BadInput, match="--image-root"):
        repair(out, damaged, [a, b])
    with pytest.raises(BadInput, match=r"more\.json"):
        repair(out, damaged, [a], image_root=images)

    assert repair(out, damaged, [b, a], image_root=images) == damaged

    assert digests(out) == before


def test_a_changed_picture_is_refused(tmp_path: Path) -> None:
    """A shard that would come out otherwise replaces nothing."""
    source = write_llava(tmp_path, 30)
    out, images = tmp_path / "out", tmp_path / "images"
    pack_small(source, out, shard_size=20_000, image_root=images, part_rows=15)
    (out / "shard-00000.tar").unlink()
    before = digests(out)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "4-0.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "4-0.jpg")
    with pytest.raises(BuildFailed, match="does not come out as it was"):
        repair(out, ["shard-00000.tar"], [source], image_root=images)
    assert digests(out) == before


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Path]:
    """(dataset, source), one shard gone."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(100))
    pack_small(source, tmp_path / "out", **PLAIN)
    (tmp_path / "out/shard-00002.tar").unlink()
    return tmp_path / "out", source


def test_another_source_is_refused(packed: tuple[Path, Path]) -> None:
    """A file with one changed byte is not the source; nothing is written."""
    out, source = packed
    before = digests(out)
    source.write_bytes(source.read_bytes().replace(b"Task 7:", b"Task 8:"))
    with pytest.raises(BadInput, match=r"rows\.json.*not those that were packed"):
        repair(out, ["shard-00002.tar"], [source])
    with pytest.raises(BadInput, match="no such input"):
        repair(out, ["shard-00002.tar"], [source.with_name("gone.json")])
    assert digests(out) == before


def test_a_moved_source_is_accepted(packed: tuple[Path, Path]) -> None:
    """Sources are known by what they hold, not by their name or place."""
    out, source = packed
    moved = source.rename(source.with_name("renamed.json"))
    assert repair(out, ["shard-00002.tar"], [moved]) == ["shard-00002.tar"]
    assert verify(out).findings == []


def test_another_tokenizer_or_template_is_refused(packed: tuple[Path, Path]) -> None:
    """What goes in must be what went in, by its digests."""
    out, source = packed
    with pytest.raises(BuildConflict, match="template"):
        repair(out, ["shard-00002.tar"], [source], template="vicuna")
    file = out / "tokenizer/tokenizer.json"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TokenizerError):
        repair(out, ["shard-00002.tar"], [source])
    assert not (out / "shard-00002.tar").exists()


def test_nothing_is_left_behind(packed: tuple[Path, Path]) -> None:
    """After a repair, and after a refused one, no working folder lies in the dataset."""
    out, source = packed
    with pytest.raises(BuildConflict):
        repair(out, ["shard-00002.tar"], [source], template="vicuna")
    repair(out, ["shard-00002.tar"], [source])
    assert {path.name for path in out.iterdir() if "shard-" not in path.name} == {
        "manifest.json",
        "rejects.jsonl",
        "tokenizer",
    }
