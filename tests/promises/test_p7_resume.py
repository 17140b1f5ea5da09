"""P7: a state of a few integers continues exactly, whatever the new topology, at no cost."""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_dataset, number_of

from shardkit.loader import ShardDataset, ShardLoader, ShardMixture
from shardkit.order import epoch as epoch_module
from shardkit.order.epoch import EpochOrder, Shuffle
from shardkit.order.permute import permute

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


Loaders = list[ShardLoader]


@dataclass(frozen=True)
class Run:
    """Data and the options of its loaders."""

    kind: str
    packed: bool
    members: list[tuple[int, ...]]
    weights: list[int]
    options: dict[str, Any]

    def write(self, folder: Path) -> dict[Path, float]:
        """The datasets, with their weights."""
        found: dict[Path, float] = {}
        for i, (sizes, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            make_dataset(folder / str(i), sizes, packed=self.packed, name=f"{i}.json")
            found[folder / str(i)] = weight
        return found

    def world(self, data: dict[Path, float], ranks: int, rows: int, **how: Any) -> Loaders:
        """The loaders of all ranks."""
        found = []
        for rank in range(ranks):
            place: dict[str, Any] = {"rank": rank, "world_size": ranks}
            dataset = (
                ShardMixture(data, until="all", **place, **self.options)
                if self.kind == "mixture"
                else ShardDataset(next(iter(data)), **place, **self.options)
            )
            grouped = self.kind == "grouped"
            found.append(
                ShardLoader(dataset, rows, sample_keys=True, group_by_length=grouped, **how)
            )
        return found


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A dataset, or a mixture of two, of random shards, and how it is read."""
    packed = draw(st.booleans())
    kind = draw(st.sampled_from(["plain", "grouped", "mixture"]))
    sizes = st.lists(st.integers(0, 25), min_size=1, max_size=4).filter(lambda s: sum(s) >= 13)
    members = [tuple(draw(sizes)) for _ in range(2 if kind == "mixture" else 1)]
    weights = [draw(st.integers(1, 4)) for _ in members]
    options: dict[str, Any] = {"seed": draw(st.integers(0, 99))}
    if kind != "mixture":
        options["drop_last"] = draw(st.booleans())
        options["shuffle"] = draw(st.sampled_from([True, False, "window"]))
    return Run(kind, packed, members, weights, options)


def keys_of_steps(loaders: Loaders) -> Iterator[list[str]]:
    """The keys of each step, all ranks together, in order."""
    for batches in zip(*loaders, strict=True):
        yield [key for batch in batches for key in batch["keys"]]


def resume_and_compare(data: st.DataObject, workers: st.SearchStrategy[int]) -> None:
    """Cut at random steps into other ranks, micro-batches and workers: as if uncut."""
    run = data.draw(runs())
    total = data.draw(st.sampled_from([8, 12]))
    topologies = st.sampled_from(TOPOLOGIES[total])
    with TemporaryDirectory() as folder:
        paths = run.write(Path(folder))
        uncut = run.world(paths, *data.draw(topologies), prefetch=0)
        state = uncut[0].state_dict()
        expected = [step for _ in range(2) for step in keys_of_steps(uncut)]
        found: list[list[str]] = []
        while len(found) < len(expected):
            n = data.draw(st.integers(1, 9))
            how = {"prefetch": data.draw(st.integers(1, 3)), "num_workers": data.draw(workers)}
            loaders = run.world(paths, *data.draw(topologies), **how)
            for loader in loaders:
                loader.load_state_dict(state)
            found += islice(keys_of_steps(loaders), min(n, len(expected) - len(found)))
            state = loaders[0].state_dict()
            assert all(loader.state_dict() == state for loader in loaders)
        assert found == expected


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_elastic_resume_of_random_runs(data: st.DataObject) -> None:
    """Random shards; packed or not; plain, grouped by length, or a mixture."""
    resume_and_compare(data, st.just(0))


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_elastic_resume_with_workers(data: st.DataObject) -> None:
    """The same with worker processes that come and go."""
    resume_and_compare(data, st.integers(0, 2))


@settings(max_examples=25, deadline=None)
@given(
    run=runs(),
    first=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    second=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    n=st.integers(1, 20),
)
def test_another_global_batch_size_continues_exactly_once(
    run: Run, first: tuple[int, int], second: tuple[int, int], n: int
) -> None:
    """What an uncut epoch serves, each sample as often, and a warning when the size is another
    one; random shards, packed or not; plain, grouped by length, or a mixture."""
    run.options["drop_last"] = False
    with TemporaryDirectory() as folder:
        data = run.write(Path(folder))
        uncut = run.world(data, *first, prefetch=0)
        expected = Counter(key for step in keys_of_steps(uncut) for key in step if key)
        before = run.world(data, *first, prefetch=0)
        seen = Counter(key for step in islice(keys_of_steps(before), n) for key in step if key)
        state = before[0].state_dict()
        after = run.world(data, *second, prefetch=0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for loader in after:
                loader.load_state_dict(state)
        changed = first[0] * first[1] != second[0] * second[1]
        assert bool(told) == changed
        assert not changed or "exactly once" in str(told[0].message)
        if state["epoch"] == 0:
            seen.update(key for step in keys_of_steps(after) for key in step if key)

    assert seen == expected
    if run.kind != "mixture":
        assert set(seen.values()) == {1}
        assert len(seen) == sum(run.members[0])


def test_a_dropped_rest_is_the_end_of_the_epoch() -> None:
    """A state whose rest does not fill the new global batch stands at the next epoch."""
    old = ShardLoader(dataset_of(False), 6, rank=0, world_size=1)
    old.load_state_dict(old.state_dict() | {"position": 114})
    assert old.n_remaining == 1
    new = ShardLoader(dataset_of(False), 6, rank=0, world_size=2)
    with pytest.warns(UserWarning, match="global batch size was 6 and is 12"):
        new.load_state_dict(old.state_dict())

    assert (new.epoch, new.state_dict()["position"]) == (1, 0)


@pytest.mark.parametrize("part", [0.1, 0.9])
@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_the_cost_does_not_grow(part: float, shuffle: Shuffle) -> None:
    """The next positions in 1 k, 1 M and 1 B samples: as much memory, as many positions moved."""
    costs = [cost_of_resuming(n, part, shuffle) for n in (10**3, 10**6, 10**9)]
    memory, moved = zip(*costs, strict=True)
    assert max(memory) < min(memory) + 4096
    assert max(moved) <= N_LOCATED + N_SHARDS


N_SHARDS = 500
N_LOCATED = 64


def cost_of_resuming(n_samples: int, part: float, shuffle: Shuffle) -> tuple[int, int]:
    """(bytes at the peak, numbers that went through a permutation) to find the next samples."""
    sizes = np.full(N_SHARDS, n_samples // N_SHARDS, np.int64)
    first = min(int(n_samples * part), n_samples - N_LOCATED)
    positions = np.arange(N_LOCATED, dtype=np.uint64) + np.uint64(first)
    moved = 0

    def counting(index: Any, size: Any, key: Any) -> Any:
        nonlocal moved
        moved += len(index)
        return permute(index, size, key)

    with mock.patch.object(epoch_module, "permute", counting):
        tracemalloc.start()
        EpochOrder(sizes, seed=1, epoch=3, lanes=8, chunk=8, shuffle=shuffle).locate(positions)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, moved
