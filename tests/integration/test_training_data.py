"""deepspeed.initialize(training_data=...): a ShardDataset is refused, a ShardTable works."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import reports
from ranks import run_ranks
from synthetic import make_dataset

SCRIPT = Path(__file__).with_name("run_training_data.py")


@pytest.mark.slow
def test_training_data(tmp_path: Path) -> None:
    """Refused with the way to do it; the map-style table is shared out by DeepSpeed's sampler."""
    make_dataset(tmp_path / "data", (13, 11))
    run_ranks(2, SCRIPT, tmp_path / "data", tmp_path)
    ranks = reports(tmp_path, 2)
    for rank in ranks:
        assert "training_data" in rank["dataset"]
        assert "Iterate over a ShardLoader" in rank["dataset"]
    assert len({key for rank in ranks for key in rank["keys"]}) == 24
    assert [len(rank["keys"]) for rank in ranks] == [12, 12]
