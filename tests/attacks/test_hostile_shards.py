"""Hostile datasets: each test says what it tries, and that it is refused."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from campaign.manifest_forms import forge
from make_samples import make_samples
from records import TOKENIZER, alpaca_rows, write_json
from sealed import sealed
from synthetic import make_recipe

from shardkit import ShardLoader, pack, verify
from shardkit.dataset import open_dataset
from shardkit.errors import BadManifest, CorruptShard, TokenizerError, UnsupportedVersion
from shardkit.format.canonical import canonical_json, sha256_of, xxh3_hex
from shardkit.format.footer import Extent, Footer
from shardkit.format.manifest import Manifest, fingerprint_of
from shardkit.format.shard import Shard, ShardWriter
from shardkit.report.page.marks import Marker


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard-00000.tar"
    with ShardWriter(path, recipe={}) as writer:
        writer.write(make_samples([5, 60], with_images=True))
        writer.close()
    return path


def with_index(path: Path, data: bytes) -> Path:
    """The shard with other bytes for its index and a footer whose hashes agree."""
    old = Shard.open(path).footer
    stream = bytearray(path.read_bytes())
    stream[old.index.offset : old.index.offset + len(data)] = data
    footer = Footer(
        n_samples=old.n_samples,
        n_rows=2,
        n_bytes=len(stream),
        manifest=old.manifest,
        index=Extent(old.index.offset, len(data), xxh3_hex(data)),
        segments=None,
    )
    stream[-1536:-1024] = footer.to_block()
    path.write_bytes(stream)
    return path


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/passwd", "a/b.tar", "..", ".hidden", "", "x\0.tar", "a" * 200]
)
def test_a_shard_name_cannot_leave_the_dataset(name: str) -> None:
    """Tried: a manifest, its hashes right, that names a file outside the folder."""
    layout = {"shard_size": 1, "part_rows": 1, "part_bytes": 1}
    identity: dict[str, object] = {"format": 1, "recipe": make_recipe(), "sources": []}
    identity |= {"layout": layout, "shuffle_seed": None}
    entry = {
        "name": name,
        "n_samples": 1,
        "n_tokens": 1,
        "n_supervised": 1,
        "n_images": 0,
        "length": 1,
        "longest": 1,
        "n_bytes": 1,
        "sha256": "",
        "footer": "0" * 16,
    }
    fields = {
        "format": "shardkit",
        "version": "1.0",
        "fingerprint": fingerprint_of(identity),
        "content": sha256_of([[1, "0" * 16]]),
        "identity": identity,
        "writer": "",
        "engine": "",
        "sources": [],
        "shards": [entry],
    }
    with pytest.raises(BadManifest, match=r"shards\[0\]\.name"):
        Manifest.from_bytes(sealed(fields), "m")


def test_a_pickled_index_is_not_unpickled(shard: Path) -> None:
    """Tried: an object array as index, which numpy.load would run code for if asked to."""
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptShard, match="not the array"):
        Shard.open(with_index(shard, file.getvalue()))


def test_offsets_beyond_the_file_are_refused(shard: Path) -> None:
    """Tried: an index, its hash right, whose spans wrap around 2^64."""
    old = Shard.open(shard)
    index = old.index.copy()
    index["span"][1] = np.uint64(2**64 - 512)
    place = old.footer.index
    head = shard.read_bytes()[place.offset : place.offset + place.size - index.nbytes]
    with pytest.raises(CorruptShard, match="index does not fit"):
        Shard.open(with_index(shard, head + index.tobytes()))


def test_places_beyond_the_file_are_refused(shard: Path) -> None:
    """Tried: a footer, its hash right, that puts the index outside the file."""
    old = Shard.open(shard).footer
    for place in [Extent(10**15, 100, ""), Extent(512, 10**15, ""), Extent(512, -5, "")]:
        footer = Footer(
            n_samples=2,
            n_rows=2,
            n_bytes=old.n_bytes,
            manifest=old.manifest,
            index=place,
            segments=None,
        )
        data = bytearray(shard.read_bytes())
        data[-1536:-1024] = footer.to_block()
        shard.write_bytes(data)
        with pytest.raises(CorruptShard, match=r"outside the file|\$\.index"):
            Shard.open(shard)


def test_a_footer_of_other_types_is_refused(shard: Path) -> None:
    """Tried: footers, their hashes right, that hold something else than the format says."""
    old = Shard.open(shard).footer
    texts = [
        canonical_json(old).replace(b'"n_samples":2', b'"n_samples":"2"'),
        canonical_json(old).replace(b'"n_rows":2', b'"n_rows":\xff'),
        b'{"format":"shardkit","version":"1.0"}',
    ]
    for text in texts:
        body = text[:-1]
        block = (body + b',"xxh3":"' + xxh3_hex(body).encode() + b'"}').ljust(511) + b"\n"
        data = bytearray(shard.read_bytes())
        data[-1536:-1024] = block
        shard.write_bytes(data)
        with pytest.raises((CorruptShard, UnsupportedVersion), match=r"shard-00000\.tar"):
            Shard.open(shard)


def test_a_zstd_bomb_is_not_blown_up(tmp_path: Path) -> None:
    """Tried: a frame that grows to 64 MiB where the seek table says 2 KiB."""
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))
    table = struct.pack("<II", len(bomb), 2048) + struct.pack("<IBI", 1, 0, 0x8F92EAB1)
    path = tmp_path / "shard-00000.tar.zst"
    path.write_bytes(bomb + struct.pack("<II", 0x184D2A5E, len(table)) + table)
    with pytest.raises(CorruptShard, match="not of the size"):
        Shard.open(path)


def test_a_seek_table_that_lies_is_refused(tmp_path: Path) -> None:
    """Tried: more frames than the file has bytes for."""
    path = tmp_path / "shard-00000.tar.zst"
    path.write_bytes(bytes(1000) + struct.pack("<IBI", 2**32 - 1, 0, 0x8F92EAB1))
    with pytest.raises(CorruptShard, match="seek table"):
        Shard.open(path)


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_shards_list_documents_as_the_recipe_says(tmp_path: Path, packing: str) -> None:
    """Tried: a manifest, its hash right, whose recipe packs what is not packed, or the reverse."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(20))
    out = tmp_path / "out"
    pack(source, out, tokenizer=TOKENIZER, template="qwen_chat", max_length=64, packing=packing)
    fields = json.loads((out / "manifest.json").read_bytes())
    fields["identity"]["recipe"]["packing"] = "concat" if packing == "none" else "none"
    (out / "manifest.json").write_bytes(forge(fields))

    with pytest.raises(CorruptShard, match=r"(?s)segments.*verify"):
        next(iter(ShardLoader(out, 2)))
    assert "packing" in {one.code for one in verify(out).findings}


def test_a_tokenizer_file_that_is_none(tmp_path: Path) -> None:
    """Tried: a dataset whose tokenizer.json is a folder; it cannot be opened, also by root."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(5))
    pack(source, tmp_path / "out", tokenizer=TOKENIZER, template="qwen_chat", max_length=64)
    dataset = open_dataset(tmp_path / "out")
    path = dataset.tokenizer_folder() / "tokenizer.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Marker(dataset)
