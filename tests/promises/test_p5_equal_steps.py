"""P5: every rank gets the same number of batches, and each sample comes exactly once."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_dataset, number_of

from shardkit.loader import ShardDataset, ShardLoader
from shardkit.loader.batches import Share
from shardkit.loader.world import World
from shardkit.order.arrangement import Arrangement
from shardkit.order.epoch import EpochOrder, n_steps

_folders: list[TemporaryDirectory[str]] = []


@cache
def dataset_of(sizes: tuple[int, ...]) -> Path:
    """A dataset with shards of these sizes, made once."""
    _folders.append(TemporaryDirectory())
    make_dataset(Path(_folders[-1].name), sizes)
    return Path(_folders[-1].name)


SIZES = st.sampled_from(
    [(1,), (7,), (0, 9), (40, 1, 0, 3), (13, 13, 13), (5,) * 9, (64, 2), (3, 50, 4, 4)]
)


@settings(max_examples=120, deadline=None)
@given(
    sizes=SIZES,
    world_size=st.integers(1, 64),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.sampled_from([True, False, "window"]),
    seed=st.integers(0, 2**63),
)
def test_loaders_of_all_ranks(
    sizes: tuple[int, ...],
    world_size: int,
    batch_size: int,
    drop_last: bool,
    shuffle: bool,
    seed: int,
) -> None:
    """Equal steps on all ranks; all samples once, or all but the last partial global batch."""
    seen: Counter[int] = Counter()
    steps = set()
    for rank in range(world_size):
        loader = ShardLoader(
            dataset_of(sizes),
            batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            shuffle=shuffle,
            seed=seed,
            window=5,
            prefetch=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batches = list(loader)
        steps.add((len(batches), len(loader)))
        for batch in batches:
            rows = batch["input_ids"].tolist()
            assert len(rows) == batch_size
            n_real = batch_size - batch.get("n_padding_rows", 0)
            seen.update(number_of(row) for row in rows[:n_real])

    total, per_step = sum(sizes), world_size * batch_size
    expected = total // per_step if drop_last else -(-total // per_step)
    assert steps == {(expected, expected)}
    assert set(seen.values()) <= {1}
    assert len(seen) == (expected * per_step if drop_last else total)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=20),
    world_size=st.integers(1, 64),
    n_workers=st.integers(1, 8),
    batch_size=st.integers(1, 16),
    drop_last=st.booleans(),
)
def test_positions_of_all_workers(
    sizes: list[int], world_size: int, n_workers: int, batch_size: int, drop_last: bool
) -> None:
    """The batches of the workers of all ranks are the positions from 0 on, each once."""
    total = sum(sizes)
    n = n_steps(total, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
    taken = []
    for rank in range(world_size):
        counts = 0
        for worker in range(n_workers):
            share = Share(World(rank, world_size), batch_size, 0, n, worker, n_workers)
            taken.append(share.positions(0, share.n_batches or 0).ravel())
            counts += share.n_batches or 0
        assert counts == n
    positions = np.sort(np.concatenate(taken))
    assert np.array_equal(positions, np.arange(n * world_size * batch_size, dtype=np.uint64))
    real = positions[positions < total]
    order = EpochOrder(
        np.array(sizes, np.int64), seed=1, epoch=0, lanes=world_size, chunk=batch_size
    )
    shards, rows = order.locate(real)
    assert len({*zip(shards.tolist(), rows.tolist(), strict=True)}) == len(real)
    assert len(real) == (len(positions) if drop_last else total)


@pytest.mark.filterwarnings("ignore:the epoch is empty")
def test_a_vanilla_dataset_of_many_ranks() -> None:
    """Samples of a rank, workers taken together, are equally many and disjoint."""
    path = dataset_of((40, 1, 0, 3))
    for world_size in (1, 3, 44, 50):
        for drop_last in (True, False):
            datasets = [
                ShardDataset(path, rank=r, world_size=world_size, drop_last=drop_last)
                for r in range(world_size)
            ]
            rows = [[s["input_ids"].tolist() for s in dataset] for dataset in datasets]
            assert {len(part) for part in rows} == {len(datasets[0])}
            seen = [number_of(row) for part in rows for row in part if len(row) > 1]
            assert len(seen) == len(set(seen))
            assert len(seen) == (44 // world_size * world_size if drop_last else 44)


@pytest.mark.parametrize("drop_last", [True, False])
def test_ten_million_samples_are_planned_without_tables(drop_last: bool) -> None:
    """Planning 10 M samples in 10,000 shards takes memory for shards, not for samples."""
    import tracemalloc

    sizes = np.full(10_000, 1000, np.int64)
    tracemalloc.start()
    order = EpochOrder(sizes, seed=0, epoch=0, lanes=64, chunk=8)
    share = Share(World(63, 64), 8, 0, n_steps(10**7, batch_size=8, world_size=64, drop_last=True))
    order.locate(share.positions(share.n_steps - 512 if share.n_steps else 0, 512).ravel())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 << 20
    assert Arrangement(lanes=64).lanes == 64
