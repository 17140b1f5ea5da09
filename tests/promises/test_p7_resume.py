"""P7: a state of a few integers continues exactly, whatever the new topology, at no cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_dataset, number_of

from shardkit.loader import ShardLoader
from shardkit.loader.dataset import Arrangement
from shardkit.order.epoch import EpochOrder

_folders: list[TemporaryDirectory[str]] = []
SIZES = (61, 3, 0, 40, 17)
TOTAL = sum(SIZES)


@cache
def dataset_of(packed: bool) -> Path:
    """A dataset of 121 samples, made once."""
    _folders.append(TemporaryDirectory())
    make_dataset(Path(_folders[-1].name), SIZES, packed=packed)
    return Path(_folders[-1].name)


def world_of(path: Path, world_size: int, batch_size: int, **options: Any) -> list[ShardLoader]:
    """The loaders of all ranks."""
    return [
        ShardLoader(path, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def global_batches(loaders: list[ShardLoader]) -> Iterator[list[int]]:
    """The samples of each step, all ranks together, in order."""
    for batches in zip(*loaders, strict=True):
        step: list[int] = []
        for batch in batches:
            n_real = len(batch["input_ids"]) - batch.get("n_padding_rows", 0)
            step += [number_of(row) for row in batch["input_ids"][:n_real].tolist()]
        yield step


TOPOLOGIES = {12: [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)], 8: [(1, 8), (4, 2), (8, 1)]}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_elastic_resume(data: st.DataObject) -> None:
    """Cut a run at random steps, change ranks and micro-batch: the global batches are the same."""
    total = data.draw(st.sampled_from([8, 12]))
    options: dict[str, Any] = {
        "seed": data.draw(st.integers(0, 1000)),
        "drop_last": data.draw(st.booleans()),
        "shuffle": data.draw(st.sampled_from([True, False, "window"])),
        "window": 7,
    }
    path = dataset_of(data.draw(st.booleans()))
    first = data.draw(st.sampled_from(TOPOLOGIES[total]))
    uncut = world_of(path, *first, prefetch=0, **options)
    expected = [step for _ in range(2) for step in global_batches(uncut)]

    loaders = world_of(path, *first, prefetch=0, **options)
    found: list[list[int]] = []
    while len(found) < len(expected):
        n = data.draw(st.integers(1, 9))
        found += islice(global_batches(loaders), min(n, len(expected) - len(found)))
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
        loaders = world_of(path, *data.draw(st.sampled_from(TOPOLOGIES[total])), **options)
        for loader in loaders:
            loader.load_state_dict(state)

    assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    second=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    n=st.integers(1, 20),
)
def test_another_global_batch_size_continues_exactly_once(
    first: tuple[int, int], second: tuple[int, int], n: int
) -> None:
    """Each sample of the epoch once, and a warning when the size is another one."""
    before = world_of(dataset_of(False), *first, prefetch=0, drop_last=False)
    seen = []
    for step in islice(global_batches(before), n):
        seen += step
    state = before[0].state_dict()
    after = world_of(dataset_of(False), *second, prefetch=0, drop_last=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for loader in after:
            loader.load_state_dict(state)
    changed = first[0] * first[1] != second[0] * second[1]
    assert bool(told) == changed
    assert not changed or "exactly once" in str(told[0].message)

    if state["epoch"] == 0:
        seen += [number for step in global_batches(after) for number in step]
    assert sorted(seen) == list(range(TOTAL))


def test_a_dropped_rest_is_the_end_of_the_epoch() -> None:
    """A state whose rest does not fill the new global batch stands at the next epoch."""
    old = ShardLoader(dataset_of(False), 6, rank=0, world_size=1)
    old.load_state_dict(old.state_dict() | {"position": 114})
    assert old.n_remaining == 1
    new = ShardLoader(dataset_of(False), 6, rank=0, world_size=2)
    with pytest.warns(UserWarning, match="global batch size was 6 and is 12"):
        new.load_state_dict(old.state_dict())

    assert (new.epoch, new.state_dict()["position"]) == (1, 0)


@pytest.mark.parametrize("n_samples", [10**6, 10**9])
@pytest.mark.parametrize("part", [0.1, 0.9])
def test_the_cost_does_not_grow(n_samples: int, part: float) -> None:
    """The next positions at 10 % and 90 % of 1 M and of 1 B samples: milliseconds, no table."""
    sizes = np.full(1000, n_samples // 1000, np.int64)
    arrangement = Arrangement(lanes=64, chunk=8)
    order = EpochOrder(
        sizes, seed=1, epoch=3, lanes=arrangement.lanes, chunk=arrangement.chunk, shuffle="full"
    )
    positions = np.arange(64, dtype=np.uint64) + np.uint64(int(n_samples * part))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        order.locate(positions)
        best = min(best, time.perf_counter() - began)

    assert best < 0.02
