"""Verify: whatever is wrong with a dataset is found and named; nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tokenizers
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json, write_llava

from shardkit.check import Findings, verify
from shardkit.dataset import load_manifest
from shardkit.errors import BadManifest
from shardkit.format.layout import BLOCK, INDEX_MEMBER, TOKENS_START
from shardkit.format.manifest import Manifest, content_of
from shardkit.format.samples import IGNORE_INDEX, Samples
from shardkit.format.shard import Shard, ShardWriter

Kind = str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets, each with its source: plain, packed, llava."""
    folder = tmp_path_factory.mktemp("made")
    rows = write_json(folder / "rows.json", alpaca_rows(90, n_bad=3))
    pack_small(rows, folder / "plain", shard_size=20_000, part_rows=30)
    pack_small(rows, folder / "packed", shard_size=8_000, packing="concat", max_length=96)
    llava = write_llava(folder, 24)
    options = {"image_root": folder / "images", "image_tokens": 3, "part_rows": 12}
    pack_small(llava, folder / "llava", shard_size=20_000, **options)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Callable[[Kind], Path]:
    """A copy of one of them, to be damaged."""
    return lambda kind: shutil.copytree(made / kind, tmp_path / kind)


def codes(found: Findings, severity: str = "error") -> set[str]:
    """What was found, by code."""
    return {finding.code for finding in found.findings if finding.severity == severity}


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["plain", "packed", "llava"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_dataset(made: Path, kind: Kind, workers: int) -> None:
    """Nothing is found, also when rows are tokenised again; and no file is touched."""

    def stamps() -> list[tuple[str, int]]:
        return [(str(p), p.stat().st_mtime_ns) for p in sorted((made / kind).rglob("*"))]

    before, then = digests(made / kind), stamps()
    source = made / ("llava.json" if kind == "llava" else "rows.json")
    found = verify(
        made / kind,
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=96 if kind == "packed" else 64,
        sources=[source],
        workers=workers,
    )
    assert found.findings == []
    assert found.n_rows_retokenised >= 15
    assert found.n_shards > 2
    assert found.next_command is None
    assert (digests(made / kind), stamps()) == (before, then)


def test_a_read_only_dataset(copy: Callable[[Kind], Path]) -> None:
    """A dataset that nobody may write to can be verified."""
    path = copy("plain")
    for file in [path, *path.rglob("*")]:
        os.chmod(file, 0o555 if file.is_dir() else 0o444)
    try:
        assert verify(path).findings == []
    finally:
        for file in [path, *path.rglob("*")]:
            os.chmod(file, 0o755)


@pytest.mark.parametrize("kind", ["plain", "packed", "llava"])
def test_a_flipped_bit_in_tokens(copy: Callable[[Kind], Path], kind: Kind) -> None:
    """Shard, key and source row of the sample are named; of the others nothing is said."""
    path = copy(kind)
    manifest = load_manifest(path)
    entry = manifest.shards[1]
    shard = Shard.open(path / entry.name)
    row = shard.n_samples // 2
    record = int(shard.index["record"][row])
    flip(path / entry.name, int(shard.index["offset"][row]) + TOKENS_START + 5)
    found = verify(path)
    (finding,) = (f for f in found.findings if f.code == "sample-hash")
    assert (finding.shard, finding.sample) == ("shard-00001.tar", f"{row:08d}")
    assert finding.source_row == f"{manifest.source_names[0]} row {record}"
    assert codes(found) == {"sample-hash", "file-hash"}
    assert found.damaged_shards == ["shard-00001.tar"]
    assert "repair" in (found.next_command or "")


@pytest.mark.parametrize("kind", ["plain", "packed", "llava"])
def test_every_byte_counts(copy: Callable[[Kind], Path], kind: Kind) -> None:
    """One bit anywhere in a shard, also in padding that no sample covers, is found."""
    path = copy(kind)
    file = path / "shard-00000.tar"
    whole = file.read_bytes()
    padding = 2 * BLOCK - 1
    for offset in [padding, *range(0, len(whole), 487), len(whole) - 1]:
        flip(file, offset)
        found = verify(path)
        assert found.damaged_shards == ["shard-00000.tar"], offset
        assert codes(found) & {"file-hash", "shard-open"}, offset
        file.write_bytes(whole)


def test_padding_of_the_index(copy: Callable[[Kind], Path]) -> None:
    """Padding behind the index is named as such."""
    path = copy("plain")
    file = path / "shard-00000.tar"
    place = Shard.open(file).footer.index
    flip(file, place.offset + place.size + 1)
    found = verify(path)
    assert codes(found) == {"file-hash", "tar"}
    assert any(INDEX_MEMBER in finding.message for finding in found.findings)


def test_a_missing_shard(copy: Callable[[Kind], Path]) -> None:
    """It is named; the others are still checked."""
    path = copy("plain")
    (path / "shard-00001.tar").unlink()
    flip(path / "shard-00002.tar", 3000)
    assert verify(path).damaged_shards == ["shard-00001.tar", "shard-00002.tar"]


def test_swapped_shards(copy: Callable[[Kind], Path]) -> None:
    """Two shards under each other's names are two problems."""
    path = copy("plain")
    one, two = path / "shard-00000.tar", path / "shard-00001.tar"
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)
    assert verify(path).damaged_shards == [one.name, two.name]


@pytest.mark.parametrize("n_bytes", [0, 511, 3000, -1])
def test_a_truncated_shard(copy: Callable[[Kind], Path], n_bytes: int) -> None:
    """The wrong size is named."""
    path = copy("plain")
    file = path / "shard-00001.tar"
    file.write_bytes(file.read_bytes()[:n_bytes])
    (finding,) = verify(path).problems
    assert (finding.code, finding.shard) == ("shard-open", file.name)
    assert "size" in finding.message


def test_an_extra_file(copy: Callable[[Kind], Path]) -> None:
    """A file that the manifest does not name is worth a warning, and no more."""
    path = copy("plain")
    shutil.copy(path / "shard-00000.tar", path / "shard-00099.tar")
    found = verify(path)
    assert codes(found) == set()
    assert codes(found, "warning") == {"extra-file"}
    assert "shard-00099.tar" in found.findings[0].message


def test_edited_rejects(copy: Callable[[Kind], Path]) -> None:
    """A line less in rejects.jsonl: the file, the ledger and the lost row are named."""
    path = copy("plain")
    file = path / "rejects.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[1:]))
    found = verify(path)
    assert codes(found) == {"file-hash", "ledger", "row-lost"}
    row = json.loads(lines[0])["row"]
    assert any(finding.source_row == f"rows.json row {row}" for finding in found.findings)
    file.write_bytes(b"".join([*lines, lines[0].replace(b"rows.json", b"none.json")]))
    assert any("names none.json" in finding.message for finding in verify(path).findings)


def test_damaged_rejects(copy: Callable[[Kind], Path]) -> None:
    """rejects.jsonl that is no JSON, or is gone, is a finding and no crash."""
    path = copy("plain")
    (path / "rejects.jsonl").write_bytes(b"\xff{")
    assert {"rejects", "file-hash"} <= codes(verify(path))
    (path / "rejects.jsonl").unlink()
    assert {"file-missing", "ledger"} <= codes(verify(path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer(copy: Callable[[Kind], Path], name: str) -> None:
    """The dataset's copy of the tokenizer is part of it."""
    path = copy("plain")
    flip(path / "tokenizer" / name, 100)
    (finding,) = verify(path).problems
    assert finding.code == "file-hash"
    assert name in finding.message
    (path / "tokenizer" / name).unlink()
    assert codes(verify(path)) == {"file-missing"}


def edit_manifest(path: Path, **changes: Any) -> Manifest:
    """Replace fields of the manifest."""
    manifest = msgspec.structs.replace(load_manifest(path), **changes)
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def test_an_edited_ledger(copy: Callable[[Kind], Path]) -> None:
    """A count of kept rows that is not what the shards hold."""
    path = copy("plain")
    source = load_manifest(path).sources[0]
    edited = msgspec.structs.replace(source, n_kept=source.n_kept - 1, n_rows=source.n_rows - 1)
    edit_manifest(path, sources=[edited])
    assert "ledger" in codes(verify(path))


def test_an_edited_count_of_a_shard(copy: Callable[[Kind], Path]) -> None:
    """Token counts of the manifest are checked against the index."""
    path = copy("plain")
    shards = list(load_manifest(path).shards)
    shards[0] = msgspec.structs.replace(shards[0], n_tokens=shards[0].n_tokens + 1)
    edit_manifest(path, shards=shards)
    (finding,) = verify(path).problems
    assert (finding.code, finding.shard) == ("count", "shard-00000.tar")


def test_no_dataset_at_all(tmp_path: Path) -> None:
    """A folder without a manifest is an error of ours."""
    with pytest.raises(BadManifest, match=r"no manifest\.json"):
        verify(tmp_path)


def samples_of(shard: Shard) -> dict[str, Any]:
    """The fields of Samples, as the shard holds them."""
    tokens = [shard.tokens(i) for i in range(shard.n_samples)]
    starts = np.concatenate([[0], np.cumsum(shard.index["n_tokens"])]).astype(np.int64)
    return {
        "ids": np.concatenate([rows[0] for rows in tokens]),
        "labels": np.concatenate([rows[1] for rows in tokens]),
        "starts": starts,
        "source": shard.index["source"].copy(),
        "record": shard.index["record"].copy(),
        "n_cut": shard.index["n_cut"].copy(),
    }


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the first shard again with other samples: all hashes and counts are right."""
    manifest = load_manifest(path)
    file = path / manifest.shards[0].name
    shard = Shard.open(file)
    fields: dict[str, Any] = dict(samples_of(shard))
    if shard.segments is not None:
        fields["segments"] = shard.segments.copy()
    change(fields)
    with ShardWriter(file, recipe=manifest.recipe) as writer:
        writer.write(Samples(**fields))
        entry = writer.close()
    shards = [entry, *manifest.shards[1:]]
    edit_manifest(path, shards=shards, content=content_of(shards))


def forge_label(fields: dict[str, Any]) -> None:
    at = int(np.flatnonzero(fields["labels"] != IGNORE_INDEX)[3])
    fields["labels"][at] = (fields["labels"][at] + 1) % 2000


def forge_id(fields: dict[str, Any]) -> None:
    masked = np.flatnonzero(fields["labels"] == IGNORE_INDEX)
    fields["ids"][masked[2]] = 2048


def forge_negative_id(fields: dict[str, Any]) -> None:
    masked = np.flatnonzero(fields["labels"] == IGNORE_INDEX)
    fields["ids"][masked[2]] = -200


def forge_no_loss(fields: dict[str, Any]) -> None:
    fields["labels"][: fields["starts"][1]] = IGNORE_INDEX


def forge_twice(fields: dict[str, Any]) -> None:
    fields["record"][1] = fields["record"][0]


def forge_outside(fields: dict[str, Any]) -> None:
    fields["record"][0] = 10**6


def forge_source(fields: dict[str, Any]) -> None:
    fields["source"][0] = 7


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (forge_label, {"label-value"}),
        (forge_id, {"id-range"}),
        (forge_negative_id, {"id-range"}),
        (forge_no_loss, {"no-loss"}),
        (forge_twice, {"row-twice", "row-lost"}),
        (forge_outside, {"ledger", "row-lost"}),
        (forge_source, {"source", "ledger", "row-lost"}),
    ],
)
def test_a_forged_shard(
    copy: Callable[[Kind], Path], change: Callable[[dict[str, Any]], None], expected: set[str]
) -> None:
    """Where every hash is right, the meaning is still checked."""
    path = copy("plain")
    forge(path, lambda fields: None)
    assert verify(path).findings == []
    forge(path, change)
    assert codes(verify(path)) == expected


def test_a_forged_pack(copy: Callable[[Kind], Path]) -> None:
    """A shard whose segments do not lie end to end in a pack is not opened."""
    path = copy("packed")

    def shift(fields: dict[str, Any]) -> None:
        segments = fields["segments"]
        second = int(np.flatnonzero(segments["start"])[0])
        segments["start"][second] += 1

    forge(path, shift)
    found = verify(path)
    assert "shard-open" in codes(found)
    assert any("segments do not fit" in one.message for one in found.findings)


def test_a_label_of_a_forged_pack(copy: Callable[[Kind], Path]) -> None:
    """Labels of packs are compared with their ids too."""
    path = copy("packed")
    forge(path, forge_label)
    assert codes(verify(path)) == {"label-value"}


def test_a_sample_that_is_too_long(copy: Callable[[Kind], Path]) -> None:
    """No sample is longer than the max_length of the recipe."""
    path = copy("plain")

    def join(fields: dict[str, Any]) -> None:
        n = 8
        fields["starts"] = np.concatenate([[0], fields["starts"][n:]])
        for name in ("source", "record", "n_cut"):
            fields[name] = fields[name][n - 1 :]

    forge(path, join)
    assert {"length", "ledger", "row-lost"} == codes(verify(path))


def test_a_wrong_number_of_placeholders(copy: Callable[[Kind], Path]) -> None:
    """Images without a placeholder, and placeholders without an image, are found."""
    path = copy("llava")
    manifest = load_manifest(path)
    shard = Shard.open(path / "shard-00000.tar")
    assert shard.index["n_images"].any()
    fields = samples_of(shard)
    with ShardWriter(shard.path, recipe=manifest.recipe) as writer:
        writer.write(Samples(**fields))
        entry = writer.close()
    shards = [entry, *manifest.shards[1:]]
    edit_manifest(path, shards=shards, content=content_of(shards))
    found = verify(path)
    assert codes(found) == {"placeholder", "index"}
    assert found.findings[0].sample == "00000000"


def test_another_tokenizer(made: Path) -> None:
    """A different one, and the same with one token added, are told apart, and how."""
    words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    found = verify(made / "plain", tokenizer=tokenizers.Tokenizer(words))
    assert codes(found) == {"tokenizer"}
    other = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    other.add_tokens(["<|new|>"])
    found = verify(made / "plain", tokenizer=other)
    assert codes(found) == {"tokenizer"}
    assert any("added" in finding.message for finding in found.findings)


def test_another_template_or_length(made: Path) -> None:
    """Both values are named."""
    found = verify(made / "plain", template="vicuna", max_length=63)
    assert codes(found) == {"template", "max-length"}
    assert "qwen_chat was used, vicuna is given" in found.findings[0].message
    assert "64 was used, 63 is given" in found.findings[1].message


def test_another_source(made: Path, tmp_path: Path) -> None:
    """A file that was not packed is not silently skipped."""
    other = write_json(tmp_path / "rows.json", alpaca_rows(90, seed=1))
    found = verify(made / "plain", sources=[other])
    assert codes(found) == {"source"}
    assert found.n_rows_retokenised == 0


def test_tokens_that_the_source_does_not_give(made: Path, tmp_path: Path) -> None:
    """A dataset that says another template than it was packed with is found out."""
    liar = tmp_path / "liar"
    pack_small(made / "rows.json", liar, template="vicuna", shard_size=20_000, part_rows=30)
    truth = load_manifest(made / "plain")
    entries = []
    for entry in load_manifest(liar).shards:
        fields = samples_of(Shard.open(liar / entry.name))
        file = liar / entry.name
        with ShardWriter(file, recipe=truth.recipe) as writer:
            writer.write(Samples(**fields))
            entries.append(writer.close())
    edit_manifest(
        liar,
        identity=truth.identity,
        fingerprint=truth.fingerprint,
        shards=entries,
        content=content_of(entries),
    )
    assert verify(liar).findings == []
    found = verify(liar, sources=[made / "rows.json"])
    assert codes(found) == {"retokenised"}
    assert len(found.findings) > 30
    assert found.findings[0].source_row == "rows.json row 0"
    assert "the source gives" in found.findings[0].message
