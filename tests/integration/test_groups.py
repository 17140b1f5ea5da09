"""A data-parallel group smaller than the world: its model-parallel members get the same batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import reports
from ranks import run_ranks
from synthetic import make_dataset

SCRIPT = Path(__file__).with_name("run_groups.py")


@pytest.mark.slow
def test_members_of_a_group_get_the_same_batch(tmp_path: Path) -> None:
    """4 real ranks, 2 of them data-parallel: by DeviceMesh, process group, and DeepSpeed's own."""
    make_dataset(tmp_path / "data", (13, 9))
    run_ranks(4, SCRIPT, tmp_path / "data", tmp_path)
    ranks = reports(tmp_path, 4)
    assert len(ranks[0]) == 6
    for name in ranks[0]:
        keys = [rank[name] for rank in ranks]
        assert keys[0] == keys[1], name
        assert keys[2] == keys[3], name
        seen = [key for group in (keys[0], keys[2]) for batch in group for key in batch]
        assert len(seen) == len(set(seen)) == 20, name
        assert keys == [rank["mesh"] for rank in ranks], name
