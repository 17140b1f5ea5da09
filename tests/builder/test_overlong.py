"""Documents with an end, and in pieces, from the command to the finished dataset and back."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import TOKENIZER, digests, pack_small, stop_after, write_json

from shardkit import load_manifest, pack, verify
from shardkit.builder import PackOptions, append, repack
from shardkit.builder.merge import merge_datasets
from shardkit.builder.repair import repair
from shardkit.check.retokenise import _compare, _encoder, _places, _template
from shardkit.dataset import open_dataset
from shardkit.errors import BadInput, BuildConflict, UsageError
from shardkit.format.builds import builds_of
from shardkit.format.shard import Shard
from shardkit.report import Topology, find_row, trace_batch
from shardkit.sources import scan
from shardkit.tokens import load_tokenizer

SPLIT: dict[str, Any] = {"overlong": "split", "append_eos": True, "max_length": 16}
CHATS = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]


def _documents(path: Path, n: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        words = [f"w{rng.randrange(99)}" for _ in range(rng.randrange(1, 25))]
        rows.append({"text": " ".join(words) if i % 17 else ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents, some empty; half are longer than 16 tokens."""
    return _documents(tmp_path_factory.mktemp("rows") / "docs.jsonl", 120)


@pytest.mark.parametrize("packing", ["none", "concat"])
def test_pieces_from_pack_to_trace(source: Path, tmp_path: Path, packing: str) -> None:
    """Two workers and a stop on the way change no byte; every piece is accounted for, verified
    against the source, found by trace, and made again by repair."""
    out = tmp_path / "out"
    manifest = pack_small(source, out, packing=packing, **SPLIT)
    with pytest.raises(KeyboardInterrupt):
        pack_small(source, tmp_path / "again", packing=packing, on_progress=stop_after(60), **SPLIT)
    pack_small(source, tmp_path / "again", packing=packing, workers=2, **SPLIT)

    assert digests(out) == digests(tmp_path / "again")
    (account,) = manifest.sources
    assert account.n_kept + sum(account.rejected.values()) == 120
    assert (account.n_truncated, account.n_cut_tokens) == (0, 0)
    n_split = manifest.checks["notes"]["documents_split"]
    assert n_split > 30
    assert "documents_without_eos" not in {k for k, n in manifest.checks["notes"].items() if n}
    (build,) = builds_of(manifest)
    again = PackOptions.of(manifest, build, tokenizer=TOKENIZER)
    assert (again.overlong, again.append_eos) == ("split", True)
    assert verify(out, sources=[source]).findings == []

    data, topology = open_dataset(out), Topology(world_size=1, batch_size=4)
    record = _a_split_row(out)
    sightings = find_row(data, topology, source="docs.jsonl", row=record)
    pieces = {
        origin.piece
        for seen in sightings
        for origin in trace_batch(data, topology, step=seen.step or 0, rank=0)
        if origin.row == record
    }
    assert pieces == set(range(len(pieces)))
    assert len(pieces) > 1
    before = digests(out)
    (out / "shard-00001.tar").write_bytes(b"")
    repair(out, ["shard-00001.tar"], [source])
    assert digests(out) == before


def _a_split_row(out: Path) -> int:
    """A row of the source with two pieces or more in the first shard."""
    shard = Shard.open(out / "shard-00000.tar")
    table = shard.index if shard.segments is None else shard.segments
    return int(table["record"][np.flatnonzero(table["piece"])[0]])


def test_appended_and_merged(source: Path, tmp_path: Path) -> None:
    """With the same rule as the dataset's, which nobody has to repeat."""
    more = _documents(tmp_path / "more.jsonl", 40, seed=1)
    pack_small(source, tmp_path / "one", **SPLIT)
    wanted = pack_small(more, tmp_path / "two", **SPLIT)
    merge_datasets([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    append(tmp_path / "one", more)

    for name in ("one", "both"):
        manifest = load_manifest(tmp_path / name)
        assert manifest.sources[1].n_kept == wanted.sources[0].n_kept
        assert manifest.n_samples > wanted.n_samples
        assert verify(tmp_path / name, sources=[source, more]).findings == []
    with pytest.raises(BadInput, match="the row is of the format chat, and its file is text"):
        append(tmp_path / "one", write_json(tmp_path / "chats.json", CHATS))


def test_each_piece_is_compared_with_itself(source: Path, tmp_path: Path) -> None:
    """Verifying against the source takes a piece's own tokens, not those of any piece."""
    pack_small(source, tmp_path / "out", **SPLIT)
    dataset = open_dataset(tmp_path / "out")
    tokenizer = load_tokenizer(TOKENIZER)
    encoder = _encoder(dataset.manifest, tokenizer, _template(dataset, None, tokenizer), None)
    scanned = scan(source, name="docs.jsonl", spool=tmp_path / "spool")
    places = [p for row in range(20) for p in _places(dataset.open_shard(0), 0, row)]
    place = next(p for p in places if p.piece)

    assert _compare(dataset, encoder, scanned, place) is None
    for wrong in (replace(place, piece=0), replace(place, piece=99)):
        assert _compare(dataset, encoder, scanned, wrong)


def test_repacked(source: Path, tmp_path: Path) -> None:
    """`drop` and ends are those of `pack`; pieces are refused, or left, by name."""
    shared: dict[str, Any] = {"part_rows": 1000, "append_eos": True, "max_rejects": 0.99}
    for rule in ("cut", "drop"):
        old = tmp_path / f"old-{rule}"
        pack_small(source, old, overlong=rule, **shared)
        wanted = pack_small(
            source, tmp_path / f"wanted-{rule}", overlong=rule, **{**shared, "max_length": 12}
        )
        found = repack(old, tmp_path / f"found-{rule}", max_length=12, max_rejects=0.99)
        assert found.sources[0].rejected == wanted.sources[0].rejected
        assert found.sources[0].n_kept == wanted.sources[0].n_kept
        assert found.content == wanted.content
    pack_small(source, tmp_path / "split", **SPLIT)
    with pytest.raises(BuildConflict, match="documents were split at max_length 16"):
        repack(tmp_path / "split", tmp_path / "no", max_length=32, truncated="drop")
    with pytest.raises(BuildConflict, match="packed with --overlong split"):
        repack(tmp_path / "split", tmp_path / "no", max_length=8)
    repack(tmp_path / "split", tmp_path / "kept", max_length=32, truncated="keep")
    assert verify(tmp_path / "kept", sources=[source]).findings == []


def test_refused_by_name(source: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    out = tmp_path / "out"
    chats = write_json(tmp_path / "chats.json", CHATS)
    with pytest.raises(UsageError, match="overlong drop needs --max-length"):
        pack(source, out, tokenizer=TOKENIZER, overlong="drop")
    for options in ({}, {"source_format": "chat"}):
        with pytest.raises(UsageError, match="is for documents of text"):
            pack_small(chats, out, overlong="split", **options)
    tokenizer = _without_eos(tmp_path)
    with pytest.raises(UsageError, match="has no EOS token"):
        pack_small(source, out, tokenizer=tokenizer, append_eos=True)
    assert not out.exists()


def _without_eos(folder: Path) -> Path:
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    return folder / "tokenizer"
