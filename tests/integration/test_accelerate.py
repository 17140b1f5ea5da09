"""The two set-ups of accelerate that lose samples without a word are refused; ours passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import reports
from ranks import run_ranks
from synthetic import make_dataset

SCRIPT = Path(__file__).with_name("run_accelerate.py")


@pytest.mark.slow
def test_losing_set_ups_are_refused(tmp_path: Path) -> None:
    """On two real ranks, with no worker and with a forked and a spawned one."""
    make_dataset(tmp_path / "data", (13, 8))
    run_ranks(2, SCRIPT, tmp_path / "data", tmp_path)
    ranks = reports(tmp_path, 2)
    for rank in ranks:
        refused = [value for name, value in rank.items() if name.startswith("shard")]
        assert len(refused) == 3
        assert all("share out this rank's samples once more" in text for text in refused)
    for name in ("dispatch", "dispatch, forked worker", "dispatch, spawned worker"):
        assert "would never be trained on" in ranks[0][name]
    seen = [key for rank in ranks for key in rank["ShardLoader prepared"]]
    assert len(seen) == len(set(seen)) == 20
