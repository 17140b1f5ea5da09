"""P7 with real DeepSpeed: killed in mid-epoch, resumed with other numbers of ranks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from launch import reports
from ranks import run_ranks, started
from records import alpaca_dataset

SCRIPT = Path(__file__).with_name("run_resume.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    return alpaca_dataset(folder, 203, shard_size=60_000)


def by_step(folder: Path, n: int) -> dict[int, tuple[list[str], float]]:
    """Of each step the keys of the global batch, in rank order, and the global loss."""
    ranks = reports(folder, n)
    return {
        step: (
            [key for rank in ranks for key in rank["keys"][i]],
            sum(rank["losses"][i] for rank in ranks),
        )
        for i, step in enumerate(ranks[0]["steps"])
    }


@pytest.mark.slow
def test_killed_and_resumed_with_1_and_4_ranks(dataset: Path, tmp_path: Path) -> None:
    """Keys over the whole epoch exactly once, and losses as in the uncut run, to rounding."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run_ranks(2, SCRIPT, dataset, whole, "--batch-size", 4)
    expected = by_step(whole, 2)
    assert len(expected) == 203 // 8

    with started(2, SCRIPT, dataset, killed, "--batch-size", 4, "--stop-at", 12) as ranks:
        while not all((killed / f"stopped{rank}").exists() for rank in range(2)):
            ranks.poll()
            time.sleep(0.02)
        ranks.kill()
    assert (killed / "ckpt/latest").read_text() == "global_step10"
    assert not (killed / "rank0.json").exists()

    for n, batch_size in ((1, 8), (4, 2)):
        resumed = tmp_path / f"resumed-{n}"
        resumed.mkdir()
        options = ("--batch-size", batch_size, "--resume", killed / "ckpt")
        run_ranks(n, SCRIPT, dataset, resumed, *options)
        found = by_step(resumed, n)
        assert sorted(found) == list(range(10, 203 // 8))
        epoch = [key for step in range(10) for key in expected[step][0]]
        for step, (keys, loss) in found.items():
            assert keys == expected[step][0]
            assert loss == pytest.approx(expected[step][1], rel=1e-4)
            epoch += keys
        assert len(epoch) == len(set(epoch)) == 203 // 8 * 8
