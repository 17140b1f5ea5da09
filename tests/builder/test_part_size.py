"""How large parts and shards are: a function of the input and the options alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import TOKENIZER, alpaca_rows, pack_small, write_json

from shardkit.builder.options import PackOptions

MIB = 1 << 20


@given(st.integers(1, 10**9), st.integers(1, 10**12))
def test_parts_grow_with_the_input(n_rows: int, n_bytes: int) -> None:
    """Never below 8,192 rows and 8 MiB, never fewer than 64 of larger ones, at most 48 MiB."""
    size = PackOptions(tokenizer=TOKENIZER).part_size(n_rows, n_bytes)
    assert size["part_rows"] >= 8192
    assert 8 * MIB <= size["part_bytes"] <= 48 * MIB
    if size["part_rows"] > 8192:
        assert n_rows // size["part_rows"] >= 64
    if size["part_bytes"] > 8 * MIB:
        assert n_bytes // size["part_bytes"] >= 64


@pytest.mark.parametrize("shard_size", [150_000, 200_000, 400_000])
def test_shards_of_a_part_are_of_one_size(tmp_path: Path, shard_size: int) -> None:
    """A packed part of several shards shares its packs evenly: none is a small rest."""
    source = write_json(tmp_path / "rows.json", alpaca_rows(900))
    options = {"packing": "best-fit", "part_rows": 900, "shard_size": shard_size}
    manifest = pack_small(source, tmp_path / "out", **options)
    sizes = [shard.n_bytes for shard in manifest.shards]
    assert len(sizes) > 1
    assert max(sizes) <= shard_size + 16_000  # its own manifest, index and segments
    assert min(sizes) >= shard_size // 2
