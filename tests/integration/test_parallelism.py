"""Sequence parallelism: under DeepSpeed's adapter each row is trained on once, cut in two."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import reports
from ranks import run_ranks
from records import TOKENIZER, alpaca_rows, write_json

from shardkit import ShardLoader, pack

NAMES = ("input_ids", "position_ids")
SCRIPT = Path(__file__).with_name("run_ulysses.py")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_the_ulysses_adapter_reads_every_row_once(tmp_path: Path, packing: str) -> None:
    """The halves of the two ranks, put together, are the rows of a plain loader; two epochs."""
    pack(
        write_json(tmp_path / "rows.json", alpaca_rows(24)),
        tmp_path / "out",
        tokenizer=TOKENIZER,
        template="qwen_chat",
        max_length=128,
        packing=packing,
    )
    run_ranks(2, SCRIPT, tmp_path / "out", tmp_path)
    first, second = reports(tmp_path, 2)
    alone = ShardLoader(tmp_path / "out", 1, seed=1, rank=0, world_size=1, pad_to_multiple_of=128)
    for epoch in range(2):
        halves = zip(first["epochs"][epoch], second["epochs"][epoch], strict=True)
        joined = [
            tuple(tuple(left[name][0] + right[name][0]) for name in NAMES) for left, right in halves
        ]
        expected = [tuple(tuple(batch[name][0].tolist()) for name in NAMES) for batch in alone]
        n_steps = len(alone) // 2 * 2
        assert len(joined) == n_steps == first["len"]
        if epoch == 0:
            assert sorted(joined) == sorted(expected[:n_steps])
        assert len(set(joined)) == n_steps
    assert first["state"] == second["state"]
