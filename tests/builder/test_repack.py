"""Repacking: what `pack` with these options makes, from the tokens of a finished dataset alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import alpaca_rows, digests, pack_small, write_json, write_llava

from shardkit import verify
from shardkit.builder import append, repack
from shardkit.builder.repair import repair
from shardkit.dataset import load_manifest
from shardkit.errors import BadInput, BuildConflict, CorruptShard, TooManyRejects, UsageError
from shardkit.format.manifest import Manifest
from shardkit.format.shard import Shard

Row = tuple[Any, ...]


def rows_of(path: Path) -> list[Row]:
    """Every row of a dataset in order: tokens, pictures, segments, and what the index says."""
    rows: list[Row] = []
    for entry in load_manifest(path).shards:
        shard = Shard.open(path / entry.name)
        names = [n for n in shard.index.dtype.names or () if n not in ("offset", "hash", "span")]
        for i in range(shard.n_samples):
            meta = shard.meta(i)
            pictures = [bytes(data) for data in shard.images(i)]
            about = [(m.name, m.width, m.height, m.spans) for m in meta.images] if meta else []
            index = shard.index[names][i].item()
            rows.append((shard.tokens(i).tolist(), pictures, about, *index, shard.segments_of(i)))
    return [(*row[:-1], row[-1].tolist()) for row in rows]


def accounts_of(manifest: Manifest) -> list[Row]:
    """What became of the rows of every source."""
    return [
        (s.name, s.n_rows, s.n_kept, s.rejected, s.n_truncated, s.n_cut_tokens)
        for s in manifest.sources
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows, some of which are rejected."""
    return write_json(tmp_path_factory.mktemp("rows") / "rows.json", alpaca_rows(200, n_bad=6))


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, packed in one part; not a row is cut."""
    out = tmp_path_factory.mktemp("plain") / "out"
    pack_small(source, out, part_rows=1000)
    return out


CASES: dict[str, dict[str, Any]] = {
    "best-fit": {"packing": "best-fit"},
    "concat": {"packing": "concat", "max_length": 50},
    "shorter": {"max_length": 30},
    "shorter packs": {"packing": "best-fit", "max_length": 30},
    "shuffled": {"packing": "concat", "shuffle_seed": 3},
    "longer": {"packing": "best-fit", "max_length": 200},
    "zstd": {"packing": "best-fit", "compression": "zstd:1"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("before", ["none", "concat", "best-fit"])
def test_the_rows_are_those_of_pack(
    plain: Path, source: Path, tmp_path: Path, name: str, before: str
) -> None:
    """Also from packs, which are taken apart first; with its account, and good for verify."""
    old = plain
    if before != "none":
        old = tmp_path / "old"
        pack_small(source, old, part_rows=1000, packing=before, compression="zstd:1")
    options = {"packing": "none", "compression": "none", **CASES[name]}
    wanted = pack_small(source, tmp_path / "wanted", part_rows=1000, **options)

    found = repack(old, tmp_path / "found", **options)

    assert rows_of(tmp_path / "found") == rows_of(tmp_path / "wanted")
    assert accounts_of(found) == accounts_of(wanted)
    assert found.compression == wanted.compression
    assert found.identity["sources"] == wanted.identity["sources"]
    assert not verify(tmp_path / "found", sources=[source]).findings


@pytest.mark.parametrize(
    "options",
    [
        {"packing": "best-fit", "max_images": 3},
        {"packing": "concat", "max_length": 40},
        {"packing": "none", "max_length": 20},
    ],
)
@pytest.mark.parametrize("before", ["none", "best-fit"])
def test_pictures_move_with_their_rows(
    tmp_path: Path, options: dict[str, Any], before: str
) -> None:
    """The same bytes, names and sizes; a picture whose tokens are cut off is left out."""
    rows = write_llava(tmp_path, 40)
    shared: dict[str, Any] = {"image_root": tmp_path / "images", "image_tokens": 5}
    shared |= {"part_rows": 1000, "max_rejects": 0.99}
    if "max_images" in options:
        shared["max_images"] = options.pop("max_images")
    pack_small(rows, tmp_path / "old", packing=before, **shared)
    pack_small(rows, tmp_path / "wanted", **shared, **options)

    repack(tmp_path / "old", tmp_path / "found", max_rejects=0.99, **options)

    assert rows_of(tmp_path / "found") == rows_of(tmp_path / "wanted")
    assert not verify(tmp_path / "found").findings


def test_several_datasets_become_one(source: Path, plain: Path, tmp_path: Path) -> None:
    """As a pack of all files; an appended one too, and names that are taken are told apart."""
    more = write_json(tmp_path / "more.json", alpaca_rows(90, seed=2, n_bad=3))
    third = write_json(tmp_path / "third.json", alpaca_rows(30, seed=4))
    pack_small(more, tmp_path / "more")
    append(tmp_path / "more", third)
    wanted = pack_small(
        [source, more, third], tmp_path / "wanted", part_rows=1000, packing="best-fit"
    )

    found = repack([plain, tmp_path / "more"], tmp_path / "found", packing="best-fit")

    assert rows_of(tmp_path / "found") == rows_of(tmp_path / "wanted")
    assert [row[1:] for row in accounts_of(found)] == [row[1:] for row in accounts_of(wanted)]
    assert not verify(tmp_path / "found").findings
    with pytest.raises(BadInput, match="twice"):
        repack([plain, plain], tmp_path / "both")


def test_packs_are_laid_out_over_all_parts(source: Path, tmp_path: Path) -> None:
    """Fewer packs than parts of their own can make."""
    parts = pack_small(source, tmp_path / "parts", part_rows=10, packing="best-fit")
    whole = repack(tmp_path / "parts", tmp_path / "whole", packing="best-fit")
    assert whole.n_samples < parts.n_samples
    assert whole.n_tokens == parts.n_tokens
    assert len(whole.parts) == 1
    assert whole.recipe == parts.recipe
    with pytest.raises(BuildConflict, match=r"over a whole input.*\n.*repack the datasets"):
        repair(tmp_path / "whole", ["shard-00000.tar"], [source])
    more = write_json(tmp_path / "more.json", alpaca_rows(20, seed=9))
    assert len(append(tmp_path / "whole", more).builds) == 2
    assert not verify(tmp_path / "whole").findings


def test_what_was_cut_is_not_made_longer_silently(source: Path, tmp_path: Path) -> None:
    """Refused with how many; kept as they are, or left out and listed, when that is said."""
    short = pack_small(source, tmp_path / "short", max_length=25, max_rejects=0.99)
    n_cut = short.sources[0].n_truncated
    n_lost = verify_count(tmp_path / "short")
    assert n_cut > 5
    with pytest.raises(BuildConflict, match=f"{n_cut} rows were cut and {n_lost} rejected"):
        repack(tmp_path / "short", tmp_path / "no", max_length=64)
    assert not (tmp_path / "no").exists()

    kept = repack(tmp_path / "short", tmp_path / "kept", max_length=64, truncated="keep")
    assert kept.sources[0].n_truncated == n_cut
    assert kept.recipe["max_length"] == 64
    assert not verify(tmp_path / "kept", sources=[source]).findings
    with pytest.raises(BuildConflict, match=f"{n_cut} rows were cut"):
        repack(tmp_path / "kept", tmp_path / "no", max_length=128)

    left = repack(
        tmp_path / "short", tmp_path / "left", max_length=64, truncated="drop", packing="best-fit"
    )
    assert left.sources[0].n_truncated == 0
    assert left.sources[0].rejected["too_long"] == n_cut
    assert left.sources[0].n_kept == short.sources[0].n_kept - n_cut
    assert not verify(tmp_path / "left", sources=[source]).findings


def verify_count(path: Path) -> int:
    """Rows that were rejected because max_length cut their answers off."""
    lines = (path / "rejects.jsonl").read_text().splitlines()
    return sum("beyond max length" in line for line in lines)


def test_refusals(plain: Path, source: Path, tmp_path: Path) -> None:
    """Other recipes, another dataset in the folder, wrong options: named, nothing touched."""
    pack_small(source, tmp_path / "other", template="vicuna")
    with pytest.raises(BuildConflict, match=r"different recipes.*template"):
        repack([plain, tmp_path / "other"], tmp_path / "out")
    pack_small(source, tmp_path / "free", max_length=None)
    with pytest.raises(UsageError, match="needs --max-length"):
        repack(tmp_path / "free", tmp_path / "out", packing="concat")
    with pytest.raises(UsageError, match=r"packing.*best-fit"):
        repack(plain, tmp_path / "out", packing="bestfit")
    assert not (tmp_path / "out").exists()
    before = digests(tmp_path / "other")
    with pytest.raises(BuildConflict, match="another dataset"):
        repack(plain, tmp_path / "other", max_length=30)
    assert digests(tmp_path / "other") == before
    repack(plain, tmp_path / "other", max_length=40, overwrite=True)
    assert repack(plain, tmp_path / "other", max_length=40).recipe["max_length"] == 40
    assert not verify(tmp_path / "other").findings


def test_a_refusal_removes_no_dataset(plain: Path, tmp_path: Path) -> None:
    """--overwrite never removes the dataset that is read, nor one that nothing follows."""
    own, other, cut = tmp_path / "own", tmp_path / "other", tmp_path / "cut"
    for copy in (own, other, cut):
        shutil.copytree(plain, copy)
    (tmp_path / "link").symlink_to(own)
    before = digests(own)
    with pytest.raises(UsageError, match="would remove the dataset that is read"):
        repack(tmp_path / "link", own, max_length=30, overwrite=True)
    shard = next(cut.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(CorruptShard, match="wrong size"):
        repack(cut, other, max_length=30, overwrite=True)
    with pytest.raises(BadInput, match="no row would be left"):
        repack(plain, other, max_length=2, max_rejects=None, overwrite=True)

    assert digests(own) == digests(other) == before


def test_rows_are_not_left_out_silently(plain: Path, tmp_path: Path) -> None:
    """Above --max-rejects of the rows that are there, or all of them: refused, and nothing made;
    what stands in the folder stays, also with --overwrite."""
    with pytest.raises(BadInput, match=r"no row would be left.*194 of 194.*the first: rows.json"):
        repack(plain, tmp_path / "out", max_length=2, max_rejects=None)
    assert not (tmp_path / "out").exists()
    shutil.copytree(plain, tmp_path / "out")
    before = digests(tmp_path / "out")
    with pytest.raises(TooManyRejects, match=r"(?s)left out than --max-rej.*--max-rejects 96"):
        repack(plain, tmp_path / "out", max_length=25, max_rejects=3, overwrite=True)
    assert digests(tmp_path / "out") == before


def test_a_damaged_row_is_not_copied(plain: Path, tmp_path: Path) -> None:
    """A flipped bit of the old dataset is an error that names it, and leaves no dataset."""
    shutil.copytree(plain, tmp_path / "old")
    shard = Shard.open(tmp_path / "old/shard-00000.tar")
    data = bytearray(shard.path.read_bytes())
    data[int(shard.index["offset"][7]) + 700] ^= 1
    shard.path.write_bytes(data)
    with pytest.raises(CorruptShard, match="sample 00000007"):
        repack(tmp_path / "old", tmp_path / "out", packing="best-fit")
    assert not (tmp_path / "out/manifest.json").exists()


def test_kills_change_no_byte(plain: Path, tmp_path: Path) -> None:
    """Killed at six moments and run again: the bytes of the uncut run, and nothing left behind."""
    repack(plain, tmp_path / "whole", packing="best-fit", shard_size=4096)

    def command(out: str) -> list[str]:
        words = [sys.executable, "-m", "shardkit", "repack", str(plain), "--out"]
        return [*words, str(tmp_path / out), "--packing", "best-fit", "--shard-size", "4096"]

    began = time.monotonic()
    subprocess.run(command("timed"), check=True, timeout=120, capture_output=True)
    took = time.monotonic() - began
    for share in np.linspace(0.5, 1.0, 6):
        child = subprocess.Popen(
            command("out"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(took * float(share))
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command("out"), check=True, timeout=120, capture_output=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
