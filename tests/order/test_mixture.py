"""Weights hold in every block, members run through their own epochs, and nothing is a table."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.order.by_length import GroupedOrder, Order
from shardkit.order.mixture import MixtureOrder, Until, _n_reversed_below, integer_weights

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/vectors/order.json").read_text())


def slow_reversed_below(limit: int, n: int) -> int:
    """The oracle: reverse every number below n."""
    return sum(int(f"{t:032b}"[::-1], 2) < limit for t in range(n))


def make(
    totals: list[int],
    weights: tuple[int, ...],
    block: int,
    until: Until = "endless",
    epoch: int = 0,
) -> MixtureOrder:
    """A mixture of members that are cut into two shards each."""
    sizes = tuple(np.array([n // 3, n - n // 3], np.int64) for n in totals)
    return MixtureOrder(sizes, weights, seed=5, epoch=epoch, block=block, until=until)


@pytest.mark.parametrize("case", VECTORS["mixture"])
def test_equal_to_the_vectors(case: dict[str, Any]) -> None:
    """Members, shards and rows are those of format.md 8.7, position by position."""
    order = MixtureOrder(
        sizes=tuple(np.array(sizes, np.int64) for sizes in case["sizes"]),
        weights=tuple(case["weights"]),
        seed=case["seed"],
        epoch=case["epoch"],
        block=case["block"],
        until="endless",
    )
    positions = np.arange(case["block"] * case["n_blocks"], dtype=np.uint64)
    shards, rows = order.locate(positions)
    first = np.cumsum([0, *map(len, case["sizes"])])
    member = np.searchsorted(first, shards, side="right") - 1
    found = zip(member.tolist(), (shards - first[member]).tolist(), rows.tolist(), strict=True)
    assert [list(place) for place in found] == case["out"]


@given(st.integers(0, 2**32), st.integers(0, 300))
def test_counting_reversed_numbers(limit: int, n: int) -> None:
    """The dyadic count is the count."""
    assert _n_reversed_below(limit, np.array([n]))[0] == slow_reversed_below(limit, n)


MIXTURES = st.lists(st.tuples(st.integers(9, 90), st.integers(1, 9)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(MIXTURES, st.integers(1, 40), st.integers(0, 3000))
def test_weights_hold_in_every_block(
    members: list[tuple[int, int]], block: int, first: int
) -> None:
    """In each block floor or ceil of the share; over many blocks the share itself."""
    totals, weights = [n for n, _ in members], tuple(w for _, w in members)
    order = make(totals, weights, block)
    n_blocks = 64
    positions = np.arange(first * block, (first + n_blocks) * block, dtype=np.uint64)
    member, _ = order.members_at(positions)
    for i, weight in enumerate(weights):
        share = Fraction(weight * block, sum(weights))
        counts = (member.reshape(n_blocks, block) == i).sum(axis=1)
        assert set(counts.tolist()) <= {share.__floor__(), share.__ceil__()}
        assert abs(counts.sum() - share * n_blocks) <= 8


@settings(deadline=None, max_examples=80)
@given(MIXTURES, st.integers(1, 40), st.integers(1, 40))
def test_members_run_through_their_own_epochs(
    members: list[tuple[int, int]], block: int, n: int
) -> None:
    """Every member's samples are taken one after the other, each once in each of its epochs."""
    totals, weights = [n for n, _ in members], tuple(w for _, w in members)
    order = make(totals, weights, block)
    member, number = order.members_at(np.arange(n * block, dtype=np.uint64))
    shards, rows = order.locate(np.arange(n * block, dtype=np.uint64))
    for i, total in enumerate(totals):
        mine = number[member == i]
        assert sorted(mine.tolist()) == list(range(len(mine)))
        assert {*shards[member == i].tolist()} <= {2 * i, 2 * i + 1}
        in_first_epoch = (member == i) & (number < total)
        seen = {*zip(shards[in_first_epoch].tolist(), rows[in_first_epoch].tolist(), strict=True)}
        assert len(seen) == in_first_epoch.sum()


@settings(deadline=None, max_examples=100)
@given(MIXTURES, st.integers(1, 40), st.data())
def test_positions_are_independent(
    members: list[tuple[int, int]], block: int, data: st.DataObject
) -> None:
    """Any position alone gives what it gives in a run: the cost of a resume does not grow."""
    order = make([n for n, _ in members], tuple(w for _, w in members), block)
    run = order.locate(np.arange(200, dtype=np.uint64))
    for p in data.draw(st.lists(st.integers(0, 199), min_size=1, max_size=5)):
        alone = order.locate(np.array([p], np.uint64))
        assert (alone[0][0], alone[1][0]) == (run[0][p], run[1][p])


@settings(deadline=None, max_examples=100)
@given(MIXTURES, st.integers(1, 20))
def test_where_an_epoch_ends(members: list[tuple[int, int]], block: int) -> None:
    """`first` repeats nothing and could not go a block further; `all` has seen everything."""
    totals, weights = [n for n, _ in members], tuple(w for _, w in members)
    first = make(totals, weights, block, "first")
    n = first.n_samples or 0
    counts = first._taken(np.array([n // block, n // block + 1], np.uint64))
    assert np.all(counts[:, 0] <= totals)
    assert np.any(counts[:, 1] > totals)
    whole = make(totals, weights, block, "all")
    n = whole.n_samples or 0
    counts = whole._taken(np.array([n // block, max(0, n // block - 1)], np.uint64))
    assert np.all(counts[:, 0] >= totals)
    assert np.any(counts[:, 1] < totals)


@settings(max_examples=15)
@given(
    MIXTURES,
    st.integers(1, 40),
    st.sampled_from(["first", "all", "endless"]),
    st.integers(0, 3),
    st.integers(0, 200),
    st.sampled_from([0, 1, 4]),
)
def test_where_a_sample_is_seen(
    members: list[tuple[int, int]],
    block: int,
    until: Until,
    epoch: int,
    first: int,
    n_blocks_a_group: int,
) -> None:
    """All positions of a sample are found, sorted by length or not, without the others."""
    totals, weights = [n for n, _ in members], tuple(w for _, w in members)
    order: Order = make(totals, weights, block, until, epoch)
    end = 300 if order.n_samples is None else min(300, order.n_samples)
    if n_blocks_a_group:
        group = n_blocks_a_group * block
        order, end = GroupedOrder(order, lengths, group, 1, block), end // group * group
    shards, rows = order.locate(np.arange(end, dtype=np.uint64))
    for sample in [(0, 0), (2 * len(members) - 1, 1), (1, 2)]:
        expected = np.flatnonzero((shards == sample[0]) & (rows == sample[1]))
        found = []
        for position in order.seen_at(*sample, first):
            if position >= end + 4 * block:
                break
            found.append(position)
        within = sorted(position for position in found if position < end)
        assert within == expected[expected >= first].tolist()


def lengths(shards: Any, rows: Any) -> Any:
    """Made up tokens and images of samples."""
    return (rows * 37 + shards * 11) % 50, (rows + shards) % 3


def test_mixture_epochs_go_on_where_the_last_one_ended() -> None:
    """Samples that one epoch did not reach come in the next one."""
    totals, seen = [100, 10], set()
    for epoch in range(10):
        order = make(totals, (1, 1), 4, "first", epoch)
        member, number = order.members_at(np.arange(order.n_samples or 0, dtype=np.uint64))
        seen |= {int(k) for k in number[member == 0]}
    assert seen == set(range(100))


def test_far_positions() -> None:
    """The arithmetic holds at a trillion positions."""
    order = make([1000, 17], (2, 1), 512)
    positions = np.arange(10**12, 10**12 + 512, dtype=np.uint64)
    member, number = order.members_at(positions)
    assert abs(int((member == 0).sum()) - 341) <= 1
    assert abs(int(number[member == 0].min()) - 2 * 10**12 // 3) < 1000


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0.7, 0.3], (7, 3)), ([2, 4], (1, 2)), ([1 / 3, 1], None), ([0.25, 0.5, 1], (1, 2, 4))],
)
def test_weights_become_integers(weights: list[float], expected: tuple[int, ...] | None) -> None:
    """Decimal fractions are taken as they are written."""
    found = integer_weights(weights)
    assert expected is None or found == expected
    assert abs(found[0] / found[1] - weights[0] / weights[1]) < 1e-9
