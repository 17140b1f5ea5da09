"""Steps of equal cost: the specification to the bit, every sample once, and what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaConfig, Qwen2_5_VLConfig

from shardkit.errors import UsageError
from shardkit.format.layout import INDEX_DTYPE
from shardkit.order.balanced import Balance, BalancedOrder, Scope, snake
from shardkit.order.cost import DEFAULT_WEIGHTS, costs_of, weights_of
from shardkit.order.epoch import EpochOrder
from shardkit.order.permute import U64

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/vectors/order.json").read_text())
SCOPES: list[Scope] = ["group", "lanes", "step"]


def balanced(
    costs: list[int], *, lanes: int, chunk: int, group: int, scope: Scope, step: int, rows: int,
    seed: int = 0, epoch: int = 0,
) -> BalancedOrder:  # fmt: skip
    """An order over one shard in file order: sample k stands at position k of S."""

    def cost(shards: NDArray[np.int64], numbers: NDArray[np.int64]) -> U64:
        return np.array(costs, np.uint64)[numbers]

    order = EpochOrder(
        np.array([len(costs)]), seed, epoch, lanes=1, chunk=1, shuffle="none", window=1
    )
    balance = Balance(scope, step, rows, DEFAULT_WEIGHTS)
    return BalancedOrder(order, cost, balance, group, lanes, chunk, seed, epoch)


@pytest.mark.parametrize("case", VECTORS["balance"])
def test_the_vectors(case: dict[str, Any]) -> None:
    """What the slow twin of docs/vectors makes of section 8.8 is what the order gives."""
    expected = case.pop("out")
    order = balanced(**case)
    assert order.source(np.arange(len(expected), dtype=np.uint64)).tolist() == expected


@given(
    n=st.integers(0, 200), ranks=st.integers(1, 5), rows=st.integers(1, 4),
    steps=st.integers(1, 6), scope=st.sampled_from(SCOPES), seed=st.integers(0, 2**64 - 1),
    some=st.lists(st.integers(0, 30), min_size=1, max_size=9),
)  # fmt: skip
def test_every_sample_once_and_traced_back(
    n: int, ranks: int, rows: int, steps: int, scope: Scope, seed: int, some: list[int]
) -> None:
    """A permutation inside each group, the same in any slices, and `seen_at` is its inverse."""
    step = ranks * rows
    costs = [some[i * i % len(some)] for i in range(n)]
    order = balanced(
        costs, lanes=ranks, chunk=rows, group=steps * step, scope=scope, step=step, rows=rows,
        seed=seed,
    )  # fmt: skip
    positions = np.arange(n, dtype=np.uint64)
    found = order.source(positions)
    for begin in range(0, n, steps * step):
        inside = found[begin : begin + steps * step].tolist()
        assert sorted(inside) == list(range(begin, min(n, begin + steps * step)))
    pieces = [order.source(positions[i : i + 7]) for i in range(0, n, 7)]
    assert not pieces or np.array_equal(np.concatenate(pieces), found)
    for position, sample in enumerate(found.tolist()[:40]):
        assert list(order.seen_at(0, sample)) == [position]


@pytest.mark.parametrize("scope", SCOPES)
def test_many_places_at_once_are_as_one_by_one(scope: Scope) -> None:
    """A plan asks for all classes of a group together, a rank for its own."""
    costs = np.random.default_rng(5).integers(1, 40, 500).tolist()  # many are equal
    order = balanced(
        costs, lanes=9, chunk=2, group=108, scope=scope, step=18, rows=2, seed=3, epoch=1
    )
    every = np.arange(500, dtype=np.uint64)
    one_by_one = [order.source(every[i : i + 1]) for i in every]
    assert np.array_equal(order.source(every), np.concatenate(one_by_one))


def straggler(order: BalancedOrder, costs: NDArray[np.int64], ranks: int, rows: int) -> float:
    """The slowest rank of each step, over the mean of the ranks, over all whole steps."""
    step = ranks * rows
    n = len(costs) // step * step
    shares = costs[order.source(np.arange(n, dtype=np.uint64)).astype(np.int64)]
    by_rank = shares.reshape(-1, ranks, rows).sum(axis=2)
    return float(by_rank.max(axis=1).sum() / by_rank.mean(axis=1).sum())


@pytest.mark.parametrize(("ranks", "rows"), [(8, 1), (8, 4), (64, 1)])
def test_the_slowest_rank_is_hardly_slower(ranks: int, rows: int) -> None:
    """Long-tailed costs (log-normal): near 1 over the group, better than random in each lane."""
    rng = np.random.default_rng(3)
    costs = (np.exp(rng.normal(0, 1, 40 * ranks * rows * 3)) * 1e6).astype(np.int64)
    options: dict[str, Any] = {
        "lanes": ranks, "chunk": rows, "group": 40 * ranks * rows, "step": ranks * rows,
        "rows": rows,
    }  # fmt: skip
    found = {
        scope: straggler(balanced(costs.tolist(), scope=scope, **options), costs, ranks, rows)
        for scope in SCOPES
    }
    random = costs.reshape(-1, ranks, rows).sum(axis=2)
    factor = float(random.max(axis=1).sum() / random.mean(axis=1).sum())
    assert found["group"] - 1 < (factor - 1) / 3
    assert found["group"] < found["lanes"] < factor
    assert found["step"] <= factor + 1e-9
    if rows > 1:
        assert found["step"] < factor


def test_dealing_goes_back_and_forth() -> None:
    """3 ranks of 2 rows: 0 and 5, 1 and 4, 2 and 3."""
    assert snake(6, 2).tolist() == [0, 5, 1, 4, 2, 3]
    assert snake(5, 2).tolist() == [0, 1, 2, 3, 4]


def test_weights_of_models() -> None:
    """Parameters a layer to the width of attention; an image token costs what its patches do."""
    dense = LlamaConfig(
        hidden_size=2048, num_attention_heads=16, intermediate_size=5461, num_hidden_layers=24,
        vocab_size=1,
    )  # fmt: skip
    token, square, image = weights_of(dense)
    assert image == 0
    assert token / square == pytest.approx(12 * 2048, rel=0.01)
    seeing = weights_of(Qwen2_5_VLConfig())
    assert seeing[2] > 0
    bare = SimpleNamespace(hidden_size=64, vision_config=SimpleNamespace(hidden_size=32))
    assert weights_of(bare)[2] > 0
    assert weights_of((3, 2, 1)) == (3, 2, 1)
    for wrong in ((1, 2), (1, 2, -3), (1.0, 2, 3), "cost", object()):
        with pytest.raises(UsageError, match="cost_model"):
            weights_of(wrong)


def test_costs_that_need_more_bits_are_refused() -> None:
    """They would be small ones: the dearest sample would pass for the cheapest."""
    index = np.zeros(2, INDEX_DTYPE)
    index["length"], index["cost2"] = (4, 1 << 17), (16, 1 << 34)
    square = (1 << 29) + 7
    expected = [4 + 16 * square, (1 << 17) + (1 << 34) * square]
    assert costs_of(index, (1, square, 0)).tolist() == expected
    with pytest.raises(UsageError, match="too large"):
        costs_of(index, (0, (1 << 32) - 1, 0))
