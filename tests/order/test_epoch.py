"""The epoch order: equal to the specification's vectors, a permutation, equal for all who ask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.order.epoch import EpochOrder, batch_positions, n_steps
from shardkit.order.permute import derive_key, derive_keys, mix64, mix64_array, permute, unpermute

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/vectors/order.json").read_text())


def everything(order: EpochOrder) -> list[tuple[int, int]]:
    shards, rows = order.locate(np.arange(order.n_samples, dtype=np.uint64))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


@st.composite
def orders(draw: st.DrawFn) -> EpochOrder:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    return EpochOrder(
        np.array(sizes),
        seed=draw(st.integers(0, 2**64 - 1)),
        epoch=draw(st.integers(0, 2**40)),
        lanes=draw(st.integers(1, 64)),
        chunk=draw(st.integers(1, 20)),
        shuffle=draw(st.sampled_from(["full", "window", "none"])),
        window=draw(st.integers(1, 50)),
    )


def test_mix64_and_keys_equal_the_vectors() -> None:
    """mix64 and key are those of format.md 8.1, for one integer and for arrays."""
    for value, expected in VECTORS["mix64"]:
        assert mix64(value) == expected
        assert mix64_array(np.array([value], np.uint64)).tolist() == [expected]
    for parts, expected in VECTORS["key"]:
        assert derive_key(*parts) == expected
        last = np.array([parts[-1]], np.uint64)
        assert derive_keys(derive_key(*parts[:-1]), last).tolist() == [expected]


def test_permute_equals_the_vectors() -> None:
    """permute is that of format.md 8.2, small and large."""
    for case in VECTORS["permute"]:
        index = np.arange(case["n"], dtype=np.uint64)
        assert permute(index, case["n"], case["key"]).tolist() == case["out"]
    for case in VECTORS["permute_large"]:
        index = np.array([case["i"]], np.uint64)
        assert permute(index, case["n"], case["key"]).tolist() == [case["out"]]


@pytest.mark.parametrize("case", VECTORS["sequence"])
def test_the_sequence_equals_the_vectors(case: dict[str, object]) -> None:
    """S is that of format.md 8.3 and 8.4, element by element."""
    arguments = {name: value for name, value in case.items() if name != "out"}
    order = EpochOrder(**{**arguments, "sizes": np.array(case["sizes"])})  # type: ignore[arg-type]
    assert [list(place) for place in everything(order)] == case["out"]


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_with_an_inverse(n: int, key: int) -> None:
    """Every index below n is hit once, and unpermute leads back."""
    index = np.arange(n, dtype=np.uint64)
    there = permute(index, n, key)
    assert np.array_equal(np.sort(there), index)
    assert np.array_equal(unpermute(there, n, key), index)


@given(orders())
def test_each_sample_is_in_the_epoch_exactly_once(order: EpochOrder) -> None:
    """S holds every sample of every shard once, and positions_of finds each."""
    sizes = order.sizes.tolist()
    wanted = {(shard, row) for shard, size in enumerate(sizes) for row in range(size)}
    found = everything(order)
    assert len(found) == len(wanted)
    assert set(found) == wanted
    shards, rows = (np.array(column) for column in zip(*found, strict=True))
    assert order.positions_of(shards, rows).tolist() == list(range(order.n_samples))


@given(
    order=orders(),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 64),
    drop_last=st.booleans(),
)
def test_ranks_slice_the_sequence(
    order: EpochOrder, batch_size: int, world_size: int, drop_last: bool
) -> None:
    """All ranks make equally many batches; together they are S, cut or padded at its end."""
    n = n_steps(order.n_samples, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
    ranks = [
        batch_positions(0, n, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = np.stack(ranks, axis=1).ravel()
    assert together.tolist() == list(range(n * batch_size * world_size))
    missed = order.n_samples - len(together)
    assert 0 <= missed < batch_size * world_size if drop_last else missed <= 0


@given(order=orders(), workers=st.integers(1, 8))
def test_with_default_lanes_a_worker_reads_its_own_lane(order: EpochOrder, workers: int) -> None:
    """L = R*W and u = B: worker w of rank r touches only the shards of one lane, but at the end."""
    batch_size, world_size = order.chunk, 3
    order = EpochOrder(
        order.sizes, order.seed, order.epoch, world_size * workers, batch_size, "full"
    )
    n_turns = order.n_samples // order.lanes // batch_size * workers
    for rank in range(world_size):
        rows = batch_positions(0, n_turns, batch_size=batch_size, rank=rank, world_size=world_size)
        for worker in range(workers):
            shards, _ = order.locate(rows[worker::workers].ravel())
            lane = worker * world_size + rank
            assert set(shards.tolist()) <= set(order.shards_of_lane(lane).tolist())


@given(orders())
def test_the_lanes_together_touch_every_shard(order: EpochOrder) -> None:
    """No shard with samples is left out of all lanes."""
    touched = {int(s) for lane in range(order.n_lanes) for s in order.shards_of_lane(lane)}
    assert touched == set(np.flatnonzero(order.sizes).tolist())


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or another seed is another order."""
    sizes = np.full(20, 50)
    seen = {
        tuple(everything(EpochOrder(sizes, seed, epoch, lanes=4, chunk=2)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(seen) == 9


def test_a_billion_samples_cost_no_table() -> None:
    """Positions anywhere in 10^9 samples of 100,000 shards are located without a table."""
    order = EpochOrder(np.full(100_000, 10_000), seed=1, epoch=0, lanes=1024, chunk=8)
    positions = np.array([0, 10**8, 10**9 - 1], np.uint64)
    shards, rows = order.locate(positions)
    assert np.array_equal(order.positions_of(shards, rows), positions)
