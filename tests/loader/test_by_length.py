"""Length-grouped batches: like lengths together, nothing lost, and resume as exact as ever."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import make_dataset, n_tokens_of, number_of

from shardkit.loader import ShardLoader
from shardkit.loader.batches import IndexFacts
from shardkit.loader.opened import open_expected
from shardkit.loader.options import Expected
from shardkit.order.by_length import GroupedOrder, group_size
from shardkit.order.epoch import EpochOrder

TOTAL = 331


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """331 samples; some have an image."""
    path = tmp_path_factory.mktemp("grouped")
    make_dataset(path, [100, 31, 200], n_images=dict.fromkeys(range(0, TOTAL, 5), 1))
    return path


def loaders(path: Path, world_size: int, batch_size: int, **options: Any) -> list[ShardLoader]:
    """The loaders of all ranks, grouped unless told otherwise."""
    options = {"group_by_length": True, "prefetch": 0, "drop_last": False} | options
    return [
        ShardLoader(path, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def numbers(batch: dict[str, Any]) -> list[int]:
    """The samples of a batch."""
    n = len(batch["input_ids"]) - batch["n_padding_rows"]
    return [number_of(row) for row in batch["input_ids"][:n].tolist()]


def padding_share(path: Path, **options: Any) -> float:
    """Padding over all, with two ranks."""
    n_places = n_tokens = 0
    for loader in loaders(path, 2, 4, **options):
        for batch in loader:
            n_places += batch["input_ids"].numel()
            n_tokens += int(batch["attention_mask"].sum())
    return 1 - n_tokens / n_places


def test_less_padding_and_every_sample_once(dataset: Path) -> None:
    """Grouping cuts the padding to less than half; every sample comes once."""
    assert padding_share(dataset) < padding_share(dataset, group_by_length=False) / 2
    seen = Counter(
        number for loader in loaders(dataset, 3, 4) for batch in loader for number in numbers(batch)
    )
    assert seen == Counter(range(TOTAL))


def test_images_first_and_longest_first(dataset: Path) -> None:
    """Inside a group the batches with images come first, and each kind falls in length."""
    loader = loaders(dataset, 1, 4)[0]
    n_steps = loader.arrangement.group // 4
    batches = list(islice(loader, n_steps))
    kinds = ["image_rows" in batch for batch in batches]
    assert kinds == sorted(kinds, reverse=True)
    lengths = [int(b["attention_mask"].sum(dim=1).max()) for b in batches if "images" not in b]
    assert lengths == sorted(lengths, reverse=True)


def test_ranks_see_like_lengths_at_the_same_step(dataset: Path) -> None:
    """Steps are balanced: the ranks' longest rows differ by little."""
    worlds = loaders(dataset, 2, 4, drop_last=False)
    gaps = [
        abs(one["input_ids"].shape[1] - other["input_ids"].shape[1])
        for one, other in zip(*worlds, strict=True)
    ]
    assert sorted(gaps)[len(gaps) // 2] <= 4


@settings(max_examples=30, deadline=None)
@given(
    lanes=st.integers(1, 4),
    chunk=st.integers(1, 5),
    group=st.integers(1, 120),
)
def test_equal_to_the_slow_way(dataset: Path, lanes: int, chunk: int, group: int) -> None:
    """The sequence is that of format.md 8.6, made with lists."""
    source = open_expected(dataset, Expected())
    order = EpochOrder(source.sizes, seed=3, epoch=1, lanes=lanes, chunk=chunk)
    places = [*zip(*map(np.ndarray.tolist, order.locate(all_positions())), strict=True)]
    firsts = [0, 100, 131]

    def rank(p: int) -> tuple[bool, int, int]:
        k = firsts[places[p][0]] + places[p][1]
        n_images = k % 5 == 0
        return (not n_images, -(n_tokens_of(k) + n_images * 4), p)

    expected = list(places)
    for begin in range(0, TOTAL, group):
        for kind in range(lanes):
            own = [
                p for p in range(begin, min(begin + group, TOTAL)) if (p // chunk) % lanes == kind
            ]
            for p, q in zip(own, sorted(own, key=rank), strict=True):
                expected[p] = places[q]
    grouped = GroupedOrder(order, IndexFacts([source]).lengths, group, lanes, chunk)
    found = [*zip(*map(np.ndarray.tolist, grouped.locate(all_positions())), strict=True)]
    assert found == expected


def all_positions() -> NDArray[np.uint64]:
    """Every position of the epoch."""
    return np.arange(TOTAL, dtype=np.uint64)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_elastic_resume(dataset: Path, data: st.DataObject) -> None:
    """Another topology at the same global batch size: the same global batches, group for group."""

    def steps(worlds: list[ShardLoader]) -> Any:
        for batches in zip(*worlds, strict=True):
            yield [number for batch in batches for number in numbers(batch)]

    topologies = st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3)])
    first = data.draw(topologies)
    expected = list(steps(loaders(dataset, *first)))
    found: list[list[int]] = []
    worlds = loaders(dataset, *first)
    while len(found) < len(expected):
        n = min(len(expected) - len(found), data.draw(st.integers(1, 12)))
        found += islice(steps(worlds), n)
        state = worlds[0].state_dict()
        worlds = loaders(dataset, *data.draw(topologies), group_by_length=data.draw(st.booleans()))
        for loader in worlds:
            loader.load_state_dict(state)
    assert found == expected


@pytest.mark.parametrize(
    ("n_samples", "expected"), [(10**6, 400), (None, 400), (100, 24), (31, 8), (3, 8)]
)
def test_the_size_of_a_group(n_samples: int | None, expected: int) -> None:
    """50 global batches, fewer in a small epoch, at least one."""
    assert group_size(n_samples, 8) == expected
