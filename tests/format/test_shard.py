"""Shards: the bytes of the specification, read back, and refused when they are not right."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from later import later_shard
from make_samples import make_samples
from synthetic import make_dataset

from shardkit.errors import BadInput, CorruptShard, MissingShard, ShardkitError, UnsupportedVersion
from shardkit.format.canonical import xxh3_hex
from shardkit.format.footer import Extent, Footer, read_footer
from shardkit.format.layout import MAX_SAMPLE_TOKENS
from shardkit.format.render import sample_spans
from shardkit.format.samples import (
    SEGMENT_DTYPE,
    Samples,
    StoredImage,
    position_ids,
    slice_samples,
)
from shardkit.format.shard import Shard, ShardWriter

VECTORS = Path(__file__).resolve().parents[2] / "docs/vectors"
VECTOR = json.loads((VECTORS / "shard.json").read_text())
RECIPE = {"packing": "none"}


def write(path: Path, samples: Samples, *cuts: int, compression: str = "none") -> Shard:
    recipe = RECIPE if samples.segments is None else {"packing": "concat"}
    with ShardWriter(path, recipe=recipe, compression=compression) as writer:
        bounds = [0, *cuts, len(samples)]
        for first, last in itertools.pairwise(bounds):
            writer.write(slice_samples(samples, first, last))
        entry = writer.close()
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry.n_bytes == path.stat().st_size
    return Shard.open(path, expected=entry)


def assert_same(shard: Shard, samples: Samples) -> None:
    assert shard.n_samples == len(samples)
    assert np.array_equal(shard.index["source"], samples.source)
    assert np.array_equal(shard.index["record"], samples.record)
    assert np.array_equal(shard.index["n_cut"], samples.n_cut)
    for i in range(len(samples)):
        part = slice(int(samples.starts[i]), int(samples.starts[i + 1]))
        tokens = shard.tokens(i)
        assert np.array_equal(tokens[0], samples.ids[part])
        assert np.array_equal(tokens[1], samples.labels[part])
        assert shard.index["n_supervised"][i] == np.count_nonzero(samples.labels[part] != -100)
        firsts = shard.segments_of(i)["start"] if shard.has_segments else [0]
        assert shard.index["n_first"][i] == np.count_nonzero(tokens[1][firsts] != -100)
        images = samples.images_of(i)
        assert [bytes(data) for data in shard.images(i)] == [image.data for image in images]
        if images:
            meta = shard.meta(i)
            assert meta is not None
            assert meta.ids == samples.row_ids[i]
            assert [(m.name, m.width, m.height) for m in meta.images] == [
                (image.name, image.width, image.height) for image in images
            ]
        if samples.segments is not None:
            segments = samples.segments[samples.segments["sample"] == i]
            assert np.array_equal(shard.segments_of(i)["length"], segments["length"])
            squares = sum(int(n) ** 2 for n in segments["length"])
            assert int(shard.index["cost2"][i]) == squares
        assert shard.index["length"][i] == len(tokens[0])


def test_the_writer_makes_the_vector(tmp_path: Path) -> None:
    """The shard of the specification's vector, made by tarfile and numpy.save, byte for byte."""
    rows = VECTOR["tokens"]
    samples = Samples(
        ids=np.array([i for row in rows for i in row[0]], np.int32),
        labels=np.array([i for row in rows for i in row[1]], np.int32),
        starts=np.cumsum([0] + [len(row[0]) for row in rows]),
        source=np.zeros(2, np.uint32),
        record=np.array(VECTOR["records"], np.uint64),
        n_cut=np.array(VECTOR["n_cut"], np.uint32),
    )
    path = tmp_path / "shard-00000.tar"
    with ShardWriter(path, recipe=VECTOR["recipe"]) as writer:
        writer.write(samples)
        entry = writer.close()
    assert path.read_bytes().hex() == VECTOR["hex"]
    assert entry.footer == VECTOR["footer_xxh3"]


def test_the_writer_makes_the_packed_vector(tmp_path: Path) -> None:
    """A pack with a picture: segments, pieces, lengths in the model, KEY.json, byte for byte."""
    vector = json.loads((VECTORS / "packed.json").read_text())
    ids, labels = vector["tokens"]
    image = StoredImage("x/b.jpg", bytes.fromhex(vector["image"]), "jpg", 2, 1)
    samples = Samples(
        ids=np.array(ids, np.int32),
        labels=np.array(labels, np.int32),
        starts=np.array([0, 5]),
        source=np.array([1], np.uint32),
        record=np.array([3], np.uint64),
        n_cut=np.array([7], np.uint32),
        images=((image,),),
        row_ids=((None, "b"),),
        segments=np.array([tuple(row) for row in vector["segments"]], SEGMENT_DTYPE),
    )
    path = tmp_path / "shard-00000.tar"
    with ShardWriter(path, recipe=vector["recipe"]) as writer:
        writer.write(samples)
        entry = writer.close()
    assert path.read_bytes().hex() == vector["hex"]
    assert (entry.footer, entry.length, entry.longest) == (vector["footer_xxh3"], 8, 8)
    assert Shard.open(path, expected=entry).recipe == vector["recipe"]


def test_pictures_that_are_expanded_are_not_counted_twice(tmp_path: Path) -> None:
    """With a processor's own tokens in the row, the length is that of the row."""
    image = StoredImage("a", b"x", "png", 9, 9, tokens=3, grid=(1, 2, 6), spans=((1, 5),))
    samples = dataclasses.replace(make_samples([8]), images=((image,),), row_ids=(("r",),))
    path = tmp_path / "a.tar"
    recipe = {"images": {"processor": {"family": "x"}, "image_token": int(samples.ids[2])}}
    with ShardWriter(path, recipe=recipe) as writer:
        writer.write(samples)
        entry = writer.close()
    shard = Shard.open(path, expected=entry)
    assert shard.index[["length", "n_image_tokens", "cost2"]][0].item() == (8, 3, 64)
    meta = shard.meta(0)
    assert meta is not None
    assert (meta.images[0].tokens, meta.images[0].grid) == (3, (1, 2, 6))
    assert meta.images[0].spans == ((1, 5),)


def test_a_sample_of_too_many_tokens_is_refused(tmp_path: Path) -> None:
    """2^30 tokens do not fit a ustar member: named by source and row, before memory is taken."""
    n = MAX_SAMPLE_TOKENS + 1
    ids = np.broadcast_to(np.int32(1), n)
    one = np.array([7], np.uint32)
    samples = Samples(ids, ids, np.array([0, n]), one, one.astype(np.uint64), one)
    with (
        pytest.raises(BadInput, match=r"row 7.*1073741807.*1073741808"),
        ShardWriter(tmp_path / "a.tar", recipe={}) as writer,
    ):
        writer.write(samples)


def test_members_and_rows_of_a_later_version_are_skipped(tmp_path: Path) -> None:
    """A shard of 1.9 with a third token row and a further member: what 1.0 knows is read."""
    path, expected = tmp_path / "a.tar", make_samples([4, 70], with_images=True)
    later_shard(path, expected)
    shard = Shard.open(path)
    assert shard.is_newer
    assert shard.n_rows == 3
    for i in range(2):
        part = slice(int(expected.starts[i]), int(expected.starts[i + 1]))
        assert shard.tokens(i)[:2].tolist() == [
            expected.ids[part].tolist(), expected.labels[part].tolist()
        ]  # fmt: skip
        assert len(shard.images(i)) == len(expected.images_of(i))
        assert shard.members(i)[-1].name.endswith(".later")


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    with_images=st.booleans(),
    is_packed=st.booleans(),
    compression=st.sampled_from(["none", "zstd:1"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    cut: int,
    with_images: bool,
    is_packed: bool,
    compression: str,
) -> None:
    """Any samples come back equal, and the bytes do not depend on how writes are divided."""
    folder = tmp_path_factory.mktemp("shards")
    suffix = ".tar" if compression == "none" else ".tar.zst"
    samples = make_samples(lengths, with_images=with_images, is_packed=is_packed)
    shard = write(folder / f"a{suffix}", samples, compression=compression)
    assert_same(shard, samples)
    write(folder / f"b{suffix}", samples, min(cut, len(lengths)), compression=compression)
    assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()
    assert np.array_equal(sample_spans(samples), shard.index["span"])


def test_compressed_is_the_same_tar(tmp_path: Path) -> None:
    """zstd -d gives the uncompressed shard, which GNU tar lists."""
    if shutil.which("zstd") is None:
        pytest.skip("no zstd command")
    samples = make_samples([300] * 900, with_images=True)
    write(tmp_path / "a.tar", samples)
    shard = write(tmp_path / "a.tar.zst", samples, compression="zstd:3")
    plain = subprocess.run(["zstd", "-dc", tmp_path / "a.tar.zst"], capture_output=True, check=True)
    assert plain.stdout == (tmp_path / "a.tar").read_bytes()
    names = subprocess.run(
        ["tar", "--zstd", "-tf", tmp_path / "a.tar.zst"], capture_output=True, check=True, text=True
    ).stdout.split()
    assert names[0] == "__shardkit__/manifest"
    assert names[1:4] == ["00000000.tokens.npy", "00000001.tokens.npy", "00000001.0.jpg"]
    assert_same(shard, samples)


def test_headers_are_those_of_tarfile(tmp_path: Path) -> None:
    """Python's tarfile writes the same header blocks for the same names and sizes."""
    samples = make_samples([1, 200, 5000], with_images=True)
    data = write(tmp_path / "a.tar", samples).path.read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        for info in tar.getmembers():
            ours = data[info.offset : info.offset + 512]
            plain = tarfile.TarInfo(info.name)
            plain.size = info.size
            assert ours == plain.tobuf(tarfile.USTAR_FORMAT)


def test_position_ids_begin_again() -> None:
    """position_ids count from 0 in every segment."""
    assert position_ids(np.array([3, 1, 2])).tolist() == [0, 1, 2, 0, 0, 1]


def test_footer_survives_and_refuses_every_flipped_bit() -> None:
    """Each of the 4,096 bits of the footer block is covered, but for trailing spaces."""
    footer = Footer(
        n_samples=3,
        n_rows=2,
        n_bytes=9999,
        manifest=Extent(512, 30, "0" * 16),
        index=Extent(4096, 300, "f" * 16),
        segments=None,
    )
    block = footer.to_block()
    assert read_footer(block, "x") == footer
    used = len(block.rstrip())
    for bit in range(used * 8):
        broken = bytearray(block)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ShardkitError, match="x"):
            read_footer(bytes(broken), "x")


def test_another_major_version_is_refused_by_name() -> None:
    """A footer of format 2 is refused and both versions are named."""
    footer = Footer(
        version="2.0",
        n_samples=0,
        n_rows=2,
        n_bytes=1,
        manifest=Extent(0, 0, ""),
        index=Extent(0, 0, ""),
        segments=None,
    )
    with pytest.raises(UnsupportedVersion, match=r"1\.x.*2\.0"):
        read_footer(footer.to_block(), "x")


def test_a_missing_short_or_swapped_file_is_refused(tmp_path: Path) -> None:
    """Files that are not there, cut, or of another shard are refused when opened."""
    samples = make_samples([10, 20])
    with ShardWriter(tmp_path / "a.tar", recipe=RECIPE) as writer:
        writer.write(samples)
        entry = writer.close()
    other = write(tmp_path / "b.tar", make_samples([10, 20], seed=1))
    with pytest.raises(MissingShard):
        Shard.open(tmp_path / "c.tar")
    with pytest.raises(CorruptShard, match="swapped"):
        Shard.open(other.path, expected=entry)
    data = (tmp_path / "a.tar").read_bytes()
    for size in [0, 100, 600, 4000, len(data) - 1024, len(data) - 1]:
        (tmp_path / "cut.tar").write_bytes(data[:size])
        with pytest.raises(CorruptShard, match=r"cut\.tar"):
            Shard.open(tmp_path / "cut.tar")


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_flipped_bit_is_an_error_or_changes_no_sample(tmp_path: Path, compression: str) -> None:
    """Every 37th bit of a small shard: refused, or all samples read equal."""
    suffix = ".tar" if compression == "none" else ".tar.zst"
    samples = make_samples([3, 40, 7], with_images=True)
    data = write(tmp_path / f"a{suffix}", samples, compression=compression).path.read_bytes()
    messages = []
    for bit in range(0, 8 * len(data), 37):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(broken)
        try:
            assert_same(Shard.open(path), samples)
        except (CorruptShard, UnsupportedVersion) as err:
            messages.append(str(err))
    assert len(messages) > 20
    assert all(f"broken{suffix}" in message for message in messages)


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    """A block that fails writes no file, not even a temporary one."""

    def fail() -> None:
        with ShardWriter(tmp_path / "a.tar", recipe=RECIPE) as writer:
            writer.write(make_samples([10]))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    """Spans that overlap or are too short are refused, though every hash is right."""
    samples = make_samples([10, 20])
    path = write(tmp_path / "a.tar", samples).path
    shard = Shard.open(path)
    data = bytearray(path.read_bytes())
    place = shard.footer.index
    begin = int(shard.index["offset"][0]) - 512
    for field, row, value in [
        ("offset", 0, begin),
        ("offset", 1, 512),
        ("n_tokens", 1, 10**6),
        ("n_tokens", 1, 2**29),  # times 8 it is 0 in 32 bits
        ("span", 1, 513),
    ]:
        index = shard.index.copy()
        index[field][row] = value
        if row == 0:
            index["span"][0] += 512
        raw = bytes(data[place.offset : place.offset + place.size])
        raw = raw[: -index.nbytes] + index.tobytes()
        new_place = place_of(place.offset, raw)
        footer = Footer(
            n_samples=2,
            n_rows=2,
            n_bytes=len(data),
            manifest=shard.footer.manifest,
            index=new_place,
            segments=None,
        )
        broken = bytearray(data)
        broken[place.offset : place.offset + place.size] = raw
        broken[-1536:-1024] = footer.to_block()
        (tmp_path / "broken.tar").write_bytes(broken)
        with pytest.raises(CorruptShard, match="index does not fit"):
            Shard.open(tmp_path / "broken.tar")


@pytest.mark.parametrize("name", ["n_rows", "n_bytes", "n_samples"])
@pytest.mark.parametrize("value", [-1, 2**63])
def test_a_footer_of_numbers_without_sense_is_refused(name: str, value: int) -> None:
    """Forged, its hash right: below 0, or more than can be computed with."""
    fields: dict[str, Any] = {"n_samples": 2, "n_rows": 2, "n_bytes": 4096, name: value}
    empty = place_of(512, b"")
    footer = Footer(**fields, manifest=empty, index=empty, segments=None)
    with pytest.raises(CorruptShard, match=name):
        read_footer(footer.to_block(), "s")


def place_of(offset: int, raw: bytes) -> Extent:
    return Extent(offset, len(raw), xxh3_hex(raw))


def test_samples_know_their_lengths() -> None:
    """len and lengths come from starts."""
    samples = make_samples([4, 5])
    assert len(samples) == 2
    assert samples.lengths.tolist() == [4, 5]
    assert len(dataclasses.replace(samples, images=()).images_of(1)) == 0


def test_threads_may_read_a_compressed_shard_at_once(tmp_path: Path) -> None:
    """Each sample is itself, whichever frames the others read. (Sharing a zstd decompressor
    without a lock ends the process.)"""
    n = 300
    make_dataset(tmp_path, [n], lengths=[2_000] * n, compression="zstd:1")
    (path,) = tmp_path.glob("shard-*")
    with Shard.open(path) as shard:
        sums = [int(shard.tokens(i)[0].sum()) for i in range(n)]

        def read(seed: int) -> bool:
            rng = random.Random(seed)
            chosen = [rng.randrange(n) for _ in range(150)]
            return all(int(shard.tokens(i)[0].sum()) == sums[i] for i in chosen)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(4)))
