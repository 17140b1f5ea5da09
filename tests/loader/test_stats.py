"""Statistics of the steps, and the warning when training waits."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from synthetic import make_dataset

from shardkit.loader import ShardLoader
from shardkit.loader.collate import RawBatch
from shardkit.loader.images import ImageStage
from shardkit.loader.stats import Health, StepStats, Timings


@pytest.mark.parametrize("n_workers", [0, 1])
def test_what_a_step_says(tmp_path: Path, n_workers: int) -> None:
    """Times, bytes, tokens, padding, the slowest shard; positions are those of the steps."""
    manifest = make_dataset(tmp_path, [12, 9])
    loader = ShardLoader(
        tmp_path, 7, rank=0, world_size=1, stats=True, num_workers=n_workers, shuffle=False
    )
    for _ in loader:
        time.sleep(0.002)

    steps = list(loader.health.steps)
    assert [(step.epoch, step.position) for step in steps] == [(0, 0), (0, 7), (0, 14)]
    assert loader.health.n_tokens == manifest.n_tokens
    assert 0 < loader.health.n_bytes < sum(shard.n_bytes for shard in manifest.shards)
    assert [step.is_first for step in steps] == [True, False, False]
    for step in steps[1:]:
        assert step.work_s >= 0.002
    for step in steps:
        assert step.timings.read_s > 0
        assert step.timings.collate_s > 0
        assert 0 < step.padding_share < 1
        assert step.timings.slowest_shard.startswith("shard-0000")
    assert "slowest: shard-0000" in loader.health.describe()


def test_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    """Without stats there are no figures and no cost."""
    make_dataset(tmp_path, [12])
    loader = ShardLoader(tmp_path, 4, rank=0, world_size=1)
    assert len(list(loader)) == 3
    assert loader.health.n_steps == 0
    assert loader.health.describe() == "no steps yet"


@pytest.mark.parametrize(("wait_s", "n_warnings"), [(0.5, 1), (0.01, 0)])
def test_waiting_is_told_once(
    wait_s: float, n_warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when more than a fifth of the time is waiting, naming the slowest shard."""
    health = Health()
    timings = Timings(read_s=0.4, slowest_shard="shard-00003.tar", slowest_s=0.3)
    with caplog.at_level(logging.WARNING, logger="shardkit.loader"):
        for i in range(300):
            health.add(StepStats(0, i, wait_s, 1.0, timings))

    assert len(caplog.records) == n_warnings
    if n_warnings:
        message = caplog.records[0].getMessage()
        assert "33% of the time" in message
        assert "shard-00003.tar" in message
        assert "\n" not in message


def test_the_first_batch_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    """Starting takes a minute, once; after that training never waits."""
    health = Health()
    with caplog.at_level(logging.WARNING, logger="shardkit.loader"):
        for i in range(50):
            wait_s = 0.0 if i else 60.0
            health.add(StepStats(0, i, wait_s, 0.1, Timings(), is_first=not i))

    assert health.wait_share == 0
    assert health.wait_s == 60
    assert not caplog.records


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_run_with_slow_reading_warns(
    tmp_path: Path,
    prefetch: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch takes 20 ms more than it would, a training step nothing: one line in 60 steps."""
    real = ImageStage.__call__

    def late(stage: ImageStage, raw: RawBatch) -> RawBatch:
        time.sleep(0.02)
        return real(stage, raw)

    monkeypatch.setattr(ImageStage, "__call__", late)
    make_dataset(tmp_path, [120])
    loader = ShardLoader(tmp_path, 2, rank=0, world_size=1, stats=True, prefetch=prefetch)
    with caplog.at_level(logging.WARNING, logger="shardkit.loader"):
        assert len(list(loader)) == 60
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "training waits on data" in messages[0]
