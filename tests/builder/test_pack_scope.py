"""Packs over the whole input: a second pass whose bytes no worker, kill or share decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json, write_llava

from shardkit import ShardTable
from shardkit.builder import Progress, append, merge, pack, repack
from shardkit.builder.repair import repair
from shardkit.check import verify
from shardkit.errors import BuildConflict, UsageError
from shardkit.format.manifest import Manifest

OPTIONS: dict[str, Any] = {
    "packing": "best-fit",
    "pack_scope": "all",
    "shuffle_seed": 3,
    "shard_size": 60_000,
    "part_rows": 60,
    "compression": "zstd:1",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and the dataset that one process makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_json(folder / "a.json", alpaca_rows(300, n_bad=4))
    pack_small(source, folder / "out", **OPTIONS)
    return source, folder / "out"


def stop_in_second_pass(progress: Progress) -> None:
    """Interrupt when the first sections are written."""
    if progress.stage == "commit" and progress.n_total > 1 and progress.n_done >= 2:
        raise KeyboardInterrupt


def rows_of(root: Path) -> list[tuple[bytes, bytes]]:
    """Ids and labels of all packs."""
    table = ShardTable(root)
    rows = (table[i] for i in range(len(table)))
    return [(bytes(r["input_ids"].numpy()), bytes(r["labels"].numpy())) for r in rows]


def test_the_packs_are_those_of_a_repack_and_fewer(
    tmp_path: Path, whole: tuple[Path, Path]
) -> None:
    """Unpacked rows repacked give the same packs, in the same order; parts give more of them."""
    source, out = whole
    plain = OPTIONS | {"packing": "none", "pack_scope": "part"}
    pack_small(source, tmp_path / "rows", **plain)
    again = repack(tmp_path / "rows", tmp_path / "again", packing="best-fit")
    found = pack_small(source, out, **OPTIONS)
    assert rows_of(out) == rows_of(tmp_path / "again")
    assert found.checks == again.checks
    assert [s.n_kept for s in found.sources] == [s.n_kept for s in again.sources]
    parts = pack_small(source, tmp_path / "parts", **OPTIONS | {"pack_scope": "part"})
    assert found.n_samples < parts.n_samples
    assert found.fingerprint != parts.fingerprint
    assert not verify(out, sources=[source]).problems
    assert not (out / ".building").exists()


def test_several_workers_and_a_stop_make_the_same_bytes(
    tmp_path: Path, whole: tuple[Path, Path]
) -> None:
    """Two workers, stopped in the second pass; one goes on with the sections that are there."""
    source, out = whole
    with pytest.raises(KeyboardInterrupt):
        pack_small(source, tmp_path / "out", workers=2, on_progress=stop_in_second_pass, **OPTIONS)
    sections = list((tmp_path / "out/.building/whole").glob("part-*.json"))
    assert sections
    before = {path: path.stat().st_mtime_ns for path in sections}
    kept: list[bool] = []

    def watch(progress: Progress) -> None:
        if progress.n_total > 1:
            kept.append(all(path.stat().st_mtime_ns == before[path] for path in sections))

    pack_small(source, tmp_path / "out", on_progress=watch, **OPTIONS)
    assert all(kept)
    assert digests(tmp_path / "out") == digests(out)


def test_a_damaged_section_is_written_again(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    """One bit of a section's shard flipped between two runs."""
    source, out = whole
    with pytest.raises(KeyboardInterrupt):
        pack_small(source, tmp_path / "out", on_progress=stop_in_second_pass, **OPTIONS)
    shard = next(iter(sorted((tmp_path / "out/.building/whole/part-000000").iterdir())))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    pack_small(source, tmp_path / "out", **OPTIONS)
    assert digests(tmp_path / "out") == digests(out)


def test_of_shares_the_merge_makes_the_packs(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    """Two tasks build parts; `merge` lays them out together."""
    source, out = whole
    options: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "template": "qwen_chat",
        "max_length": 64,
        "engine": "hf",
    }
    for number in (1, 2):
        assert pack(source, tmp_path / "out", part=(number, 2), **options, **OPTIONS) is None
    merge(tmp_path / "out")
    assert digests(tmp_path / "out") == digests(out)


def test_appended_rows_are_packed_apart_and_repair_refuses_by_name(
    tmp_path: Path, whole: tuple[Path, Path]
) -> None:
    """The old shards stay; the new build has its own packs over all of its rows."""
    source, out = whole
    pack_small(source, tmp_path / "out", **OPTIONS)
    more = write_json(tmp_path / "b.json", alpaca_rows(130, seed=9))
    after: Manifest = append(tmp_path / "out", more, engine="hf")
    assert [entry.n_parts for entry in after.builds] == [1, 1]
    before = digests(out)
    kept = {name: sha for name, sha in digests(tmp_path / "out").items() if name in before}
    assert all(kept[name] == before[name] for name in kept if name.startswith("shard-"))
    assert not verify(tmp_path / "out").problems
    with pytest.raises(BuildConflict, match="packs over a whole input"):
        repair(out, ["shard-00000.tar.zst"], source)


def test_pictures_move_with_their_samples(tmp_path: Path) -> None:
    """Packs of LLaVA rows, with concat too, are those of a repack of the unpacked rows."""
    source = write_llava(tmp_path, 40)
    options: dict[str, Any] = {
        "image_root": tmp_path / "images",
        "image_tokens": 4,
        "max_length": 128,
    }
    for packing in ("best-fit", "concat"):
        pack_small(source, tmp_path / f"rows-{packing}", **options)
        repack(tmp_path / f"rows-{packing}", tmp_path / f"re-{packing}", packing=packing)
        out = tmp_path / packing
        pack_small(source, out, packing=packing, pack_scope="all", workers=1, **options)
        assert rows_of(out) == rows_of(tmp_path / f"re-{packing}")
        assert not verify(out).problems


def test_documents_are_padded_as_a_repack_pads_them(
    tmp_path: Path, whole: tuple[Path, Path]
) -> None:
    """--pad-documents-to-multiple over the whole input: each section has its own padding."""
    source, _ = whole
    padded = {"pad_documents_to_multiple": 4}
    plain = OPTIONS | {"packing": "none", "pack_scope": "part"}
    pack_small(source, tmp_path / "rows", **plain)
    repack(tmp_path / "rows", tmp_path / "again", packing="best-fit", pad_documents_to_multiple=4)
    pack_small(source, tmp_path / "out", **OPTIONS, **padded)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "again")


def test_without_packs_there_is_no_scope(tmp_path: Path) -> None:
    """--pack-scope all alone is refused before any input is opened."""
    with pytest.raises(UsageError, match="pack-scope all without packs"):
        pack_small(tmp_path / "none.json", tmp_path / "out", pack_scope="all")
